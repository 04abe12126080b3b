"""The photos of one split: which there are, which can be used, and what they hash to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from qtoolkit.artifacts.files import sha256_bytes, sha256_json
from qtoolkit.data.coco import CocoKeypoints, read_coco_keypoints
from qtoolkit.data.images import image_size_wh, list_images, read_image_bytes
from qtoolkit.errors import DataSetError, UsageError

__all__ = ["Sample", "Samples", "SkippedImage", "Split", "checked_limit", "collect_samples", "no_image_left"]


@dataclass(frozen=True)
class Split:
    """One part of a data set: a folder of images, the COCO file that labels them, if any.

    ``names`` limits the split to these files of the folder; None means all of them.
    """

    images_dir: Path
    annotations: Path | None = None
    names: tuple[str, ...] | None = None

    def file_names(self) -> tuple[str, ...]:
        """The image files on disk, sorted, whether labelled or not. Raises DataSetError where there is no folder."""
        return list_images(self.images_dir) if self.names is None else self.names


class Sample(NamedTuple):
    """One usable photo: its id in the labels, where it lies, its size in pixels, the hash of its content."""

    image_id: int
    path: Path
    size_wh: tuple[int, int]
    sha256: str


class SkippedImage(NamedTuple):
    """A photo that cannot be used, and why."""

    path: Path
    reason: str


@dataclass(frozen=True, eq=False)
class Samples:
    """Photos to evaluate on, sorted by image id, those that were skipped, and the labels (None: there are none).

    Sizes are those of the labels where there are labels, else those of the files.
    """

    samples: tuple[Sample, ...]
    skipped: tuple[SkippedImage, ...]
    annotations: CocoKeypoints | None

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    @property
    def image_ids(self) -> tuple[int, ...]:
        """Ids of the usable photos: the images that an AP over these samples counts."""
        return tuple(sample.image_id for sample in self.samples)

    @property
    def sha256(self) -> str:
        """Hash of what is measured on: content and ids of the photos, and the label file; no names, no folders."""
        labels = None if self.annotations is None else self.annotations.sha256
        return sha256_json([labels, [[sample.image_id, sample.sha256] for sample in self.samples]])


def collect_samples(
    split: Split, limit: int | None = None, progress: Callable[[int, int], None] | None = None
) -> Samples:
    """The photos of a split: the images of its label file by id, or without labels its files by name, with ids from 1.

    ``limit`` takes the first so many of them, before it is known which can be used: with bad photos among them fewer
    are left, and the others stay the same. Photos that are missing, empty, truncated or no images are listed as
    skipped. ``progress`` is called with (done, total). Raises DataSetError where the labels are faulty or no photo is
    left, UsageError for a limit below 1.
    """
    limit = checked_limit(limit)
    annotations = read_coco_keypoints(split.annotations) if split.annotations else None
    wanted: list[tuple[int, str, tuple[int, int] | None]]
    if annotations is not None:  # labels without a single person are labels too, though of length 0
        wanted = [(image.image_id, image.file_name, image.size_wh) for image in annotations.images[:limit]]
    else:
        wanted = [(index, name, None) for index, name in enumerate(split.file_names()[:limit], start=1)]
    samples: list[Sample] = []
    skipped: list[SkippedImage] = []
    for done, (image_id, name, size_wh) in enumerate(wanted, start=1):
        path = split.images_dir / name
        try:
            content = read_image_bytes(path)
            samples.append(Sample(image_id, path, size_wh or image_size_wh(content, path), sha256_bytes(content)))
        except DataSetError as error:
            skipped.append(SkippedImage(path, error.found or error.what))
        if progress:
            progress(done, len(wanted))
    if not samples:
        raise no_image_left(split.images_dir, skipped)
    return Samples(tuple(samples), tuple(skipped), annotations)


def checked_limit(limit: int | None) -> int | None:
    """``limit`` itself. Raises UsageError where it is below 1."""
    if limit is not None and limit < 1:
        raise UsageError(
            "no image would be used",
            expected="a number of images of at least 1",
            found=str(limit),
            do="give a higher number, or none to use all images",
        )
    return limit


def no_image_left(images_dir: Path, skipped: Sequence[SkippedImage]) -> DataSetError:
    """The error for a folder of which no image can be used, with the first reasons."""
    reasons = "; ".join(f"{image.path.name}: {image.reason}" for image in skipped[:3])
    return DataSetError(
        f"no image of {images_dir} can be used",
        expected="JPEG, PNG, BMP, TIFF or WebP files (under the names the labels give, where there are labels)",
        found=f"{len(skipped)} images, none of them usable ({reasons})" if skipped else "no image file",
        do="correct the path of the images",
    )
