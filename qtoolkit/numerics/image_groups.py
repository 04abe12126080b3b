"""Images sorted by how large their values of one tensor are, while they are seen."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtoolkit.numerics.histogram import StreamingHistogram, TensorStatistics
from qtoolkit.numerics.image_group import ImageGroup

__all__ = ["GroupedHistogram", "group_weights"]

# Of an image without a value other than 0, far below every float32.
_NO_ENERGY = -1 << 10


@dataclass
class _Group:
    images: list[int] = field(default_factory=list)
    energies: list[float] = field(default_factory=list)
    histogram: StreamingHistogram = field(default_factory=StreamingHistogram)


class GroupedHistogram:
    """Histograms of one tensor, one for each power of four of an image's mean square.

    Which images share a group depends on each image's own values alone, so neither order nor batches matter.
    """

    def __init__(self) -> None:
        self._groups: dict[int, _Group] = {}
        self._images = 0

    def update(self, values: NDArray[np.floating[Any]]) -> None:
        """Count the sampled values of the next image, float32 of any shape, at least one and all finite."""
        flat = np.asarray(values, np.float64).ravel()
        energy = float(np.dot(flat, flat)) / flat.size
        number = math.floor(0.5 * math.log2(energy)) if energy > 0.0 else _NO_ENERGY
        group = self._groups.setdefault(number, _Group())
        group.histogram.update(values)
        group.images.append(self._images)
        group.energies.append(energy)
        self._images += 1

    def statistics(
        self, image_min: NDArray[np.floating[Any]], image_max: NDArray[np.floating[Any]], total_count: int | None = None
    ) -> TensorStatistics:
        """Everything that was counted, with the exact extremes ``(n_images,)`` of each image, in the order seen."""
        whole, groups = StreamingHistogram(), []
        for _, group in sorted(self._groups.items()):
            h = group.histogram
            whole.merge(h)
            images, energy = np.array(group.images, np.int64), math.fsum(group.energies) / len(group.energies)
            groups.append(ImageGroup(images, energy, h.counts, h.lo, h.hi, h.zero_count))
        return TensorStatistics.of(whole, image_min, image_max, total_count, tuple(groups))


def group_weights(groups: tuple[ImageGroup, ...], tolerance: float = 1.0) -> NDArray[np.float64]:
    """How much an error on the images of each group counts, ``(n_groups,)``: min(1, tolerance · median / energy)².

    The median is over the energies of images; up to ``tolerance`` times that, images differ as images do. An absolute
    error (1 everywhere) would let a single image with values far larger than usual choose the range of all. The first
    power makes errors relative, but then such an image still counts as much as all ordinary values of another, at a
    step that is useless for those; squared, it is left to be clipped. Images with small values keep 1: what is faint on
    them may be strong on others.
    """
    energies = np.array([group.energy for group in groups], np.float64)
    images = np.array([group.images.size for group in groups], np.int64)
    median = float(np.median(np.repeat(energies, images)))
    return (
        np.minimum(1.0, tolerance * median / np.maximum(energies, 1e-150)) ** 2
        if median > 0.0
        else np.ones_like(energies)
    )
