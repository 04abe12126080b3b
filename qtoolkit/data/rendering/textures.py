"""A bank of grey textures, made once a process: noise, brick, grass, planks … from which every image cuts its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from qtoolkit.data.rendering.draws import Draws

__all__ = ["BANK_SIZE", "TEXTURE_NAMES", "cut_texture", "noise_tile", "texture_bank"]

Grey = NDArray[np.uint8]

BANK_SIZE = 512
"""Width and height of a texture in pixels."""

_BANK_KEY = 71
_VARIANTS = 2


@lru_cache(maxsize=1)
def texture_bank() -> dict[str, tuple[Grey, ...]]:
    """Name → variants, each (512, 512) uint8 with all greys from 0 to 255, read-only. Integer arithmetic only."""
    bank: dict[str, tuple[Grey, ...]] = {}
    for number, (name, make) in enumerate(_MAKERS.items()):
        variants = []
        for variant in range(_VARIANTS):
            generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence((_BANK_KEY, number, variant))))
            texture = _stretched(make(generator))
            texture.setflags(write=False)
            variants.append(texture)
        bank[name] = tuple(variants)
    return bank


def cut_texture(draws: Draws, name: str, size_wh: tuple[int, int], zoom: float) -> Grey:
    """A piece (h, w) uint8 of a texture at a place drawn by ``draws``, magnified ``zoom`` times, mirrored at random."""
    texture = draws.pick(texture_bank()[name])
    width, height = size_wh
    # What is asked for larger than the texture is magnified more, not repeated: repeats would show.
    zoom = max(zoom, width / BANK_SIZE, height / BANK_SIZE)
    cut_w, cut_h = min(BANK_SIZE, int(width / zoom) + 1), min(BANK_SIZE, int(height / zoom) + 1)
    left, top = draws.integer(0, BANK_SIZE - cut_w), draws.integer(0, BANK_SIZE - cut_h)
    piece = texture[top : top + cut_h, left : left + cut_w]
    if draws.chance(0.5):
        piece = piece[:, ::-1]
    if (cut_w, cut_h) == (width, height):
        return np.ascontiguousarray(piece)
    resized = cv2.resize(np.ascontiguousarray(piece), (width, height), interpolation=cv2.INTER_LINEAR_EXACT)
    return np.asarray(resized, np.uint8)


@lru_cache(maxsize=1)
def noise_tile() -> Grey:
    """(512, 512, 3) uint8 sensor noise around 128 with a standard deviation of 32, bell-shaped."""
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence((_BANK_KEY, 999))))
    # Sum of four bytes: mean 510, deviation 147.8; brought to 128 and 32 in whole numbers.
    total = _bytes(generator, (4, BANK_SIZE, BANK_SIZE, 3)).astype(np.int32).sum(axis=0)
    tile: Grey = np.clip(128 + (total - 510) * 222 // 1024, 0, 255).astype(np.uint8)
    tile.setflags(write=False)
    return tile


def _bytes(generator: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Random bytes out of ``Generator.random``, the one method whose stream is as good as promised."""
    return np.floor(generator.random(shape) * 256.0).astype(np.uint8)


def _stretched(values: NDArray[np.int32]) -> Grey:
    lo, hi = int(values.min()), int(values.max())
    result: Grey = ((values.astype(np.int64) - lo) * 255 // max(1, hi - lo)).astype(np.uint8)
    return result


def _octaves(generator: np.random.Generator, cells: tuple[tuple[int, int], ...], fade: int = 2) -> NDArray[np.int32]:
    """Sum of random grids, from coarse to fine, each ``fade`` times weaker than the one before."""
    total = np.zeros((BANK_SIZE, BANK_SIZE), np.int32)
    weight = 1 << 12
    for across, down in cells:
        grid = _bytes(generator, (down, across))
        total += weight * cv2.resize(grid, (BANK_SIZE, BANK_SIZE), interpolation=cv2.INTER_LINEAR_EXACT).astype(
            np.int32
        )
        weight //= fade
    return total


def _square(*counts: int) -> tuple[tuple[int, int], ...]:
    return tuple((count, count) for count in counts)


def _clouds(generator: np.random.Generator) -> NDArray[np.int32]:
    return _octaves(generator, _square(4, 8, 16, 32, 64, 128))


def _rough(generator: np.random.Generator) -> NDArray[np.int32]:
    return _octaves(generator, _square(16, 48, 128, 256, 512), 1) + (_octaves(generator, _square(6)) // 2)


def _folds(generator: np.random.Generator) -> NDArray[np.int32]:
    return np.abs(_octaves(generator, ((10, 6), (24, 14), (60, 30))) - (1 << 19))


def _planks(generator: np.random.Generator) -> NDArray[np.int32]:
    grain = _octaves(generator, ((4, 90), (8, 256), (24, 512)))
    board = np.arange(BANK_SIZE) // 32
    shade = _bytes(generator, (17,)).astype(np.int32)[board] << 11
    gap = np.where(np.arange(BANK_SIZE) % 32 < 2, -(1 << 19), 0)
    return grain + (shade + gap)[:, None].astype(np.int32)


def _bricks(generator: np.random.Generator) -> NDArray[np.int32]:
    rows, columns = np.indices((BANK_SIZE, BANK_SIZE))
    course = rows // 16
    shifted = columns + 16 * (course % 2)
    mortar = (rows % 16 < 2) | (shifted % 32 < 2)
    shade = _bytes(generator, (33, 18)).astype(np.int32)[course, shifted // 32]
    return np.where(mortar, 900_000, shade << 11) + _rough(generator) // 8


def _tiles(generator: np.random.Generator) -> NDArray[np.int32]:
    rows, columns = np.indices((BANK_SIZE, BANK_SIZE))
    joint = (rows % 48 < 2) | (columns % 48 < 2)
    shade = _bytes(generator, (11, 11)).astype(np.int32)[rows // 48, columns // 48]
    return np.where(joint, 0, 600_000 + (shade << 9)) + _clouds(generator) // 4


def _grass(generator: np.random.Generator) -> NDArray[np.int32]:
    return _octaves(generator, ((6, 6), (60, 20), (200, 60), (512, 150)), 1)


def _foliage(generator: np.random.Generator) -> NDArray[np.int32]:
    canvas = np.zeros((BANK_SIZE, BANK_SIZE), np.uint8)
    for x, y, r, grey in (generator.random((2600, 4)) * (BANK_SIZE, BANK_SIZE, 9, 200)).astype(int).tolist():
        cv2.ellipse(canvas, (x, y), (3 + r, 2 + r // 2), x * 7 % 180, 0, 360, 30 + grey, -1)
    return (canvas.astype(np.int32) << 12) + _clouds(generator) // 3


def _blinds(generator: np.random.Generator) -> NDArray[np.int32]:
    """Curtains and corrugated metal: soft columns of uneven width."""
    return _octaves(generator, ((40, 1), (90, 2), (200, 3)), 1)


def _crowd(generator: np.random.Generator) -> NDArray[np.int32]:
    """Spots of all greys, blurred: spectators, books, pebbles, traffic far away."""
    canvas = np.full((BANK_SIZE, BANK_SIZE), 90, np.uint8)
    for x, y, r, grey in (generator.random((3000, 4)) * (BANK_SIZE, BANK_SIZE, 6, 255)).astype(int).tolist():
        cv2.rectangle(canvas, (x, y), (x + 2 + r, y + 3 + 2 * r), grey, -1)
    return cv2.GaussianBlur(canvas, (5, 5), 0).astype(np.int32)


def _weave(generator: np.random.Generator) -> NDArray[np.int32]:
    rows, columns = np.indices((BANK_SIZE, BANK_SIZE))
    return ((rows // 3 + columns // 3) % 2 << 18) + _rough(generator) // 4 + _clouds(generator) // 4


_MAKERS: dict[str, Callable[[np.random.Generator], NDArray[np.int32]]] = {
    "clouds": _clouds,
    "rough": _rough,
    "folds": _folds,
    "planks": _planks,
    "bricks": _bricks,
    "tiles": _tiles,
    "grass": _grass,
    "foliage": _foliage,
    "blinds": _blinds,
    "crowd": _crowd,
    "weave": _weave,
}
TEXTURE_NAMES = tuple(_MAKERS)
