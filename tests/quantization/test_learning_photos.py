"""Which photos quantization-aware training learns from."""

from __future__ import annotations

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from qtoolkit.data.calibration_set import calibration_set_of
from qtoolkit.data.skeletons import COCO17
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
            SimpleNamespace(unlabeled=unlabeled, labelled=None),
            source,
            source.evaluation_samples(),
            calibration_set_of(source),
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


class TestLabelled:
    @pytest.fixture
    def find(self, people):
        def run(labelled, evaluated=people):
            source = open_data_source(evaluated)
            recipe = SimpleNamespace(unlabeled=None, labelled=labelled)
            return learning_photos(recipe, source, source.evaluation_samples(), calibration_set_of(source))

        return run

    @pytest.fixture
    def others(self, tmp_path):
        """Two photos with a labelled person each, in the folder train; the dataset.yaml is the test's."""
        root = tmp_path / "others"
        document = make_document(["41.png", "42.png"])
        root.mkdir()
        for seed in (41, 42):
            write_photo(root / "train" / f"{seed}.png", seed)
        (root / "train.json").write_text(json.dumps(document))
        return root

    def test_the_part_train(self, find, others):
        (others / "dataset.yaml").write_text(
            "kind: coco-keypoints\ntrain: {images: train, annotations: train.json}\n"
            "val: {images: train, annotations: train.json}\n"
        )
        found = find(others)
        assert [sample.path.name for sample in found.samples] == ["41.png", "42.png"]
        assert [len(labels.boxes_xyxy) for labels in found.labels] == [1, 1]

    def test_calib_where_there_is_no_train(self, find, others):
        (others / "dataset.yaml").write_text(
            "kind: coco-keypoints\ncalib: {images: train, annotations: train.json}\n"
            "val: {images: train, annotations: train.json}\n"
        )
        assert len(find(others)) == 2

    def test_no_labels(self, find, others):
        (others / "dataset.yaml").write_text(
            "kind: coco-keypoints\ntrain: {images: train}\nval: {images: train, annotations: train.json}\n"
        )
        with pytest.raises(DataSetError, match=r"has nothing to train on[\s\S]*or give --labelled synthetic:N"):
            find(others)

    def test_photos_that_are_evaluated_on(self, find, others):
        (others / "dataset.yaml").write_text(
            "kind: coco-keypoints\ntrain: {images: train, annotations: train.json}\n"
            "calib: {images: calib}\nval: {images: train, annotations: train.json}\n"
        )
        write_photo(others / "calib" / "51.png", 51)
        with pytest.raises(DataSetError, match="2 of the 2 photos to fine-tune on are evaluation photos too"):
            find(others, others)


CATEGORY = {"id": 1, "name": "person", "keypoints": list(COCO17.keypoint_names), "skeleton": []}


def make_document(names):
    """COCO labels: one person in the middle of each 80 × 60 image."""
    box = [20.0, 10.0, 40.0, 40.0]
    keypoints = [value for joint in range(17) for value in (22 + 2 * joint, 12 + 2 * joint, 2)]
    people = [
        {"id": place, "image_id": place, "category_id": 1, "bbox": box, "area": 800.0, "iscrowd": 0,
         "keypoints": keypoints, "num_keypoints": 17}
        for place in range(len(names))
    ]  # fmt: skip
    images = [{"id": place, "file_name": name, "width": 80, "height": 60} for place, name in enumerate(names)]
    return {"images": images, "annotations": people, "categories": [CATEGORY]}
