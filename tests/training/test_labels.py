"""Labels that would teach something wrong are refused; the others are sorted by image."""

from __future__ import annotations

import pytest

from qtoolkit.data.sources import open_data_source
from qtoolkit.errors import DataSetError
from qtoolkit.training.dataset import read_labelled_images


def _read(root):
    return read_labelled_images(open_data_source(root))


def _set(annotation: int, **values):
    return lambda document: document["annotations"][annotation].update(values)


def _keypoint(place: int, value: float):
    def change(document):
        document["annotations"][2]["keypoints"][place] = value

    return change


def _lose_people(document):
    document["annotations"] = []


def _lose_images(document):
    document["annotations"] = []
    document["images"] = []


def _only_crowds(document):
    for annotation in document["annotations"]:
        annotation["iscrowd"] = 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(_set(1, bbox=[10, 10, 0, 20]), "the box has no area", id="box without width"),
        pytest.param(_set(1, area=0), "the area is zero", id="area zero"),
        pytest.param(_set(1, bbox=[80, 10, 30, 20]), "the box reaches outside its image", id="box outside"),
        pytest.param(_set(1, bbox=[-9, 10, 30, 20]), "the box reaches outside its image", id="box before the image"),
        pytest.param(_keypoint(0, 99), "a labelled keypoint lies outside its image", id="keypoint outside"),
        pytest.param(_keypoint(0, float("nan")), "NaN", id="keypoint NaN"),
        pytest.param(_set(1, bbox=[float("nan"), 1, 1, 1]), "NaN", id="box NaN"),
        pytest.param(_set(1, keypoints=[1, 2, 2] * 16), "48 values, expected 51", id="16 keypoints"),
        pytest.param(_lose_people, "labels nobody", id="no person"),
        pytest.param(_only_crowds, "labels nobody", id="crowds only"),
        pytest.param(_lose_images, "there is no image", id="no image"),
    ],
)
def test_bad_labels_are_refused(make_people, change, message):
    with pytest.raises(DataSetError, match=message) as caught:
        _read(make_people(change=change))
    assert "train.json" in str(caught.value)


def test_every_fault_is_told_at_once_with_its_place(make_people):
    def change(document):
        document["annotations"][0]["area"] = 0
        document["annotations"][3]["bbox"] = [90, 60, 30, 30]

    with pytest.raises(DataSetError, match=r"has 2 faults") as caught:
        _read(make_people(change=change))
    assert "annotation 1 (image 1): the area is zero" in str(caught.value)
    assert "annotation 4 (image 3): the box reaches outside its image" in str(caught.value)


def test_a_crowd_may_be_anything_and_is_kept_apart(make_people):
    data = _read(make_people(change=_set(0, iscrowd=1, area=0, bbox=[90, -20, 50, 300])))
    first = data.labels[0]
    assert first.crowds_xyxy.tolist() == [[90, 0, 96, 72]]
    assert len(first.boxes_xyxy) == 1


def test_labels_come_in_the_order_of_the_photos(make_people):
    data = _read(make_people(change=_set(0, keypoints=[0] * 51, num_keypoints=0)))
    assert [len(each.boxes_xyxy) for each in data.labels] == [2, 1, 2, 1, 2, 1]
    assert data.labels[0].labelled.tolist() == [False, True]
    assert [sample.image_id for sample in data.samples] == [1, 2, 3, 4, 5, 6]


def test_a_set_without_a_labelled_training_part(make_people):
    root = make_people()
    (root / "dataset.yaml").write_text("kind: coco-keypoints\nval: {images: val, annotations: val.json}\n")
    with pytest.raises(DataSetError, match="nothing to train on"):
        _read(root)


def test_a_damaged_photo_is_left_out_and_named(make_people):
    root = make_people()
    (root / "train" / "3.png").write_bytes(b"")
    data = _read(root)
    assert [sample.image_id for sample in data.samples] == [1, 2, 4, 5, 6]
    assert data.skipped[0].path.name == "3.png"
