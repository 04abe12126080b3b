"""The dataset.yaml that names the parts of a data set a user brings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from qtoolkit.errors import DataSetError
from qtoolkit.recipe import parse_yaml

__all__ = ["DataSetFile", "LabelledFolder", "UnlabelledFolder", "read_dataset_yaml"]

_RelativePath = Annotated[str, StringConstraints(min_length=1)]
_UNSUPPORTED_KINDS = ("mpii", "lsp", "flic")
_EXAMPLE = "kind: coco-keypoints, and val: {images: FOLDER, annotations: FILE.json}"


class UnlabelledFolder(BaseModel):
    """``images``: a folder, relative to the YAML file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    images: _RelativePath


class LabelledFolder(UnlabelledFolder):
    """``annotations``: the label file of the folder, relative to the YAML file."""

    annotations: _RelativePath | None = None


class DataSetFile(BaseModel):
    """A dataset.yaml, version 1. ``name`` is what reports call the data set; without it, the name of its folder."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: Literal[1] = 1
    name: _RelativePath | None = None
    kind: Literal["coco-keypoints", "images", "mpii", "lsp", "flic"]
    val: LabelledFolder | None = Field(default=None, description="what is evaluated on")
    calib: LabelledFolder | None = Field(default=None, description="what is calibrated on")
    train: LabelledFolder | None = Field(default=None, description="what is trained on")
    unlabeled: UnlabelledFolder | None = Field(default=None, description="photos for training without labels")


def read_dataset_yaml(path: Path) -> DataSetFile:
    """Read and check a dataset.yaml; whether its folders exist is not looked at.

    Raises DataSetError for a file that cannot be read or is no YAML, for unknown, repeated, missing or contradictory
    keys, and for a kind that is known but not read yet.
    """
    try:
        document = parse_yaml(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise _faulty(path, error.strerror or str(error)) from error
    # Besides broken syntax: bytes that are no text, brackets nested without end.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _faulty(path, " ".join(str(error).split())) from error
    if not isinstance(document, dict):
        raise _faulty(path, "an empty file" if document is None else f"no keys but {str(document)[:40]!r}")
    try:
        spec = DataSetFile.model_validate(document)
    except ValidationError as error:
        raise _faulty(path, "; ".join(_fault(dict(entry)) for entry in error.errors())) from error
    _refuse_unsupported(path, spec)
    _refuse_contradictions(path, spec)
    return spec


def _fault(entry: dict[str, Any]) -> str:
    where = ".".join(map(str, entry["loc"]))
    if entry["type"] == "extra_forbidden":
        return f"unknown key {where!r}"
    if entry["type"] == "missing":
        return f"key {where!r} is missing"
    return f"{where}: {entry['msg']}, found {str(entry['input'])[:40]!r}"


def _refuse_unsupported(path: Path, spec: DataSetFile) -> None:
    if spec.kind in _UNSUPPORTED_KINDS:
        raise DataSetError(
            f"data sets of kind {spec.kind!r} are not supported yet",
            expected="kind coco-keypoints or images",
            found=f"kind {spec.kind!r} in {path}",
            do="convert the labels to COCO keypoints, or give the photos as kind images",
        )


def _refuse_contradictions(path: Path, spec: DataSetFile) -> None:
    parts = {"val": spec.val, "calib": spec.calib, "train": spec.train}
    if not any((*parts.values(), spec.unlabeled)):
        raise _faulty(path, "none of the parts val, calib, train, unlabeled")
    labelled = [f"{key}.annotations: {part.annotations}" for key, part in parts.items() if part and part.annotations]
    if spec.kind == "images" and labelled:
        raise _faulty(path, f"kind: images, which has no labels, together with {', '.join(labelled)}")
    if spec.kind == "coco-keypoints" and spec.val and not spec.val.annotations:
        raise _faulty(path, "kind: coco-keypoints, but val has no annotations (photos without labels are kind: images)")


def _faulty(path: Path, found: str) -> DataSetError:
    return DataSetError(
        f"the data set file {path} cannot be used",
        expected=f"a dataset.yaml ({_EXAMPLE}; also calib, train, unlabeled)",
        found=found,
        do="correct the file",
    )
