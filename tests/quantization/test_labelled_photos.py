from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from qtoolkit.data.calibration_set import calibration_set_of
from qtoolkit.data.sources import open_data_source
from qtoolkit.errors import UsageError
from qtoolkit.quantization.labelled_photos import find_labelled_photos


@pytest.fixture
def data(tmp_path, make_data_set, make_labels):
    """``data(train=4, calib=True)`` → (source, calibration, evaluation): val 1–4, calib 11–13, train 21, 22, …"""
    root = make_data_set(tmp_path / "people")

    def labels(name, first, count):
        document = make_labels(count)
        for image in document["images"]:
            image["file_name"] = f"{first + image['id'] - 1}.png"
        (root / name).write_text(json.dumps(document))

    def make(train=0, calib=False, copied=()):
        text = "kind: coco-keypoints\nname: tiny\nval: {images: val, annotations: val.json}\n"
        text += f"calib: {{images: calib{', annotations: calib.json' if calib else ''}}}\n"
        labels("calib.json", 11, 3)
        for number in range(21, 21 + train):
            (root / "train").mkdir(exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, (60, 80, 3), np.uint8)
            (root / "train" / f"{number}.png").write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
        for number, other in copied:
            (root / "train" / f"{number}.png").write_bytes((root / other).read_bytes())
        if train:
            labels("train.json", 21, train)
            text += "train: {images: train, annotations: train.json}\n"
        (root / "dataset.yaml").write_text(text)
        source = open_data_source(root)
        return source, calibration_set_of(source), source.evaluation_samples()

    return make


def names(found):
    return [sample.path.name for sample in found.samples]


def test_photos_of_train_come_first(data):
    found = find_labelled_photos(*data(train=5, calib=True), limit=3)
    assert found.part == "train"
    assert len(names(found)) == 3
    assert set(names(found)) < {f"{number}.png" for number in range(21, 26)}
    assert found.samples.image_ids == tuple(sorted(found.samples.image_ids))


def test_the_seed_draws_and_a_larger_limit_keeps_what_a_smaller_one_drew(data):
    made = data(train=6)
    three, five = (set(names(find_labelled_photos(*made, limit=limit))) for limit in (3, 5))
    assert three < five
    assert any(set(names(find_labelled_photos(*made, limit=3, seed=seed))) != three for seed in range(1, 6))


def test_photos_of_train_that_are_calibrated_or_evaluated_on_are_left_out(data):
    # By content, whatever they are called.
    found = find_labelled_photos(*data(train=3, copied=[(21, "val/2.png"), (23, "calib/12.png")]), limit=9)
    assert names(found) == ["22.png"]


def test_without_labels_in_train_those_of_calib(data):
    found = find_labelled_photos(*data(calib=True), limit=2)
    assert (found.part, names(found)) == ("calib", ["11.png", "13.png"])
    assert len(names(find_labelled_photos(*data(calib=True), limit=9))) == 3


def test_photos_of_val_are_never_used(data):
    with pytest.raises(UsageError, match="needs labelled photos that are not evaluated on") as caught:
        find_labelled_photos(*data(), limit=9)
    assert "--metric oks" in caught.value.do
    assert "part train or calib of tiny" in caught.value.expected


def test_labels_without_a_person_do_not_help(data, tmp_path):
    made = data(calib=True)
    document = json.loads((tmp_path / "people" / "calib.json").read_text())
    (tmp_path / "people" / "calib.json").write_text(json.dumps(document | {"annotations": []}))
    with pytest.raises(UsageError, match="needs labelled photos"):
        find_labelled_photos(*made, limit=9)
