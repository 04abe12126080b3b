"""Read COCO person-keypoint labels fast, and say everything that is wrong with a file at once.

Format: cocodataset.org/#format-data, "Keypoint Detection". People without labelled keypoints and crowds are kept: the
COCO evaluation ignores them by itself. Segmentation polygons are dropped: no keypoint figure uses them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qtoolkit.artifacts.files import sha256_bytes
from qtoolkit.data.coco_faults import (
    CocoFaults,
    find_annotation_faults,
    find_category_faults,
    find_image_faults,
    find_layout_faults,
)
from qtoolkit.data.skeletons import COCO17, Skeleton
from qtoolkit.errors import DataSetError, UsageError

__all__ = ["CocoImage", "CocoKeypoints", "read_coco_keypoints"]

_PERSON_CATEGORY_ID = 1


class CocoImage(NamedTuple):
    """One entry of the image list: ``file_name`` is relative to the image folder, ``size_wh`` in pixels."""

    image_id: int
    file_name: str
    size_wh: tuple[int, int]


@dataclass(frozen=True, eq=False)
class CocoKeypoints:
    """The labels of one data set: M annotated people in ``images`` (sorted by id), K keypoints each.

    annotation_ids  (M,) int64        in the order of the file, as are all that follow
    image_ids       (M,) int64        image of each person
    boxes_xywh      (M, 4) float64    left, top, width, height in pixels of the image
    areas           (M,) float64      segmented area in pixels²: the area OKS uses
    is_crowd        (M,) bool         a group of people under one box
    num_keypoints   (M,) int64        labelled keypoints, as the file counts them
    keypoints       (M, K, 3) float64 x, y in pixels of the image; visibility 0 absent, 1 hidden, 2 visible

    Values stay float64 so that pycocotools computes with exactly the numbers of the file.
    """

    name: str
    sha256: str
    skeleton: Skeleton
    images: tuple[CocoImage, ...]
    annotation_ids: NDArray[np.int64]
    image_ids: NDArray[np.int64]
    boxes_xywh: NDArray[np.float64]
    areas: NDArray[np.float64]
    is_crowd: NDArray[np.bool_]
    num_keypoints: NDArray[np.int64]
    keypoints: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.annotation_ids)

    def ground_truth(self, image_ids: Iterable[int] | None = None) -> dict[str, Any]:
        """A COCO dictionary (info, images, annotations, categories) of some images, all by default, for pycocotools.

        The person category has id 1. Annotation ids are those of the file, or 1, 2, 3 … where the file uses an id below
        1: pycocotools takes a match with annotation 0 for no match. Raises UsageError for an image id the labels lack.
        """
        wanted = {image.image_id for image in self.images} if image_ids is None else set(image_ids)
        images = [image for image in self.images if image.image_id in wanted]
        if len(images) != len(wanted):
            lacking = sorted(wanted - {image.image_id for image in images})
            raise UsageError(
                f"{len(lacking)} of the images to evaluate are not in the labels {self.name}",
                expected="image ids of the labels",
                found=", ".join(map(str, lacking[:5])) + (" …" if len(lacking) > 5 else ""),
                do="evaluate the images these labels were made for",
            )
        chosen = np.flatnonzero(np.isin(self.image_ids, np.fromiter(wanted, np.int64, len(wanted))))
        return {
            "info": {"description": self.name},
            "images": [
                {"id": image_id, "file_name": file_name, "width": size_wh[0], "height": size_wh[1]}
                for image_id, file_name, size_wh in images
            ],
            "annotations": self._annotation_records(chosen),
            "categories": [_category(self.skeleton)],
        }

    def to_coco_dict(self) -> dict[str, Any]:
        """``ground_truth`` of all images."""
        return self.ground_truth()

    def _annotation_records(self, chosen: NDArray[np.intp]) -> list[dict[str, Any]]:
        ids = self.annotation_ids if len(self) == 0 or self.annotation_ids.min() > 0 else np.arange(1, len(self) + 1)
        flat_keypoints = self.keypoints.reshape(len(self), 3 * self.skeleton.keypoint_count)
        columns = zip(
            ids[chosen].tolist(),
            self.image_ids[chosen].tolist(),
            self.boxes_xywh[chosen].tolist(),
            self.areas[chosen].tolist(),
            self.is_crowd[chosen].tolist(),
            self.num_keypoints[chosen].tolist(),
            flat_keypoints[chosen].tolist(),
            strict=True,
        )
        return [
            {
                "id": annotation_id,
                "image_id": image_id,
                "category_id": _PERSON_CATEGORY_ID,
                "bbox": bbox,
                "area": area,
                "iscrowd": int(crowd),
                "num_keypoints": labelled,
                "keypoints": keypoints,
            }
            for annotation_id, image_id, bbox, area, crowd, labelled, keypoints in columns
        ]


def read_coco_keypoints(path: str | os.PathLike[str], skeleton: Skeleton = COCO17) -> CocoKeypoints:
    """Read a person_keypoints JSON file whose keypoints are those of ``skeleton``, in its order.

    Annotations of other categories without keypoints are left out. Raises DataSetError where the file cannot be read,
    is not such a JSON file, or is faulty: then with the counts of all faults, and the ids of the first 20.
    """
    content, document = _read_json(path)
    faults = CocoFaults(str(path))
    find_layout_faults(document, faults)
    faults.raise_if_any()
    person_id, other_ids = find_category_faults(document["categories"], skeleton, faults)
    find_image_faults(document["images"], faults)
    # With a wrong list of images or categories every annotation would be called faulty as well.
    faults.raise_if_any()
    images = sorted(
        CocoImage(image["id"], image["file_name"], (image["width"], image["height"])) for image in document["images"]
    )
    annotations = document["annotations"]
    if other_ids:
        annotations = [annotation for annotation in annotations if not _is_of(annotation, other_ids)]
    find_annotation_faults(annotations, {image.image_id for image in images}, person_id, skeleton, faults)
    faults.raise_if_any()
    return _columns(Path(path).name, sha256_bytes(content), skeleton, tuple(images), annotations)


def _is_of(annotation: Any, category_ids: frozenset[int]) -> bool:
    # The type is asked first: before its faults are known, a category id may be anything, a list included.
    category_id = annotation.get("category_id") if isinstance(annotation, dict) else None
    return isinstance(category_id, int) and category_id in category_ids


def _columns(
    name: str, sha256: str, skeleton: Skeleton, images: tuple[CocoImage, ...], annotations: list[dict[str, Any]]
) -> CocoKeypoints:
    count = len(annotations)

    def integers(key: str) -> NDArray[np.int64]:
        return np.fromiter((annotation[key] for annotation in annotations), np.int64, count)

    def floats(key: str, *shape: int) -> NDArray[np.float64]:
        return np.array([annotation[key] for annotation in annotations], np.float64).reshape(count, *shape)

    return CocoKeypoints(
        name=name,
        sha256=sha256,
        skeleton=skeleton,
        images=images,
        annotation_ids=integers("id"),
        image_ids=integers("image_id"),
        boxes_xywh=floats("bbox", 4),
        areas=floats("area"),
        is_crowd=integers("iscrowd").astype(np.bool_),
        num_keypoints=integers("num_keypoints"),
        keypoints=floats("keypoints", skeleton.keypoint_count, 3),
    )


def _category(skeleton: Skeleton) -> dict[str, Any]:
    return {
        "supercategory": "person",
        "id": _PERSON_CATEGORY_ID,
        "name": "person",
        "keypoints": list(skeleton.keypoint_names),
        "skeleton": [[first + 1, second + 1] for first, second in skeleton.links],
    }


def _read_json(path: str | os.PathLike[str]) -> tuple[bytes, Any]:
    expected = "a COCO person_keypoints JSON file"
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataSetError(
            f"the annotation file {path} cannot be read",
            expected=expected,
            found="no such file" if isinstance(error, FileNotFoundError) else str(error.strerror),
            do="correct the path of the annotations",
        ) from error
    try:
        return content, json.loads(content)
    # Besides broken syntax: bytes that are no text, numbers of thousands of digits, brackets nested without end.
    except (ValueError, RecursionError) as error:
        raise DataSetError(
            f"the annotation file {path} is not JSON",
            expected=expected,
            found=f"{error}" if content else "an empty file (0 bytes)",
            do="export or download the annotations again",
        ) from error
