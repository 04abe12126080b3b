"""The training set: which image comes when and what it looks like then, by seed, epoch and position alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qtoolkit.data.samples import Sample, SkippedImage, collect_samples
from qtoolkit.data.sources import DataSource
from qtoolkit.errors import DataSetError
from qtoolkit.training.augment import (
    Tile,
    TrainingImage,
    change_colours,
    mosaic_placements,
    one_placement,
    paint,
)
from qtoolkit.training.image_cache import ImageCache
from qtoolkit.training.labels import ImageLabels, check_training_labels, labels_by_image
from qtoolkit.training.recipe import Augmentation

__all__ = ["Batch", "LabelledImages", "TrainingSet", "read_labelled_images"]

_ORDER, _IMAGE = 0, 1


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """The usable photos of a training part with their labels, those left out, and the hash of both."""

    samples: tuple[Sample, ...]
    labels: tuple[ImageLabels, ...]
    skipped: tuple[SkippedImage, ...]
    sha256: str

    def __len__(self) -> int:
        return len(self.samples)


@dataclass(frozen=True, eq=False)
class Batch:
    """B training images of S × S pixels and the people in them, in their pixels.

    images       (B, S, S, 3) uint8 RGB
    person_image (T,) int64          which image of the batch
    boxes        (T, 4) float32      cx, cy, w, h
    keypoints    (T, K, 3) float32   x, y, 1 where labelled and inside the image, else 0
    labelled     (T,) bool           whether the person's keypoints are labelled at all
    crowd_image  (C,) int64, crowds_xyxy (C, 4) float32: boxes of groups
    """

    images: NDArray[np.uint8]
    person_image: NDArray[np.int64]
    boxes: NDArray[np.float32]
    keypoints: NDArray[np.float32]
    labelled: NDArray[np.bool_]
    crowd_image: NDArray[np.int64]
    crowds_xyxy: NDArray[np.float32]


def read_labelled_images(source: DataSource, limit: int | None = None, option: str = "--data") -> LabelledImages:
    """The labelled training part of a data set, which ``option`` named, all of it or the first ``limit`` images.

    Raises DataSetError where there is no such part, its labels are faulty or teach something wrong
    (``check_training_labels``), or no photo can be used.
    """
    split = source.train
    if split is None or split.annotations is None:
        raise DataSetError(
            f"the data set {source.name} has nothing to train on",
            expected="a part train with annotations (COCO person_keypoints JSON)",
            found="no part train" if split is None else "a part train without annotations",
            do="add train: {images: FOLDER, annotations: FILE.json} to its dataset.yaml, "
            f"or give {option} synthetic:N",
        )
    samples = collect_samples(split, limit)
    if samples.annotations is None:
        raise DataSetError(f"the labels {split.annotations} were not read", expected="COCO labels", found="none")
    check_training_labels(samples.annotations, split.annotations)
    labels = labels_by_image(samples.annotations, samples.samples)
    return LabelledImages(samples.samples, labels, samples.skipped, samples.sha256)


class TrainingSet:
    """Training images by epoch and position. Threads may ask at once: nothing is remembered but decoded photos."""

    def __init__(
        self, cache: ImageCache, labels: Sequence[ImageLabels], options: Augmentation, long_side: int, seed: int
    ) -> None:
        self._cache = cache
        self._labels = tuple(labels)
        self._options = options
        self._long_side = long_side
        self._seed = seed

    def __len__(self) -> int:
        return len(self._labels)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Every image once, in the order of ``epoch``."""
        return self._random(epoch, _ORDER).permutation(len(self))

    def image(self, index: int, epoch: int, position: int, size: int, mosaic: bool) -> TrainingImage:
        """Image ``index`` as it is seen at ``position`` of ``epoch``: (size, size, 3) uint8 RGB and its people.

        ``mosaic``: whether it may be joined by three others. Raises DataSetError where a photo cannot be decoded.
        """
        random = self._random(epoch, _IMAGE, position)
        if mosaic and random.random() < self._options.mosaic:
            indices = [index, *random.integers(0, len(self), 3).tolist()]
            random.shuffle(indices)
            sizes = [self._cache.size_wh(each) for each in indices]
            placements = mosaic_placements(sizes, size, self._long_side, self._options, random)
        else:
            indices = [index]
            placements = [one_placement(self._cache.size_wh(index), size, self._long_side, self._options, random)]
        tiles = [Tile(self._cache[each], self._labels[each], self._cache.ratio_xy(each)) for each in indices]
        painted = paint(tiles, placements, size)
        return TrainingImage(change_colours(painted.image, self._options, random), painted.labels)

    def batch(self, indices: NDArray[np.int64], epoch: int, first: int, size: int, mosaic: bool) -> Batch:
        """The images ``indices`` as they are seen from position ``first`` of ``epoch`` on."""
        images = np.empty((len(indices), size, size, 3), np.uint8)
        seen: list[ImageLabels] = []
        for slot, index in enumerate(indices.tolist()):
            one = self.image(index, epoch, first + slot, size, mosaic)
            images[slot] = one.image
            seen.append(one.labels)
        boxes_xyxy = np.concatenate([labels.boxes_xyxy for labels in seen])
        sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
        keypoints = np.concatenate([labels.keypoints for labels in seen])
        keypoints[..., 2] = keypoints[..., 2] > 0
        slots = np.arange(len(seen))
        return Batch(
            images=images,
            person_image=np.repeat(slots, [len(labels.boxes_xyxy) for labels in seen]),
            boxes=np.concatenate([boxes_xyxy[:, :2] + sides / 2, sides], axis=1),
            keypoints=keypoints,
            labelled=np.concatenate([labels.labelled for labels in seen]),
            crowd_image=np.repeat(slots, [len(labels.crowds_xyxy) for labels in seen]),
            crowds_xyxy=np.concatenate([labels.crowds_xyxy for labels in seen]),
        )

    def _random(self, *keys: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self._seed, *keys])))
