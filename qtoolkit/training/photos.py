"""Batches of plain photos for retraining without labels: cut, scaled, mirrored, recoloured; the same in every run."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from qtoolkit.data.images import read_image
from qtoolkit.data.letterbox import PAD_VALUE, Letterbox

__all__ = ["PhotoBatches", "letterboxed"]

_CACHE_BYTES = 1 << 30
_SCALES = (0.6, 1.6)
_CONTRAST, _CHANNELS, _BRIGHTNESS = (0.7, 1.3), (0.92, 1.08), (-20.0, 20.0)


def letterboxed(paths: Sequence[Path], size_wh: tuple[int, int]) -> NDArray[np.float32]:
    """Photos as a network sees them in use: (N, 3, H, W) float32, RGB 0–1, padded with grey.

    ``size_wh`` in pixels. Raises DataSetError for a photo that cannot be read.
    """
    out = np.empty((len(paths), 3, size_wh[1], size_wh[0]), np.float32)
    for index, path in enumerate(paths):
        image = read_image(path)
        box = Letterbox.fit((image.shape[1], image.shape[0]), size_wh)
        out[index] = Letterbox.to_tensor(box.apply(image))[0]
    return out


class PhotoBatches:
    """Random views of photos: scale 0.6–1.6 of the letterbox's, moved, mirrored in half of the cases, light and colour.

    Batch i is a function of ``seed`` and i alone, so that a run goes on where it stopped. Decoded photos are kept, up
    to 1 GiB of them. Threads may ask at once.
    """

    def __init__(self, paths: Sequence[Path], batch: int, seed: int) -> None:
        self._paths = list(paths)
        self._batch = batch
        self._seed = seed
        self._decoded: OrderedDict[int, NDArray[np.uint8]] = OrderedDict()
        self._decoded_bytes = 0
        self._lock = threading.Lock()

    def batch(self, index: int, size_wh: tuple[int, int]) -> NDArray[np.float32]:
        """Batch ``index``: (B, H, W, 3) float32, RGB 0–1. Raises DataSetError for a photo that cannot be read."""
        random = np.random.default_rng([self._seed, index])
        first = index * self._batch
        out = np.empty((self._batch, size_wh[1], size_wh[0], 3), np.float32)
        for row in range(self._batch):
            # Every photo comes once before any comes again.
            epoch, position = divmod(first + row, len(self._paths))
            order = np.random.default_rng([self._seed, 1, epoch]).permutation(len(self._paths))
            _draw_view(self._photo(int(order[position])), random, out[row])
        return out

    def _photo(self, index: int) -> NDArray[np.uint8]:
        with self._lock:
            if index in self._decoded:
                self._decoded.move_to_end(index)
                return self._decoded[index]
        image = np.ascontiguousarray(read_image(self._paths[index])[..., ::-1])
        with self._lock:
            # Another thread may have decoded it meanwhile.
            if index not in self._decoded:
                self._decoded[index] = image
                self._decoded_bytes += image.nbytes
            while self._decoded_bytes > _CACHE_BYTES and len(self._decoded) > 1:
                self._decoded_bytes -= self._decoded.popitem(last=False)[1].nbytes
        return image


def _view_matrix(
    image_wh: tuple[int, int], size_wh: tuple[int, int], random: np.random.Generator
) -> NDArray[np.float64]:
    """(2, 3): where a view of ``size_wh`` pixels has what the image has at (x, y), pixel centres at whole numbers.

    The view lies inside the scaled image or the image inside the view, along each axis for itself.
    """
    (w, h), (view_w, view_h) = image_wh, size_wh
    scale = min(view_w / w, view_h / h) * float(np.exp(random.uniform(*np.log(_SCALES))))
    spare = (view_w - w * scale, view_h - h * scale)
    left, top = (random.uniform(min(0.0, room), max(0.0, room)) for room in spare)
    matrix = np.array([[scale, 0.0, left], [0.0, scale, top]])
    if random.random() < 0.5:
        matrix[0] = [-scale, 0.0, left + (w - 1) * scale]
    return matrix


def _draw_view(image: NDArray[np.uint8], random: np.random.Generator, out: NDArray[np.float32]) -> None:
    """One view of an RGB image (h, w, 3) into ``out`` (H, W, 3), 0–1."""
    size_wh = (out.shape[1], out.shape[0])
    matrix = _view_matrix((image.shape[1], image.shape[0]), size_wh, random)
    moved = cv2.warpAffine(image, matrix, size_wh, flags=cv2.INTER_LINEAR, borderValue=(PAD_VALUE,) * 3)
    gain = (random.uniform(*_CONTRAST) * random.uniform(*_CHANNELS, 3)).astype(np.float32)
    # Of a level there are but 256: what becomes of each is looked up.
    lit = np.arange(256, dtype=np.uint8)[:, None] * gain + np.float32(random.uniform(*_BRIGHTNESS))
    table = np.clip(lit, 0, 255) / np.float32(255)
    cv2.LUT(moved, table[None], dst=out)
