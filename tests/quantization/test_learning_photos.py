"""Which photos quantization-aware training learns from."""

from __future__ import annotations

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from qtoolkit.data.calibration_set import calibration_set_of
from qtoolkit.data.sources import open_data_source
from qtoolkit.errors import DataSetError
from qtoolkit.quantization.learning_photos import learning_photos


def write_photo(path, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    path.parent.mkdir(exist_ok=True)
    cv2.imwrite(str(path), cv2.resize(pixels, (80, 60)))


@pytest.fixture
def find(tmp_path, make_data_set):
    """``find(path, unlabeled=None)`` → names of the photos to learn from in the data set ``path``."""

    def run(path, unlabeled=None):
        source = open_data_source(path)
        photos = learning_photos(
            SimpleNamespace(unlabeled=unlabeled), source, source.evaluation_samples(), calibration_set_of(source)
        )
        return [image.name for image in photos.images]

    return run


@pytest.fixture
def people(tmp_path, make_data_set):
    return make_data_set(tmp_path / "people")


@pytest.fixture
def plain(tmp_path):
    """Six photos without labels; every second one of them is evaluated on where the folder is the data set."""
    for seed in range(31, 37):
        write_photo(tmp_path / "plain" / f"{seed}.png", seed)
    return tmp_path / "plain"


def test_those_calibrated_on_where_nothing_else_is_known(find, people):
    assert find(people) == ["11.png", "12.png", "13.png"]


def test_the_part_unlabeled(find, people):
    for seed in (21, 22):
        write_photo(people / "more" / f"{seed}.png", seed)
    with (people / "dataset.yaml").open("a") as stream:
        stream.write("unlabeled: {images: more}\n")
    assert find(people) == ["21.png", "22.png"]


def test_of_a_plain_folder_only_those_that_are_not_evaluated_on(find, plain):
    assert find(plain) == ["31.png", "33.png", "35.png"]


def test_a_part_unlabeled_that_is_all_evaluated_on(find, people):
    with (people / "dataset.yaml").open("a") as stream:
        stream.write("unlabeled: {images: val}\n")
    assert find(people) == ["11.png", "12.png", "13.png"]


def test_a_folder_that_is_named(find, people, plain):
    assert find(people, plain) == [f"{seed}.png" for seed in range(31, 37)]


def test_a_named_folder_with_photos_that_are_evaluated_on(find, people):
    with pytest.raises(DataSetError, match="4 of the 4 calibration images are evaluation images"):
        find(people, people / "val")


def test_a_folder_without_photos(find, people, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataSetError, match="an empty folder"):
        find(people, tmp_path / "empty")


def test_a_folder_of_no_usable_photo(find, people, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"")
    with pytest.raises(DataSetError, match="no image of"):
        find(people, tmp_path / "broken")


def test_a_data_set_to_evaluate_on_alone(find, people, tmp_path):
    (tmp_path / "other.yaml").write_text("kind: images\nval: {images: people/val}\n")
    with pytest.raises(DataSetError, match="give other photos with --unlabeled"):
        find(people, tmp_path / "other.yaml")
