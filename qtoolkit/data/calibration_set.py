"""Which images a network was calibrated on: a list of names and hashes, never the images themselves."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from qtoolkit.artifacts.files import sha256_bytes, sha256_json, write_text
from qtoolkit.data.images import read_image_bytes
from qtoolkit.data.samples import Samples, SkippedImage, Split, checked_limit, no_image_left
from qtoolkit.data.sources import DataSource
from qtoolkit.errors import DataSetError

__all__ = [
    "DEFAULT_TRAIN_SAMPLE",
    "CalibrationImage",
    "CalibrationSet",
    "calibration_set_of",
    "check_disjoint",
]

DEFAULT_TRAIN_SAMPLE = 256
"""Images taken of a training set where neither a part calib nor a number says which."""

_LISTED_FILES = 10


class CalibrationImage(NamedTuple):
    """Name relative to the folder of the set, with forward slashes; hex SHA-256 of the file's content."""

    name: str
    sha256: str


@dataclass(frozen=True)
class CalibrationSet:
    """The images to calibrate on, in order, in the folder ``root``; ``skipped`` could not be used and do not count."""

    root: Path
    images: tuple[CalibrationImage, ...]
    skipped: tuple[SkippedImage, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files, in order."""
        return tuple(self.root / image.name for image in self.images)

    @property
    def sha256(self) -> str:
        """Hash of the contents in their order: the same images elsewhere, or renamed, hash the same."""
        return sha256_json([image.sha256 for image in self.images])

    @classmethod
    def from_split(
        cls,
        split: Split,
        limit: int | None = None,
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> CalibrationSet:
        """All usable images of a split's folder, or ``limit`` of them drawn by ``seed``; sorted by name.

        A drawn image that cannot be used is skipped and another drawn for it. The draw depends on names and seed alone,
        and a larger limit keeps what a smaller one drew. ``progress`` is called with (done, total). Raises DataSetError
        where no image can be used, UsageError for a limit below 1.
        """
        checked_limit(limit)
        names = split.file_names()
        wanted = len(names) if limit is None else min(limit, len(names))
        # Ordering by a hash of the name: the same draw on every Python version, which random.sample does not promise.
        drawn = (
            names if wanted == len(names) else sorted(names, key=lambda name: sha256_bytes(f"{seed}:{name}".encode()))
        )
        images: list[CalibrationImage] = []
        skipped: list[SkippedImage] = []
        for name in drawn:
            if len(images) == wanted:
                break
            try:
                images.append(CalibrationImage(name, sha256_bytes(read_image_bytes(split.images_dir / name))))
            except DataSetError as error:
                skipped.append(SkippedImage(split.images_dir / name, error.found or error.what))
            if progress:
                progress(len(images), wanted)
        if not images:
            raise no_image_left(split.images_dir, skipped)
        return cls(split.images_dir, tuple(sorted(images)), tuple(sorted(skipped)))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the list as JSON: names and hashes, no folder, no image."""
        entries = tuple(_ListedImage(name=image.name, sha256=image.sha256) for image in self.images)
        write_text(path, _ListFile(version=1, sha256=self.sha256, images=entries).model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str], root: str | os.PathLike[str]) -> CalibrationSet:
        """Read a list that ``save`` wrote, for the images in the folder ``root``.

        Raises DataSetError where the file is no such list, or images are missing or not the ones that were listed.
        """
        listed = _read_list(Path(path))
        images = tuple(CalibrationImage(entry.name, entry.sha256) for entry in listed.images)
        found = cls(Path(root), images)
        if found.sha256 != listed.sha256:
            raise _faulty_list(Path(path), f"the images hash to {found.sha256}, the list says {listed.sha256}")
        faults = [fault for image in images if (fault := _fault(found.root, image))]
        if faults:
            raise DataSetError(
                f"{len(faults)} of the {len(images)} images of the calibration list {path} are not those in {root}",
                expected="the same files, unchanged",
                found=_listing(faults),
                do="point to the folder the list was made from, or calibrate anew",
            )
        return found


def calibration_set_of(
    source: DataSource,
    limit: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> CalibrationSet:
    """The calibration set of a data set: its part calib, all or ``limit`` of it drawn by ``seed``.

    Without that part: ``limit`` images (256 where it is None) of train. Errors as ``DataSource.calibration_split`` and
    ``CalibrationSet.from_split`` raise them.
    """
    split = source.calibration_split()
    if limit is None and source.calib is None:
        limit = DEFAULT_TRAIN_SAMPLE
    return CalibrationSet.from_split(split, limit, seed, progress)


def check_disjoint(calibration: CalibrationSet, evaluation: Samples) -> None:
    """Raise DataSetError where an image is calibrated on and evaluated on: by content, whatever its name."""
    evaluated = {sample.sha256: sample.path.name for sample in evaluation}
    both = [
        image.name
        if evaluated[image.sha256] == image.name
        else f"{image.name} (evaluated as {evaluated[image.sha256]})"
        for image in calibration.images
        if image.sha256 in evaluated
    ]
    if both:
        raise DataSetError(
            f"{len(both)} of the {len(calibration)} calibration images are evaluation images too",
            expected="no image in both: figures measured on images that were calibrated on are too good",
            found=_listing(both),
            do="take them out of the calibration images, or calibrate on another folder",
        )


class _ListedImage(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class _ListFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: Literal[1]
    sha256: str
    images: tuple[_ListedImage, ...]


def _read_list(path: Path) -> _ListFile:
    try:
        listed = _ListFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise _faulty_list(path, error.strerror or str(error)) from error
    except ValidationError as error:
        first = error.errors()[0]
        raise _faulty_list(path, f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}") from error
    # A list may come from elsewhere; it must not make anybody read files outside the folder of images.
    outside = [
        entry.name for entry in listed.images if entry.name.startswith("/") or ".." in PurePosixPath(entry.name).parts
    ]
    if outside or not listed.images:
        raise _faulty_list(path, f"a name that leads out of the folder: {outside[0]}" if outside else "no image")
    return listed


def _faulty_list(path: Path, found: str) -> DataSetError:
    return DataSetError(
        f"the calibration list {path} cannot be used",
        expected="a list that qtoolkit wrote: version, sha256, and images with name and sha256",
        found=found,
        do="calibrate anew",
    )


def _fault(root: Path, image: CalibrationImage) -> str | None:
    try:
        content = read_image_bytes(root / image.name)
    except DataSetError as error:
        return f"{image.name} ({error.found})"
    return None if sha256_bytes(content) == image.sha256 else f"{image.name} (other content)"


def _listing(entries: list[str]) -> str:
    more = f" … and {len(entries) - _LISTED_FILES} more" if len(entries) > _LISTED_FILES else ""
    return ", ".join(entries[:_LISTED_FILES]) + more
