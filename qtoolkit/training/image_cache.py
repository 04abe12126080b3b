"""The images of a training set, decoded once and kept as bytes as large as the training needs them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from qtoolkit.data.images import read_image
from qtoolkit.data.samples import Sample
from qtoolkit.errors import UsageError

if TYPE_CHECKING:
    # typing.Self needs Python 3.11.
    from typing_extensions import Self

__all__ = ["ImageCache", "fitted_size_wh"]

_RAM_BYTES = 1 << 30
_GIB = 1 << 30


def fitted_size_wh(size_wh: tuple[int, int], long_side: int) -> tuple[int, int]:
    """Width and height in pixels of an image resized so that its longer side is ``long_side``."""
    ratio = long_side / max(size_wh)
    return max(1, round(size_wh[0] * ratio)), max(1, round(size_wh[1] * ratio))


class ImageCache:
    """``cache[i]``: image i as (h, w, 3) uint8 BGR, resized so that its longer side is ``long_side`` pixels.

    An image is decoded when it is first asked for and kept while the first ``limit_gib`` GiB last, in memory up to
    1 GiB and beyond that in a file of ``folder`` that is removed at the end; images beyond the limit are decoded every
    time. What comes back depends on the image file only, so threads may ask at once. Use as a context manager.
    Raises DataSetError for an image that cannot be decoded.
    """

    def __init__(self, samples: Sequence[Sample], long_side: int, folder: Path, limit_gib: float = 4.0) -> None:
        self._paths = tuple(sample.path for sample in samples)
        self._labelled_wh = tuple(sample.size_wh for sample in samples)
        self._sizes_wh = tuple(fitted_size_wh(sample.size_wh, long_side) for sample in samples)
        sizes = np.array([3 * w * h for w, h in self._sizes_wh], np.int64)
        ends = np.cumsum(sizes)
        self._starts = ends - sizes
        self._kept = int(np.searchsorted(ends, int(limit_gib * _GIB), side="right"))
        self._bytes = int(ends[self._kept - 1]) if self._kept else 0
        self._file = folder / ".images.u8"
        self._ready = np.zeros(len(self._paths), np.bool_)
        self._store: NDArray[np.uint8] | None = None

    def __enter__(self) -> Self:
        if self._bytes > _RAM_BYTES:
            self._store = _mapped_file(self._file, self._bytes)
        elif self._bytes:
            self._store = np.empty(self._bytes, np.uint8)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._store = None
        self._ready[:] = False
        self._file.unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(self._paths)

    def size_wh(self, index: int) -> tuple[int, int]:
        """Width and height of image ``index`` as kept, pixels."""
        return self._sizes_wh[index]

    def ratio_xy(self, index: int) -> tuple[float, float]:
        """Pixels as kept per pixel of the labels, along x and y."""
        (kept_w, kept_h), (w, h) = self._sizes_wh[index], self._labelled_wh[index]
        return kept_w / w, kept_h / h

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        if self._store is None or index >= self._kept:
            return self._decoded(index)
        w, h = self._sizes_wh[index]
        start = int(self._starts[index])
        place = self._store[start : start + 3 * w * h].reshape(h, w, 3)
        if not self._ready[index]:
            # Two threads that come here at once write the same bytes.
            place[...] = self._decoded(index)
            self._ready[index] = True
        return place

    def _decoded(self, index: int) -> NDArray[np.uint8]:
        image: Any = read_image(self._paths[index])
        size_wh = self._sizes_wh[index]
        if image.shape[1::-1] != size_wh:
            shrinks = size_wh[0] < image.shape[1]
            image = cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        resized: NDArray[np.uint8] = image
        return resized


def _mapped_file(path: Path, size: int) -> NDArray[np.uint8]:
    try:
        return np.memmap(path, np.uint8, mode="w+", shape=(size,))
    except OSError as error:
        raise UsageError(
            f"the decoded images cannot be kept in {path.parent}",
            expected=f"{size / _GIB:.1f} GiB of space",
            found=error.strerror or str(error),
            do="give a smaller cache_gib in the recipe (0: decode every time), or another --out",
        ) from error
