"""Open the data set a user points to, whatever its layout."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from qtoolkit.data.dataset_yaml import LabelledFolder, UnlabelledFolder, read_dataset_yaml
from qtoolkit.data.images import list_images
from qtoolkit.data.rendered_sets import cached_parts
from qtoolkit.data.samples import Sample, Samples, SkippedImage, Split, collect_samples
from qtoolkit.data.synthetic import is_synthetic, parse_spec
from qtoolkit.errors import DataSetError

__all__ = ["DataSource", "Sample", "Samples", "SkippedImage", "Split", "list_images", "open_data_source"]

_YAML_NAMES = ("dataset.yaml", "dataset.yml")
_COCO_YEARS = ("2017", "2014")
_LAYOUTS = (
    "a folder with a dataset.yaml, that file itself, a folder in COCO's layout "
    "(annotations/person_keypoints_val2017.json, val2017/, train2017/), a folder of photos, "
    "or rendered people (synthetic:N@seed)"
)


@dataclass(frozen=True)
class DataSource:
    """A data set: what is evaluated on, calibrated on, trained on with labels and without; None for a part it lacks.

    ``kind`` is coco-keypoints or images (no labels); ``name`` is what reports call it.
    """

    name: str
    kind: str
    evaluation: Split | None = None
    calib: Split | None = None
    train: Split | None = None
    unlabeled: Split | None = None

    @property
    def has_labels(self) -> bool:
        """Whether an AP can be measured on the evaluation part."""
        return self.evaluation is not None and self.evaluation.annotations is not None

    def evaluation_samples(
        self, limit: int | None = None, progress: Callable[[int, int], None] | None = None
    ) -> Samples:
        """The photos to evaluate on, as ``samples.collect_samples`` finds them, with its errors.

        Raises DataSetError where the data set has no evaluation part.
        """
        if self.evaluation is None:
            raise DataSetError(
                f"the data set {self.name} has nothing to evaluate on",
                expected="a part val",
                found=f"only {self._parts()}",
                do="add val: {images: FOLDER, annotations: FILE.json} to its dataset.yaml",
            )
        return collect_samples(self.evaluation, limit, progress)

    def calibration_split(self) -> Split:
        """What to calibrate on: the part calib or, without one, train. Raises DataSetError where there is neither."""
        split = self.calib or self.train
        if split is None:
            raise DataSetError(
                f"the data set {self.name} has nothing to calibrate on",
                expected="a part calib or train (photos that are evaluated on must not be calibrated on)",
                found=f"only {self._parts()}",
                do="add calib: {images: FOLDER} to its dataset.yaml; some 100 to 500 photos are enough",
            )
        return split

    def learning_split(self, option: str) -> Split:
        """Photos to learn from without labels: the part unlabeled or, without one, train, or calib.

        Raises DataSetError, naming ``option``, where there is none.
        """
        split = self.unlabeled or self.train or self.calib
        if split is None:
            raise DataSetError(
                f"the data set {self.name} has no photos to train on",
                expected="a folder of photos, or a data set with a part unlabeled, train or calib",
                found="an evaluation part only",
                do=f"give other photos with {option}: those that are evaluated on must not be trained on",
            )
        return Split(split.images_dir, None, split.names)

    def _parts(self) -> str:
        parts = {"val": self.evaluation, "calib": self.calib, "train": self.train, "unlabeled": self.unlabeled}
        return ", ".join(name for name, split in parts.items() if split)


def open_data_source(
    path: str | os.PathLike[str],
    parts: Collection[str] = ("val", "calib"),
    progress: Callable[[int, int], None] | None = None,
) -> DataSource:
    """Open a data set by its path; labels and photos are read later.

    A plain folder of photos is split in two, alternate files by name, so that it can be calibrated on one half and the
    networks compared on the other without labels; the whole folder is its unlabeled part. Raises DataSetError where
    nothing is there, or nothing that is known, or where a part it names is missing.

    ``synthetic:N@seed`` or ``synthetic:N@seed/SIZE`` are rendered people: of these, and of these alone, ``parts`` says
    which of val, calib and train are needed, and ``progress`` is called with (done, total) while they are rendered;
    errors as ``synthetic.parse_spec`` and ``rendered_sets.cached_parts`` raise them.
    """
    if is_synthetic(os.fspath(path)):
        spec = parse_spec(os.fspath(path))
        splits = cached_parts(spec, parts, progress)
        return DataSource(
            name=spec.name,
            kind="coco-keypoints",
            evaluation=splits.get("val"),
            calib=splits.get("calib"),
            train=splits.get("train"),
        )
    place = Path(path)
    if not place.exists():
        raise _unknown(place, "no such file or folder")
    if place.is_file():
        if place.suffix.lower() not in (".yaml", ".yml"):
            raise _unknown(place, f"a file that ends in {place.suffix or 'nothing'}")
        return _from_yaml(place)
    for name in _YAML_NAMES:
        if (place / name).is_file():
            return _from_yaml(place / name)
    return _from_coco_layout(place) or _from_photos(place)


def _from_yaml(path: Path) -> DataSource:
    spec = read_dataset_yaml(path)
    root = path.parent.resolve()

    def part(key: str, folder: UnlabelledFolder | None) -> Split | None:
        if folder is None:
            return None
        images_dir = root / folder.images
        if not images_dir.is_dir():
            raise _missing_part(path, f"{key}.images", images_dir, "folder")
        if not isinstance(folder, LabelledFolder) or folder.annotations is None:
            return Split(images_dir)
        annotations = root / folder.annotations
        if not annotations.is_file():
            raise _missing_part(path, f"{key}.annotations", annotations, "file")
        return Split(images_dir, annotations)

    return DataSource(
        name=spec.name or root.name,
        kind=spec.kind,
        evaluation=part("val", spec.val),
        calib=part("calib", spec.calib),
        train=part("train", spec.train),
        unlabeled=part("unlabeled", spec.unlabeled),
    )


def _from_coco_layout(root: Path) -> DataSource | None:
    """COCO as it is unpacked, images beside annotations/ or in images/; None where the labels of val are not there."""
    for year in _COCO_YEARS:
        labels = root / "annotations" / f"person_keypoints_val{year}.json"
        if labels.is_file():
            images_dir = _coco_images(root, f"val{year}")
            if images_dir is None:
                raise _missing_part(labels, "the images of val", root / f"val{year}", "folder")
            train_dir = _coco_images(root, f"train{year}")
            train_labels = labels.with_name(f"person_keypoints_train{year}.json")
            return DataSource(
                name=root.resolve().name,
                kind="coco-keypoints",
                evaluation=Split(images_dir, labels),
                train=Split(train_dir, train_labels if train_labels.is_file() else None) if train_dir else None,
            )
    return None


def _coco_images(root: Path, name: str) -> Path | None:
    return next((folder for folder in (root / name, root / "images" / name) if folder.is_dir()), None)


def _from_photos(root: Path) -> DataSource:
    names = list_images(root)
    if not names:
        entries = sorted(entry.name for entry in root.iterdir())
        listing = ", ".join(entries[:8]) + (" …" if len(entries) > 8 else "")
        raise _unknown(root, f"a folder with {listing}" if entries else "an empty folder")
    return DataSource(
        name=root.resolve().name,
        kind="images",
        evaluation=Split(root, names=names[1::2]) if len(names) > 1 else None,
        calib=Split(root, names=names[::2]),
        unlabeled=Split(root),
    )


def _missing_part(path: Path, key: str, place: Path, what: str) -> DataSetError:
    return DataSetError(
        f"a part of the data set {path} is missing",
        expected=f"{key}: the {what} {place}",
        found=f"a {what} is needed, and this is none" if place.exists() else f"no such {what}",
        do=f"correct the path, or put the {what} there",
    )


def _unknown(path: Path, found: str) -> DataSetError:
    return DataSetError(
        f"the data set {path} cannot be opened", expected=_LAYOUTS, found=found, do="correct the path after --data"
    )
