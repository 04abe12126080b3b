"""What the camera adds: motion and defocus blur, uneven light, exposure, colour cast, grain, and the JPEG file.

Everything is whole-number arithmetic, or arithmetic that is exact in floats, so that it is the same on every machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from qtoolkit.data.rendering.draws import Draws
from qtoolkit.data.rendering.textures import BANK_SIZE, noise_tile

__all__ = ["CameraOptions", "encode_jpeg", "take_photo"]

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class CameraOptions:
    """How likely (0–1) and how strong each fault of a photograph is; lengths as shares of the image's long side.

    ``noise`` is the highest standard deviation in grey levels, ``jpeg_quality`` the lowest and highest quality.
    """

    motion_blur: float = 0.04
    longest_motion: float = 0.01
    defocus: float = 0.06
    uneven_light: float = 0.5
    noise: float = 9.0
    grey: float = 0.03
    jpeg_quality: tuple[int, int] = (55, 95)


def take_photo(image: Image, draws: Draws, options: CameraOptions) -> Image:
    """The photograph (h, w, 3) uint8 BGR of a drawn scene of that shape."""
    # Drawn edges are sharper than any lens.
    photo: Any = cv2.GaussianBlur(image, (3, 3), 0)
    if draws.chance(options.motion_blur):
        photo = _moved(photo, draws, options.longest_motion)
    elif draws.chance(options.defocus):
        size = 3 + 2 * round(max(image.shape[:2]) / 320)
        photo = cv2.GaussianBlur(photo, (size, size), 0)
    if draws.chance(options.uneven_light):
        photo = _unevenly_lit(photo, draws)
    photo = cv2.LUT(photo, _tone_curves(draws))
    if draws.chance(options.grey):
        photo = cv2.cvtColor(cv2.cvtColor(photo, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    return _grainy(photo, draws, draws.unit() ** 2 * options.noise)


def encode_jpeg(photo: Image, draws: Draws, options: CameraOptions) -> bytes:
    """The JPEG file of a photograph, of a quality drawn from ``options``."""
    quality = draws.integer(*options.jpeg_quality)
    content: bytes = cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
    return content


def _moved(photo: Image, draws: Draws, longest: float) -> Image:
    """Mean of four copies along a line: a shaken hand, or a panning camera."""
    angle = draws.between(0.0, math.pi)
    length = max(1.5, draws.unit() * longest * max(photo.shape[:2]))
    total: NDArray[np.uint16] = np.full(photo.shape, 2, np.uint16)
    pad = math.ceil(length)
    framed = np.asarray(cv2.copyMakeBorder(photo, pad, pad, pad, pad, cv2.BORDER_REPLICATE), np.uint8)
    height, width = photo.shape[:2]
    for step in (-0.5, -0.17, 0.17, 0.5):
        x, y = pad + round(step * length * math.cos(angle)), pad + round(step * length * math.sin(angle))
        total += framed[y : y + height, x : x + width]
    return (total >> 2).astype(np.uint8)


def _unevenly_lit(photo: Image, draws: Draws) -> Image:
    """A soft field of light over the image: a window on one side, a lamp, darker corners."""
    field = np.array([draws.integer(78, 150) for _ in range(9)], np.uint8).reshape(3, 3)
    light = cv2.resize(field, photo.shape[1::-1], interpolation=cv2.INTER_LINEAR_EXACT)
    result: Any = cv2.multiply(photo, cv2.merge((light, light, light)), scale=1.0 / 128.0)
    return np.asarray(result, np.uint8)


def _tone_curves(draws: Draws) -> Image:
    """(256, 1, 3) uint8: exposure, contrast and a colour cast, one curve a channel."""
    exposure, contrast = draws.between(0.75, 1.22), draws.between(0.75, 1.15)
    black = draws.between(-6.0, 24.0) if draws.chance(0.4) else 0.0
    warmth, tint = draws.around(0.0, 0.06), draws.around(0.0, 0.025)
    gains = (1.0 - warmth, 1.0 + tint, 1.0 + warmth)
    greys = np.arange(256) - 128.0
    curves = [(128.0 + greys * contrast) * exposure * gain + black for gain in gains]
    table = np.clip(np.rint(np.stack(curves, axis=-1) * 16) // 16, 0, 255)
    return np.asarray(table, np.uint8).reshape(256, 1, 3)


def _grainy(photo: Image, draws: Draws, deviation: float) -> Image:
    """Noise of that standard deviation in grey levels, cut from a tile at a place of its own."""
    tile = noise_tile()
    height, width = photo.shape[:2]
    if deviation < 0.7:
        return photo
    if max(height, width) > BANK_SIZE:
        tile = np.tile(tile, (-(-height // BANK_SIZE), -(-width // BANK_SIZE), 1))
    top, left = draws.integer(0, tile.shape[0] - height), draws.integer(0, tile.shape[1] - width)
    grain = np.ascontiguousarray(tile[top : top + height, left : left + width])
    scaled = np.rint((np.arange(256) - 128) * (deviation / 32.0) * 16) // 16
    above = cv2.LUT(grain, np.clip(scaled, 0, 255).astype(np.uint8))
    below = cv2.LUT(grain, np.clip(-scaled, 0, 255).astype(np.uint8))
    return np.asarray(cv2.subtract(cv2.add(photo, above), below), np.uint8)
