"""Photos as pixels, and pixels as a network takes them. Copied into bundles, beside run_pose.py.

Python 3.8 and numpy. Photos are read by OpenCV or Pillow, whichever is there; .npy arrays (h, w, 3)
uint8 RGB and binary .ppm files need neither. Without OpenCV they are resized in numpy, pixel for
pixel as OpenCV does it.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["letterbox", "optional", "read_image", "resize"]


def optional(name: str) -> Any:
    """The module of that name, None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


cv2, pil_image, pil_ops = optional("cv2"), optional("PIL.Image"), optional("PIL.ImageOps")


def read_image(path: Path) -> Any:
    """An image as (h, w, 3) uint8 RGB, turned as its EXIF orientation says."""
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    content = path.read_bytes()
    if content[:2] == b"P6":
        fields = content.split(None, 4)  # magic, width, height, 255, pixels
        pixels = content[-int(fields[1]) * int(fields[2]) * 3 :]
        return np.frombuffer(pixels, np.uint8).reshape(int(fields[2]), int(fields[1]), 3)
    if cv2 is not None:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        if image is None:
            sys.exit(f"{path} cannot be read as an image")
        return image[..., ::-1]
    if pil_image is not None:
        return np.asarray(pil_ops.exif_transpose(pil_image.open(path)).convert("RGB"))
    needed = "install Pillow or opencv-python-headless, or give a .npy or .ppm file"
    sys.exit(f"{path} cannot be read: {needed}")


def resize(image: Any, size_wh: tuple[int, int]) -> Any:
    """Bilinear with 11-bit weights, without antialiasing, as cv2.resize; by it if it is there."""
    if cv2 is not None:
        image = np.ascontiguousarray(image)
        return cv2.resize(image, tuple(size_wh), interpolation=cv2.INTER_LINEAR)
    if image.shape[:2] == (2 * size_wh[1], 2 * size_wh[0]):  # OpenCV takes the mean of four then
        rows = image.astype(np.int32)
        rows = rows[::2] + rows[1::2]
        return ((rows[:, ::2] + rows[:, 1::2] + 2) >> 2).astype(np.uint8)
    (x0, x1, a0, a1), (y0, y1, b0, b1) = (_weights(image.shape[1 - i], size_wh[i]) for i in (0, 1))
    wide = image.astype(np.int32)
    wide = (wide[:, x0] * a0[:, None] + wide[:, x1] * a1[:, None]) >> 4
    b0, b1 = b0[:, None, None], b1[:, None, None]
    return ((((b0 * wide[y0]) >> 16) + ((b1 * wide[y1]) >> 16) + 2) >> 2).astype(np.uint8)


def _weights(source: int, target: int) -> Any:
    place = ((np.arange(target) + 0.5) * (1 / (target / source)) - 0.5).astype(np.float32)
    first = np.floor(place).astype(np.int64)
    share = place - first.astype(np.float32)
    shares = (np.float32(1) - share, share)
    weights = [np.rint(each * np.float32(2048)).astype(np.int32) for each in shares]
    return (np.clip(first, 0, source - 1), np.clip(first + 1, 0, source - 1), *weights)


def letterbox(image: Any, size_wh: tuple[int, int], pad_value: int) -> Any:
    """An image (h, w, 3) in the middle of one of ``size_wh``, its scale, and where its left top
    corner is there, (2,) float64 pixels."""
    (h, w), (input_w, input_h) = image.shape[:2], size_wh
    ratio = min(input_w / w, input_h / h)
    new_w, new_h = max(1, round(w * ratio)), max(1, round(h * ratio))
    left, top = round((input_w - new_w) / 2 - 0.1), round((input_h - new_h) / 2 - 0.1)
    padded = np.full((input_h, input_w, 3), pad_value, np.uint8)
    fitted = image if (new_w, new_h) == (w, h) else resize(image, (new_w, new_h))
    padded[top : top + new_h, left : left + new_w] = fitted
    return padded, ratio, np.array([left, top], np.float64)
