"""Batches of plain photos for retraining without labels: cut, scaled, mirrored, recoloured; the same in every run."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from qtoolkit.data.images import read_image
from qtoolkit.data.letterbox import PAD_VALUE, Letterbox

__all__ = ["PhotoBatches", "letterboxed"]

_CACHED_PHOTOS = 2000
_SCALES = (0.6, 1.6)
_CONTRAST, _CHANNELS, _BRIGHTNESS = (0.7, 1.3), (0.92, 1.08), (-20.0, 20.0)


def letterboxed(paths: Sequence[Path], size: int) -> NDArray[np.float32]:
    """Photos as a network sees them in use: (N, 3, size, size) float32, RGB 0–1, padded with grey."""
    out = np.empty((len(paths), 3, size, size), np.float32)
    for index, path in enumerate(paths):
        image = read_image(path)
        box = Letterbox.fit((image.shape[1], image.shape[0]), (size, size))
        out[index] = box.apply(image)[..., ::-1].transpose(2, 0, 1) / np.float32(255)
    return out


class PhotoBatches:
    """Random views of photos: scale 0.6–1.6 of the letterbox's, moved, mirrored in half of the cases, light and colour.

    Batch i is a function of ``seed`` and i alone, so that a run goes on where it stopped. Decoded photos are kept, up
    to 2,000 of them.
    """

    def __init__(self, paths: Sequence[Path], batch: int, seed: int) -> None:
        self._paths = list(paths)
        self._batch = batch
        self._seed = seed
        self._decoded: OrderedDict[int, NDArray[np.uint8]] = OrderedDict()

    def batch(self, index: int, size: int) -> NDArray[np.float32]:
        """Batch ``index``: (B, size, size, 3) float32, RGB 0–1. Raises DataSetError for a photo that cannot be read."""
        random = np.random.default_rng([self._seed, index])
        first = index * self._batch
        out = np.empty((self._batch, size, size, 3), np.float32)
        for row in range(self._batch):
            # Every photo comes once before any comes again.
            epoch, position = divmod(first + row, len(self._paths))
            order = np.random.default_rng([self._seed, 1, epoch]).permutation(len(self._paths))
            out[row] = _view(self._photo(int(order[position])), size, random)
        return out

    def batches(self, start: int, stop: int, sizes: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """Batches ``start`` … ``stop`` − 1, prepared one ahead by a thread of its own; sizes[i] is that of batch i."""
        with ThreadPoolExecutor(1, thread_name_prefix="photos") as pool:
            waiting = [pool.submit(self.batch, index, sizes[index]) for index in range(start, min(start + 2, stop))]
            for index in range(start, stop):
                ready = waiting.pop(0).result()
                if index + 2 < stop:
                    waiting.append(pool.submit(self.batch, index + 2, sizes[index + 2]))
                yield ready

    def _photo(self, index: int) -> NDArray[np.uint8]:
        if index in self._decoded:
            self._decoded.move_to_end(index)
            return self._decoded[index]
        image = self._decoded[index] = np.ascontiguousarray(read_image(self._paths[index])[..., ::-1])
        if len(self._decoded) > _CACHED_PHOTOS:
            self._decoded.popitem(last=False)
        return image


def _view(image: NDArray[np.uint8], size: int, random: np.random.Generator) -> NDArray[np.float32]:
    """One view (size, size, 3) float32 0–1 of an RGB image (h, w, 3)."""
    h, w = image.shape[:2]
    scale = size / max(h, w) * float(np.exp(random.uniform(*np.log(_SCALES))))
    left, top = (random.uniform(*sorted((0.0, size - side * scale))) for side in (w, h))
    matrix = np.array([[scale, 0.0, left], [0.0, scale, top]])
    if random.random() < 0.5:
        matrix[0] = [-scale, 0.0, left + w * scale]
    moved = cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderValue=(PAD_VALUE,) * 3)
    gain = (random.uniform(*_CONTRAST) * random.uniform(*_CHANNELS, 3)).astype(np.float32)
    lit = moved * gain + np.float32(random.uniform(*_BRIGHTNESS))
    view: NDArray[np.float32] = np.clip(lit, 0, 255) / np.float32(255)
    return view
