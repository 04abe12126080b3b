"""The labels a network is trained on: checked for what the evaluation forgives, and sorted by image.

``data.coco`` has already refused what is no COCO file: NaN, keypoints of the wrong count, no image. Evaluation ignores
a person without area or outside the image; a training would learn from it, so it is refused here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qtoolkit.data.coco import CocoKeypoints
from qtoolkit.data.coco_faults import CocoFaults
from qtoolkit.data.samples import Sample
from qtoolkit.errors import DataSetError

__all__ = ["TOLERANCE_PX", "ImageLabels", "check_training_labels", "labels_by_image"]

TOLERANCE_PX = 1.0
"""A box or a labelled keypoint may reach so far outside its image: rounding of the tools that drew them."""


@dataclass(frozen=True, eq=False)
class ImageLabels:
    """The N people and C crowds of one image, in its pixels (x right, y down, 0 at its edge).

    boxes_xyxy   (N, 4) float32    left, top, right, bottom
    keypoints    (N, K, 3) float32 x, y, visibility 0, 1 or 2
    labelled     (N,) bool         whether the person has a labelled keypoint: one without says nothing about its pose
    crowds_xyxy  (C, 4) float32    boxes of groups, in which a network may or may not see people
    """

    boxes_xyxy: NDArray[np.float32]
    keypoints: NDArray[np.float32]
    labelled: NDArray[np.bool_]
    crowds_xyxy: NDArray[np.float32]


def check_training_labels(labels: CocoKeypoints, path: Path) -> None:
    """Refuse labels that would teach something wrong.

    Raises DataSetError, with counts and the ids of the first 20, for people (not crowds) whose box or area is zero,
    boxes and labelled keypoints more than 1 pixel outside their image; and where there is no person at all.
    """
    people = np.flatnonzero(~labels.is_crowd)
    if not len(people):
        raise DataSetError(
            f"the annotation file {path} labels nobody",
            expected="people with boxes and keypoints to train on",
            found=f"{len(labels.images)} images, {len(labels)} annotations, all of them crowds"
            if len(labels)
            else f"{len(labels.images)} images without annotations",
            do="give the labels of the training part",
        )
    sizes = {image.image_id: image.size_wh for image in labels.images}
    size_wh = np.array([sizes[image_id] for image_id in labels.image_ids[people].tolist()], np.float64)
    low, size = labels.boxes_xywh[people, :2], labels.boxes_xywh[people, 2:]
    points = labels.keypoints[people]
    shown = points[..., 2] > 0
    outside_points = _outside(points[..., :2], size_wh[:, None]) & shown
    found = {
        "the box has no area": (size <= 0).any(axis=1),
        "the area is zero": labels.areas[people] <= 0,
        "the box reaches outside its image": _outside(low, size_wh) | _outside(low + size, size_wh),
        "a labelled keypoint lies outside its image": outside_points.any(axis=1),
    }
    faults = CocoFaults(str(path))
    ids = labels.annotation_ids[people]
    images = labels.image_ids[people]
    for kind, wrong in found.items():
        for index in np.flatnonzero(wrong):
            faults.add(kind, f"annotation {ids[index]} (image {images[index]})")
    faults.raise_if_any()


def labels_by_image(labels: CocoKeypoints, samples: Sequence[Sample]) -> tuple[ImageLabels, ...]:
    """The labels of each of ``samples``, in their order; boxes are clipped to the image, crowds kept apart."""
    rows: dict[int, list[int]] = {}
    for row, image_id in enumerate(labels.image_ids.tolist()):
        rows.setdefault(image_id, []).append(row)
    return tuple(_of_image(labels, np.array(rows.get(sample.image_id, []), np.intp), sample) for sample in samples)


def _of_image(labels: CocoKeypoints, rows: NDArray[np.intp], sample: Sample) -> ImageLabels:
    limit = np.array(sample.size_wh * 2, np.float64)
    boxes = labels.boxes_xywh[rows]
    boxes_xyxy = np.clip(np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1), 0, limit)
    crowd = labels.is_crowd[rows]
    keypoints = labels.keypoints[rows][~crowd]
    return ImageLabels(
        boxes_xyxy=boxes_xyxy[~crowd].astype(np.float32),
        keypoints=keypoints.astype(np.float32),
        labelled=np.asarray((keypoints[..., 2] > 0).any(axis=1), np.bool_),
        crowds_xyxy=boxes_xyxy[crowd].astype(np.float32),
    )


def _outside(points_xy: NDArray[np.float64], size_wh: NDArray[np.float64]) -> NDArray[np.bool_]:
    outside = (points_xy < -TOLERANCE_PX) | (points_xy > size_wh + TOLERANCE_PX)
    return np.asarray(outside.any(axis=-1), np.bool_)
