"""Look at every photo and label of a data set, and report all that is wrong or odd with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from qtoolkit.artifacts.files import sha256_bytes
from qtoolkit.data.coco import CocoKeypoints, read_coco_keypoints
from qtoolkit.data.images import decode_image, read_image_bytes
from qtoolkit.data.samples import Split
from qtoolkit.data.sources import DataSource
from qtoolkit.errors import DataSetError

__all__ = ["DataReport", "FileFault", "Overlap", "SplitReport", "check_data_source"]

_TOLERANCE_PX = 1.0


class FileFault(BaseModel):
    """A file that cannot be used, and why."""

    model_config = ConfigDict(frozen=True)

    name: str
    reason: str


class Overlap(BaseModel):
    """One image, by content, that is calibrated on and evaluated on."""

    model_config = ConfigDict(frozen=True)

    calibration: str
    evaluation: str


class SplitReport(BaseModel):
    """What was found in one part of a data set. Names are those of files, relative to the part's folder.

    Faults: ``annotation_fault``, ``missing``, ``unreadable``, ``wrong_size``. The rest is worth a look, and no fault.
    """

    model_config = ConfigDict(frozen=True)

    split: str
    images: int
    """Listed in the labels, or in the folder where there are no labels."""
    readable: int
    """Of those, decoded from the first to the last pixel."""
    annotation_fault: str | None = None
    """Why the label file cannot be used; the folder's own files are then looked at."""
    missing: tuple[str, ...] = ()
    """In the labels, not on disk."""
    unreadable: tuple[FileFault, ...] = ()
    wrong_size: tuple[str, ...] = ()
    """Decoded to another size than the labels say (often: labelled before the EXIF orientation was applied)."""
    unlabelled: tuple[str, ...] = ()
    """On disk, not in the labels."""
    repeated: tuple[str, ...] = ()
    """The same content as another file of this part."""
    people: int = 0
    people_with_keypoints: int = 0
    crowds: int = 0
    images_without_people: int = 0
    outside: tuple[int, ...] = ()
    """Ids of annotations whose box or labelled keypoints lie more than 1 pixel outside their image."""
    miscounted: tuple[int, ...] = ()
    """Ids of annotations whose num_keypoints is not the number of keypoints with a visibility above 0."""

    @property
    def ok(self) -> bool:
        """Whether there is no fault."""
        return not (self.annotation_fault or self.missing or self.unreadable or self.wrong_size)


class DataReport(BaseModel):
    """What was found in a data set; ``overlap``: images that are calibrated on and evaluated on."""

    model_config = ConfigDict(frozen=True)

    name: str
    kind: str
    splits: tuple[SplitReport, ...]
    overlap: tuple[Overlap, ...]
    ok: bool
    """Whether no part has a fault and nothing overlaps."""


def check_data_source(source: DataSource, progress: Callable[[int, int], None] | None = None) -> DataReport:
    """Decode every photo and read every label file of a data set.

    ``progress`` is called with (done, total) over the photos of all parts. What is found raises no error; only
    a folder that cannot be listed any more does (DataSetError).
    """
    parts = {"val": source.evaluation, "calib": source.calib, "train": source.train, "unlabeled": source.unlabeled}
    plans = [_Plan(name, split) for name, split in parts.items() if split]
    total = sum(len(plan.names) for plan in plans)
    reports: list[SplitReport] = []
    hashes: dict[str, dict[str, str]] = {}
    done = 0
    for plan in plans:
        photos = _Photos()
        for name in plan.names:
            photos.look_at(plan.split.images_dir, name)
            done += 1
            if progress:
                progress(done, total)
        hashes[plan.name] = photos.hashes
        reports.append(_report(plan, photos))
    overlap = _overlap(hashes.get("calib", hashes.get("train", {})), hashes.get("val", {}))
    ok = not overlap and all(report.ok for report in reports)
    return DataReport(name=source.name, kind=source.kind, splits=tuple(reports), overlap=overlap, ok=ok)


class _Plan:
    """What is to be looked at in one part."""

    def __init__(self, name: str, split: Split) -> None:
        self.name = name
        self.split = split
        self.annotations: CocoKeypoints | None = None
        self.annotation_fault: str | None = None
        self.files = split.file_names()
        if split.annotations:
            try:
                self.annotations = read_coco_keypoints(split.annotations)
            except DataSetError as error:
                self.annotation_fault = str(error)
        labels = self.annotations
        self.names = self.files if labels is None else tuple(image.file_name for image in labels.images)


class _Photos:
    """What was seen of the photos of one part."""

    def __init__(self) -> None:
        self.hashes: dict[str, str] = {}
        self.sizes_wh: dict[str, tuple[int, int]] = {}
        self.missing: list[str] = []
        self.unreadable: list[FileFault] = []
        self.repeated: list[str] = []

    def look_at(self, folder: Path, name: str) -> None:
        path = folder / name
        try:
            content = read_image_bytes(path)
            height, width = decode_image(content, path).shape[:2]
        except DataSetError as error:
            if error.found == "missing":
                self.missing.append(name)
            else:
                self.unreadable.append(FileFault(name=name, reason=error.found or error.what))
            return
        digest = sha256_bytes(content)
        if digest in self.hashes:
            self.repeated.append(name)
        self.hashes.setdefault(digest, name)
        self.sizes_wh[name] = (width, height)


def _report(plan: _Plan, photos: _Photos) -> SplitReport:
    report = SplitReport(
        split=plan.name,
        images=len(plan.names),
        readable=len(photos.sizes_wh),
        annotation_fault=plan.annotation_fault,
        missing=tuple(photos.missing),
        unreadable=tuple(photos.unreadable),
        repeated=tuple(photos.repeated),
    )
    labels = plan.annotations
    if labels is None:
        return report
    sizes_wh = photos.sizes_wh
    labelled = np.count_nonzero(labels.keypoints[:, :, 2] > 0, axis=1)
    findings = {
        "wrong_size": tuple(
            image.file_name for image in labels.images if sizes_wh.get(image.file_name, image.size_wh) != image.size_wh
        ),
        "unlabelled": tuple(sorted(set(plan.files) - set(plan.names))),
        "people": len(labels) - int(labels.is_crowd.sum()),
        "people_with_keypoints": int(np.count_nonzero((labels.num_keypoints > 0) & ~labels.is_crowd)),
        "crowds": int(labels.is_crowd.sum()),
        "images_without_people": len(labels.images) - len(set(labels.image_ids.tolist())),
        "outside": tuple(labels.annotation_ids[_is_outside(labels)].tolist()),
        "miscounted": tuple(labels.annotation_ids[labelled != labels.num_keypoints].tolist()),
    }
    return report.model_copy(update=findings)


def _is_outside(labels: CocoKeypoints) -> NDArray[np.bool_]:
    """(M,) bool: whether the box or a labelled keypoint lies over a pixel outside the image (sized as labelled)."""
    size_of = {image.image_id: image.size_wh for image in labels.images}
    sizes_wh = np.array([size_of[image_id] for image_id in labels.image_ids.tolist()], np.float64).reshape(-1, 2)
    low, high = labels.boxes_xywh[:, :2], labels.boxes_xywh[:, :2] + labels.boxes_xywh[:, 2:]
    box_outside = ((low < -_TOLERANCE_PX) | (high > sizes_wh + _TOLERANCE_PX)).any(axis=1)
    points = labels.keypoints[:, :, :2]
    point_outside = ((points < -_TOLERANCE_PX) | (points > sizes_wh[:, None] + _TOLERANCE_PX)).any(axis=2)
    return np.asarray(box_outside | (point_outside & (labels.keypoints[:, :, 2] > 0)).any(axis=1), np.bool_)


def _overlap(calibration: dict[str, str], evaluation: dict[str, str]) -> tuple[Overlap, ...]:
    return tuple(
        Overlap(calibration=name, evaluation=evaluation[digest])
        for digest, name in calibration.items()
        if digest in evaluation
    )
