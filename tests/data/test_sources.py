from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qtoolkit.data.sources import DataSource, Split, open_data_source
from qtoolkit.errors import DataSetError, UsageError

Photo = Callable[..., Path]


@pytest.fixture
def coco_layout(tmp_path: Path, photo: Photo, document: Any) -> Path:
    """COCO as it is unpacked."""
    root = tmp_path / "coco"
    for shade, name in enumerate(("val2017/a.png", "val2017/b.png", "train2017/c.png")):
        photo(root / name, shade=shade)
    (root / "annotations").mkdir()
    (root / "annotations" / "person_keypoints_val2017.json").write_text(json.dumps(document()))
    return root


@pytest.mark.parametrize("inner", ["", "dataset.yaml"], ids=["folder", "file"])
def test_a_folder_with_dataset_yaml_or_that_file(coco_folder: Path, inner: str) -> None:
    source = open_data_source(coco_folder / inner)
    assert (source.name, source.kind, source.has_labels) == ("people", "coco-keypoints", True)
    assert source.evaluation_samples().image_ids == (10, 20)
    assert source.evaluation_samples(limit=1).image_ids == (10,)
    assert source.calibration_split().file_names() == ("c.png", "d.png")
    assert source.unlabeled is not None
    assert source.unlabeled.file_names() == ("e.png",)
    assert source.train is None


def test_paths_are_relative_to_the_yaml_file_not_to_the_working_folder(
    coco_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(coco_folder)
    source = open_data_source(".")
    monkeypatch.chdir("/")
    assert source.name == "people"
    assert len(source.evaluation_samples()) == 2


def test_coco_as_it_is_unpacked(coco_layout: Path) -> None:
    source = open_data_source(coco_layout)
    assert (source.name, source.kind) == ("coco", "coco-keypoints")
    assert source.evaluation_samples().image_ids == (10, 20)
    assert source.calib is None
    assert source.train is not None
    assert source.train.annotations is None
    assert source.calibration_split().file_names() == ("c.png",)


def test_coco_with_its_images_one_folder_deeper(coco_layout: Path) -> None:
    (coco_layout / "images").mkdir()
    for name in ("val2017", "train2017"):
        (coco_layout / name).rename(coco_layout / "images" / name)
    (coco_layout / "annotations" / "person_keypoints_train2017.json").write_text("{}")
    source = open_data_source(coco_layout)
    assert len(source.evaluation_samples()) == 2
    assert source.train is not None
    assert source.train.annotations is not None


def test_coco_without_its_images(coco_layout: Path) -> None:
    (coco_layout / "val2017").rename(coco_layout / "elsewhere")
    with pytest.raises(DataSetError, match=r"the images of val: the folder .*val2017\n  found: no such folder"):
        open_data_source(coco_layout)


def test_coco_without_train_cannot_be_calibrated_on(coco_layout: Path) -> None:
    (coco_layout / "train2017").rename(coco_layout / "elsewhere")
    with pytest.raises(DataSetError, match=r"coco has nothing to calibrate on[\s\S]*only val\n  do: add calib"):
        open_data_source(coco_layout).calibration_split()


def test_dataset_yaml_goes_before_the_layout(coco_layout: Path) -> None:
    (coco_layout / "dataset.yaml").write_text("name: mine\nkind: images\nval: {images: train2017}")
    assert open_data_source(coco_layout).name == "mine"


def test_a_folder_of_photos_is_split_in_two_halves(tmp_path: Path, photo: Photo) -> None:
    for shade, name in enumerate("abcde"):
        photo(tmp_path / "photos" / f"{name}.png", shade=shade)
    source = open_data_source(tmp_path / "photos")
    assert (source.name, source.kind, source.has_labels) == ("photos", "images", False)
    assert source.calibration_split().file_names() == ("a.png", "c.png", "e.png")
    assert [sample.path.name for sample in source.evaluation_samples()] == ["b.png", "d.png"]
    assert source.unlabeled is not None
    assert len(source.unlabeled.file_names()) == 5


def test_a_single_photo_is_calibrated_on_but_not_evaluated(tmp_path: Path, photo: Photo) -> None:
    photo(tmp_path / "a.png")
    source = open_data_source(tmp_path)
    assert source.calibration_split().file_names() == ("a.png",)
    with pytest.raises(DataSetError, match=r"nothing to evaluate on[\s\S]*only calib, unlabeled"):
        source.evaluation_samples()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("kind: images\nval: {images: gone}", "val.images: the folder .*gone\n  found: no such folder"),
        ("kind: images\nval: {images: val.json}", "val.images: the folder .*val.json\n  found: a folder is needed"),
        (
            "kind: coco-keypoints\nval: {images: images, annotations: gone.json}",
            "val.annotations: the file .*gone.json\n  found: no such file",
        ),
        (
            "kind: coco-keypoints\ncalib: {images: calib, annotations: images}",
            "calib.annotations: the file .*images\n  found: a file is needed",
        ),
    ],
    ids=["no folder", "a file as folder", "no labels", "a folder as labels"],
)
def test_parts_that_are_missing_are_named(coco_folder: Path, text: str, fault: str) -> None:
    (coco_folder / "dataset.yaml").write_text(text)
    with pytest.raises(DataSetError, match=fault):
        open_data_source(coco_folder)


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(DataSetError, match="no such file or folder"):
        open_data_source(tmp_path / "none")
    with pytest.raises(DataSetError, match="found: an empty folder"):
        open_data_source(tmp_path)
    (tmp_path / "labels.json").write_text("{}")
    with pytest.raises(DataSetError, match=r"found: a file that ends in \.json"):
        open_data_source(tmp_path / "labels.json")
    with pytest.raises(DataSetError, match=r"found: a folder with labels\.json"):
        open_data_source(tmp_path)


def test_rendered_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QTOOLKIT_CACHE", str(tmp_path))
    source = open_data_source("synthetic:2@1/64")
    assert (source.name, source.kind, source.has_labels) == ("synthetic:2@1/64", "coco-keypoints", True)
    assert source.evaluation_samples().image_ids == (1, 2)
    assert source.train is None
    assert open_data_source(Path("synthetic:2@1/64")) == source


def test_parts_and_progress_are_of_no_matter_to_a_folder(coco_folder: Path) -> None:
    assert open_data_source(coco_folder, parts=("train",), progress=print) == open_data_source(coco_folder)


@pytest.mark.parametrize("text", ["synthetic:", "synthetic:many", "synthetic:0@1", "synthetic:5@"])
def test_rendered_people_that_are_not_understood(text: str) -> None:
    with pytest.raises(UsageError, match=r"expected: synthetic:N@seed"):
        open_data_source(text)


@pytest.mark.real
def test_the_real_data_set(real_data: Path) -> None:
    source = open_data_source(real_data / "coco")
    samples = source.evaluation_samples(limit=300)
    assert len(samples) == 300
    assert samples.skipped == ()
    assert list(samples.image_ids) == sorted(samples.image_ids)
    assert len(source.calibration_split().file_names()) == 158
    assert source.unlabeled is not None
    assert len(source.unlabeled.file_names()) == 500


@pytest.mark.parametrize(
    ("parts", "found"),
    [
        ({"unlabeled": "u", "train": "t", "calib": "c"}, "u"),
        ({"train": "t", "calib": "c"}, "t"),
        ({"calib": "c", "evaluation": "e"}, "c"),
    ],
)
def test_photos_to_learn_from_without_labels(parts: dict[str, str], found: str) -> None:
    splits = {name: Split(Path(folder), Path("labels.json")) for name, folder in parts.items()}
    assert DataSource("people", "coco-keypoints", **splits).learning_split("--images") == Split(Path(found))


def test_there_may_be_none() -> None:
    source = DataSource("people", "coco-keypoints", evaluation=Split(Path("e")))
    with pytest.raises(DataSetError, match="give other photos with --unlabeled"):
        source.learning_split("--unlabeled")
