"""One group of calibration images, as a record and as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["GROUP_ARRAYS", "ImageGroup", "groups_from_arrays", "groups_to_arrays"]

GROUP_ARRAYS = ("group_of", "group_energy", "group_counts", "group_span", "group_zero_count")
"""Names of the arrays that ``groups_to_arrays`` makes."""


@dataclass(frozen=True, eq=False)
class ImageGroup:
    """The images whose values of one tensor are about equally large, with a histogram of their own.

    ``images``: int64 ``(n,)``, their places among all images. ``energy``: mean square of their sampled values.
    ``counts``, ``lo``, ``hi``, ``zero_count``: as in ``TensorStatistics``, of these images alone, so that the bins of
    ordinary images stay fine where one image has values a hundred times as large.
    """

    images: NDArray[np.int64]
    energy: float
    counts: NDArray[np.int64]
    lo: float
    hi: float
    zero_count: int = 0


def groups_to_arrays(groups: Sequence[ImageGroup], n_images: int) -> dict[str, NDArray[Any]]:
    """All groups as named arrays, for npz. ``group_of`` int64 ``(n_images,)`` is −1 where there are no groups."""
    group_of = np.full(n_images, -1, np.int64)
    for number, group in enumerate(groups):
        group_of[group.images] = number
    values: tuple[NDArray[Any], ...] = (
        group_of,
        np.array([group.energy for group in groups], np.float64),
        np.concatenate([np.zeros(0, np.int64), *(group.counts for group in groups)]),
        np.array([(group.lo, group.hi) for group in groups], np.float64),
        np.array([group.zero_count for group in groups], np.int64),
    )
    return dict(zip(GROUP_ARRAYS, values, strict=True))


def groups_from_arrays(arrays: Mapping[str, Any]) -> tuple[ImageGroup, ...]:
    """What ``groups_to_arrays`` made, from arrays or from their lists."""
    group_of, energy, counts, spans, zeros = (np.asarray(arrays[name]) for name in GROUP_ARRAYS)
    if energy.size == 0:
        return ()
    parts = np.split(counts.astype(np.int64), energy.size)
    return tuple(
        ImageGroup(
            np.flatnonzero(group_of == number), float(energy[number]), parts[number],
            float(spans[number, 0]), float(spans[number, 1]), int(zeros[number]),
        )
        for number in range(energy.size)
    )  # fmt: skip
