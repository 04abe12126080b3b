"""Photos with labels that layers may be ranked on: never silently those that the result is evaluated on."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from qtoolkit.artifacts.files import sha256_bytes
from qtoolkit.data.calibration_set import CalibrationSet
from qtoolkit.data.coco import CocoImage, CocoKeypoints, read_coco_keypoints
from qtoolkit.data.images import read_image_bytes
from qtoolkit.data.samples import Sample, Samples, Split
from qtoolkit.data.sources import DataSource
from qtoolkit.errors import DataSetError, UsageError

__all__ = ["LabelledPhotos", "find_labelled_photos"]


@dataclass(frozen=True, eq=False)
class LabelledPhotos:
    """Photos, their labels, and the part of the data set that they come from."""

    samples: Samples
    part: Literal["calib", "train"]


def find_labelled_photos(
    source: DataSource, calibration: CalibrationSet, evaluation: Samples, limit: int, seed: int = 0
) -> LabelledPhotos:
    """At most ``limit`` labelled photos of ``source`` to rank layers on, none of them in ``evaluation``.

    1. Photos of train that the network is not calibrated on either, drawn by ``seed``.
    2. Else photos of ``calibration``, spread evenly over it: those that metrics without labels use. Their ranges were
       found on the same photos, so 8 bit costs a little less there than elsewhere.

    Only where at least one labelled person is on them. Raises UsageError where neither part has labels.
    """
    evaluated = {sample.sha256 for sample in evaluation}
    if source.train is not None and source.train.annotations is not None:
        known = evaluated | {image.sha256 for image in calibration.images}
        found = _of_train(source.train, known, limit, seed)
        if _people(found):
            return LabelledPhotos(found, "train")
    split = source.calib or source.train
    if split is not None and split.annotations is not None:
        found = _of_calibration(split, calibration, evaluated, limit)
        if _people(found):
            return LabelledPhotos(found, "calib")
    raise UsageError(
        "the metric ap needs labelled photos that are not evaluated on",
        expected=f"labelled people on photos of the part train or calib of {source.name}",
        found="no such labels: photos of val are kept for the final AP",
        do="add annotations: FILE.json to train or calib in its dataset.yaml, or use --metric oks",
    )


def _people(samples: Samples) -> int:
    """How many labelled people AP counts on ``samples``."""
    labels = samples.annotations
    if labels is None:
        return 0
    counted = np.isin(labels.image_ids, samples.image_ids) & (labels.num_keypoints > 0) & ~labels.is_crowd
    return int(np.count_nonzero(counted))


def _of_train(split: Split, excluded: Collection[str], limit: int, seed: int) -> Samples:
    labels = read_coco_keypoints(split.annotations) if split.annotations else None
    if labels is None:
        return Samples((), (), None)
    drawn = sorted(labels.images, key=lambda image: sha256_bytes(f"{seed}:{image.file_name}".encode()))
    kept: list[Sample] = []
    for sample in _readable(split, drawn):
        if len(kept) == limit:
            break
        if sample.sha256 not in excluded:
            kept.append(sample)
    return Samples(tuple(sorted(kept)), (), labels)


def _of_calibration(split: Split, calibration: CalibrationSet, excluded: Collection[str], limit: int) -> Samples:
    labels: CocoKeypoints | None = read_coco_keypoints(split.annotations) if split.annotations else None
    if labels is None:
        return Samples((), (), None)
    by_name = {image.file_name: image for image in labels.images}
    labelled = [by_name[image.name] for image in calibration.images if image.name in by_name]
    if len(labelled) > limit:
        labelled = [labelled[i] for i in np.linspace(0, len(labelled) - 1, limit).round().astype(int)]
    kept = [sample for sample in _readable(split, labelled) if sample.sha256 not in excluded]
    return Samples(tuple(sorted(kept)), (), labels)


def _readable(split: Split, images: Collection[CocoImage]) -> Iterator[Sample]:
    for image in images:
        path = split.images_dir / image.file_name
        try:
            content = read_image_bytes(path)
        except DataSetError:
            continue
        yield Sample(image.image_id, path, image.size_wh, sha256_bytes(content))
