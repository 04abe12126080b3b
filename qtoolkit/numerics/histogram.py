"""One-pass statistics of a tensor in constant memory: a histogram that grows, and what the range estimators read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtoolkit.errors import UsageError
from qtoolkit.numerics.image_group import GROUP_ARRAYS, ImageGroup, groups_from_arrays, groups_to_arrays

__all__ = ["StreamingHistogram", "TensorStatistics"]

# Bin widths are 2**exponent. The lowest is the smallest float32 above 0; the gap below the largest value's own exponent
# keeps bin numbers at or under 2**24, where they are exact.
_LOWEST_EXPONENT = -149
_EXPONENT_GAP = 24
_FEWEST_BINS = 16


class StreamingHistogram:
    """Histogram of a stream of values, of a fixed number of bins and without a range given beforehand.

    Bins lie on the grid of the multiples of ``width`` = 2ᵉ; bin i holds ``lo + i·width <= value < lo + (i+1)·width``,
    and edges are multiples of ``width``, 0 among them. A value that does not fit doubles the width: bins merge
    pairwise, which is exact on such a grid. The width is the smallest with which all values seen fit (at least 2⁻²⁴
    of the largest magnitude), and the first bin holds the smallest value. So the state depends on the values alone:
    neither their order nor how they were cut into updates or merged histograms changes it.
    """

    def __init__(self, bins: int = 2048) -> None:
        """``bins``: number of bins, at least 16, else UsageError."""
        if bins < _FEWEST_BINS:
            raise UsageError("a histogram has too few bins", expected=f"at least {_FEWEST_BINS}", found=str(bins))
        self._counts = np.zeros(bins, np.int64)
        self._zero_count = 0
        self._exponent = _LOWEST_EXPONENT
        self._first = 0
        self._smallest, self._largest = math.inf, -math.inf

    @property
    def counts(self) -> NDArray[np.int64]:
        """Number of values in each bin, int64 ``(bins,)``; a copy."""
        return np.array(self._counts)

    @property
    def zero_count(self) -> int:
        """Number of values equal to 0; they are in ``counts`` too."""
        return self._zero_count

    @property
    def width(self) -> float:
        """Width of a bin, a power of two."""
        return math.ldexp(1.0, self._exponent)

    @property
    def lo(self) -> float:
        """Lower edge of the first bin."""
        return self._first * self.width

    @property
    def hi(self) -> float:
        """Upper edge of the last bin."""
        return (self._first + self._counts.size) * self.width

    def update(self, values: NDArray[np.floating[Any]]) -> None:
        """Count ``values``, float32 of any shape; none at all is no change. Raises UsageError for NaN and infinity."""
        flat = np.asarray(values, np.float32).ravel()
        if flat.size == 0:
            return
        smallest, largest = float(flat.min()), float(flat.max())
        if not math.isfinite(smallest + largest):
            raise UsageError(
                "a histogram counts finite values only", expected="finite float32", found="NaN or infinity"
            )
        self._cover(smallest, largest)
        index = np.floor(np.multiply(flat, math.ldexp(1.0, -self._exponent), dtype=np.float64)).astype(np.int64)
        self._counts += np.bincount(index - self._first, minlength=self._counts.size)
        self._zero_count += flat.size - int(np.count_nonzero(flat))

    def merge(self, other: StreamingHistogram) -> None:
        """Add the counts of ``other``, exactly as if its values had come here. Raises UsageError if bins differ."""
        if other._counts.size != self._counts.size:
            raise UsageError(
                "two histograms cannot be merged",
                expected=f"{self._counts.size} bins in both",
                found=str(other._counts.size),
            )
        if other._smallest > other._largest:
            return
        self._cover(other._smallest, other._largest)
        self._counts += other._moved(self._exponent, self._first)
        self._zero_count += other._zero_count

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The whole state as named arrays, for npz; ``.tolist()`` of each is JSON once a value was counted."""
        return {
            "counts": self.counts,
            "zero_count": np.array(self._zero_count, np.int64),
            "exponent": np.array(self._exponent, np.int64),
            "first": np.array(self._first, np.int64),
            "span": np.array([self._smallest, self._largest], np.float64),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> StreamingHistogram:
        """What ``to_arrays`` wrote, from arrays or from their lists. Raises UsageError where a part is missing."""
        _require(arrays, ("counts", "zero_count", "exponent", "first", "span"))
        counts = np.array(arrays["counts"], np.int64)
        histogram = cls(counts.size)
        histogram._counts = counts
        histogram._zero_count = int(arrays["zero_count"])
        histogram._exponent, histogram._first = int(arrays["exponent"]), int(arrays["first"])
        histogram._smallest, histogram._largest = (float(bound) for bound in arrays["span"])
        return histogram

    def _cover(self, smallest: float, largest: float) -> None:
        """Widen and shift the bins so that both values, and all before them, have one."""
        if smallest >= self._smallest and largest <= self._largest:
            return
        smallest, largest = min(smallest, self._smallest), max(largest, self._largest)
        furthest = max(-smallest, largest)
        exponent = self._exponent
        if furthest > 0.0:
            exponent = max(exponent, math.frexp(furthest)[1] - _EXPONENT_GAP)
        while _bin_of(largest, exponent) - _bin_of(smallest, exponent) >= self._counts.size:
            exponent += 1
        first = _bin_of(smallest, exponent)
        self._counts = self._moved(exponent, first)
        self._exponent, self._first = exponent, first
        self._smallest, self._largest = smallest, largest

    def _moved(self, exponent: int, first: int) -> NDArray[np.int64]:
        """The counts on bins of a width no smaller, the first of which is number ``first``."""
        moved = np.zeros_like(self._counts)
        occupied = np.flatnonzero(self._counts)
        # >> floors, so bin -1 goes to bin -1: pairs never straddle 0.
        target = ((self._first + occupied) >> min(exponent - self._exponent, 63)) - first
        np.add.at(moved, target, self._counts[occupied])
        return moved


@dataclass(frozen=True, eq=False)
class TensorStatistics:
    """What calibration knows of one tensor; the only thing that range estimators read.

    ``image_min``, ``image_max``: float64 ``(n_images,)``, exact lowest and highest value of each image, in order.
    ``counts``: int64 ``(bins,)`` of equal width from ``lo`` to ``hi``: a histogram of a sample of the values.
    ``zero_count``: how many of the counted values are exactly 0 (a ReLU's); no grid has an error there.
    ``total_count``: number of values the sample was drawn from; None where the sample is all of them.
    ``groups``: the same values by groups of images, each image in one of them; empty where that is not known.
    Raises UsageError where the parts contradict each other.
    """

    image_min: NDArray[np.float64]
    image_max: NDArray[np.float64]
    counts: NDArray[np.int64]
    lo: float
    hi: float
    zero_count: int = 0
    total_count: int | None = None
    groups: tuple[ImageGroup, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_min", np.array(self.image_min, np.float64))
        object.__setattr__(self, "image_max", np.array(self.image_max, np.float64))
        object.__setattr__(self, "counts", np.array(self.counts, np.int64))
        sampled = int(self.counts.sum())
        for holds, expected, found in (
            (
                self.image_min.ndim == 1 and self.image_min.size > 0 and self.image_min.shape == self.image_max.shape,
                "image_min and image_max of one shape (n_images,), n_images >= 1",
                f"{self.image_min.shape} and {self.image_max.shape}",
            ),
            (
                bool(np.all(np.isfinite(self.image_min) & np.isfinite(self.image_max))),
                "finite image_min and image_max",
                "NaN or infinity",
            ),
            (
                self.image_min.shape != self.image_max.shape or bool(np.all(self.image_min <= self.image_max)),
                "image_min <= image_max",
                "an image where it is above",
            ),
            (
                self.counts.ndim == 1 and sampled > 0 and bool(np.all(self.counts >= 0)),
                "counts of shape (bins,), none negative, one above 0",
                f"shape {self.counts.shape}, sum {sampled}",
            ),
            (math.isfinite(self.hi - self.lo) and self.lo < self.hi, "finite lo < hi", f"{self.lo}, {self.hi}"),
            (
                0 <= self.zero_count <= sampled <= (sampled if self.total_count is None else self.total_count),
                "0 <= zero_count <= sum of counts <= total_count",
                f"{self.zero_count}, {sampled}, {self.total_count}",
            ),
            (
                not self.groups or self._groups_hold(sampled),
                "groups that hold each image and each counted value once",
                f"{len(self.groups)} groups of {sum(group.images.size for group in self.groups)} images",
            ),
        ):
            if not holds:
                raise UsageError("the statistics of a tensor contradict each other", expected=expected, found=found)

    def _groups_hold(self, sampled: int) -> bool:
        images = np.sort(np.concatenate([group.images for group in self.groups]))
        counted = sum(int(group.counts.sum()) for group in self.groups)
        return np.array_equal(images, np.arange(self.image_min.size)) and counted == sampled

    @classmethod
    def of(
        cls,
        histogram: StreamingHistogram,
        image_min: NDArray[np.floating[Any]],
        image_max: NDArray[np.floating[Any]],
        total_count: int | None = None,
        groups: tuple[ImageGroup, ...] = (),
    ) -> TensorStatistics:
        """Statistics from a histogram of sampled values and the exact extremes ``(n_images,)`` of each image."""
        return cls(
            np.asarray(image_min, np.float64),
            np.asarray(image_max, np.float64),
            histogram.counts,
            histogram.lo,
            histogram.hi,
            histogram.zero_count,
            total_count,
            groups,
        )

    @property
    def minimum(self) -> float:
        """Exact lowest value of all images."""
        return float(self.image_min.min())

    @property
    def maximum(self) -> float:
        """Exact highest value of all images."""
        return float(self.image_max.max())

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The whole record as named arrays, for npz; ``.tolist()`` of each is JSON. ``total_count`` None is −1."""
        return {
            "image_min": self.image_min,
            "image_max": self.image_max,
            "counts": self.counts,
            "span": np.array([self.lo, self.hi], np.float64),
            "zero_count": np.array(self.zero_count, np.int64),
            "total_count": np.array(-1 if self.total_count is None else self.total_count, np.int64),
            **groups_to_arrays(self.groups, self.image_min.size),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> TensorStatistics:
        """What ``to_arrays`` wrote, from arrays or their lists. Raises UsageError where a part is missing or wrong."""
        names = ("image_min", "image_max", "counts", "span", "zero_count", "total_count")
        _require(arrays, (*names, *GROUP_ARRAYS))
        lo, hi = (float(bound) for bound in arrays["span"])
        total_count = int(arrays["total_count"])
        return cls(
            arrays["image_min"],
            arrays["image_max"],
            arrays["counts"],
            lo,
            hi,
            int(arrays["zero_count"]),
            None if total_count < 0 else total_count,
            groups_from_arrays(arrays),
        )


def _bin_of(value: float, exponent: int) -> int:
    return math.floor(math.ldexp(value, -exponent))


def _require(arrays: Mapping[str, Any], names: tuple[str, ...]) -> None:
    missing = [name for name in names if name not in arrays]
    if missing:
        raise UsageError(
            "saved statistics are not complete", expected=", ".join(names), found=f"no {', '.join(missing)}"
        )
