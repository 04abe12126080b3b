from __future__ import annotations

import contextlib
import copy
import io
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from qtoolkit.data.coco import CocoKeypoints, read_coco_keypoints
from qtoolkit.data.skeletons import COCO17
from qtoolkit.errors import DataSetError, UsageError

Record = Callable[..., dict[str, Any]]
Document = Callable[..., dict[str, Any]]


@pytest.fixture
def read(tmp_path: Path) -> Callable[[Any], CocoKeypoints]:
    """Write a document (or bytes) and read it back as labels."""

    def write_and_read(document: Any) -> CocoKeypoints:
        path = tmp_path / "labels.json"
        path.write_bytes(document if isinstance(document, bytes) else json.dumps(document).encode())
        return read_coco_keypoints(path)

    return write_and_read


def test_values_and_order(read: Any, document: Document) -> None:
    labels = read(document())
    assert [tuple(image) for image in labels.images] == [(10, "a.png", (16, 12)), (20, "b.png", (16, 12))]
    assert labels.annotation_ids.tolist() == [1, 2]
    assert labels.image_ids.tolist() == [10, 20]
    assert labels.boxes_xywh.tolist() == [[1.5, 2, 8, 6]] * 2
    assert labels.areas.tolist() == [30.25] * 2
    assert labels.is_crowd.tolist() == [False] * 2
    assert labels.num_keypoints.tolist() == [2, 2]
    assert labels.keypoints.shape == (2, 17, 3)
    assert labels.keypoints[0, :3].tolist() == [[5, 6, 2], [7, 8, 1], [0, 0, 0]]
    assert labels.skeleton is COCO17
    assert labels.name == "labels.json"


def test_crowds_and_people_without_keypoints_are_kept(read: Any, document: Document, person_record: Record) -> None:
    crowd = person_record(5, 10, iscrowd=1, num_keypoints=0, keypoints=[0] * 51, segmentation={"counts": [1, 2]})
    nobody = person_record(6, 10, num_keypoints=0, keypoints=[0] * 51)
    labels = read(document([crowd, nobody]))
    assert labels.is_crowd.tolist() == [True, False]
    assert labels.num_keypoints.tolist() == [0, 0]


def test_no_annotations_at_all(read: Any, document: Document) -> None:
    labels = read(document([]))
    assert len(labels) == 0
    assert labels.keypoints.shape == (0, 17, 3)
    assert labels.ground_truth()["annotations"] == []


def test_the_hash_is_of_the_content(read: Any, document: Document) -> None:
    first = read(document()).sha256
    assert read(document()).sha256 == first
    assert read(document([])).sha256 != first


def test_ground_truth_holds_the_numbers_of_the_file(read: Any, document: Document, person_record: Record) -> None:
    written = document([person_record(7, 20, bbox=[0.1, 0.2, 0.3, 0.7], area=1 / 3), person_record(3, 10, iscrowd=1)])
    truth = read(written).ground_truth()
    for record, original in zip(truth["annotations"], written["annotations"], strict=True):
        assert record == {key: value for key, value in original.items() if key != "segmentation"}
    assert [image["id"] for image in truth["images"]] == [10, 20]
    assert truth["categories"][0]["keypoints"] == list(COCO17.keypoint_names)
    assert truth["categories"][0]["skeleton"][0] == [16, 14]


def test_ground_truth_of_some_images(read: Any, document: Document) -> None:
    truth = read(document()).ground_truth([20])
    assert [image["id"] for image in truth["images"]] == [20]
    assert [annotation["id"] for annotation in truth["annotations"]] == [2]


def test_ground_truth_of_images_the_labels_lack(read: Any, document: Document) -> None:
    with pytest.raises(UsageError, match=r"1 of the images to evaluate are not in the labels labels.json[\s\S]*99"):
        read(document()).ground_truth([10, 99])


def test_ids_below_one_are_numbered_anew(read: Any, document: Document, person_record: Record) -> None:
    """pycocotools counts a match with annotation 0 as none, so AP would fall although the pose is perfect."""
    truth = read(document([person_record(0, 10), person_record(1, 20)])).to_coco_dict()
    assert [annotation["id"] for annotation in truth["annotations"]] == [1, 2]


def test_annotations_of_other_categories_are_left_out(read: Any, document: Document, person_record: Record) -> None:
    written = document([person_record(1, 10), {"id": 2, "image_id": 10, "category_id": 18, "bbox": [0, 0, 1, 1]}])
    written["categories"].append({"id": 18, "name": "dog"})
    assert read(written).annotation_ids.tolist() == [1]


def test_the_person_category_may_have_another_id_and_spelling(
    read: Any, document: Document, person_record: Record
) -> None:
    written = document([person_record(1, 10, category_id=4)])
    names = [name.replace("_", "-").title() for name in COCO17.keypoint_names]
    written["categories"][0] |= {"id": 4, "keypoints": names}
    assert read(written).ground_truth()["annotations"][0]["category_id"] == 1


def test_a_byte_order_mark_and_utf16_are_read(read: Any, document: Document) -> None:
    text = json.dumps(document())
    assert len(read(b"\xef\xbb\xbf" + text.encode())) == 2
    assert len(read(text.encode("utf-16"))) == 2


@pytest.mark.parametrize(
    ("content", "found"),
    [
        pytest.param(b"", r"an empty file \(0 bytes\)", id="zero bytes"),
        pytest.param(b"{'images': []}", r"Expecting property name", id="not JSON"),
        pytest.param(b'{"images": [', r"Expecting value", id="truncated"),
        pytest.param(b"\xff\xfe\x00", r"decode", id="no text"),
        pytest.param(b'{"images": 1' + b"0" * 5000 + b"}", r"digits", id="a number of 5000 digits"),
        pytest.param(b"[" * 100_000, r"recursion", id="100 000 brackets"),
    ],
)
def test_what_is_not_json(read: Any, content: bytes, found: str) -> None:
    with pytest.raises(DataSetError, match=rf"labels.json is not JSON\n[\s\S]*found: .*{found}"):
        read(content)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(DataSetError, match=r"none.json cannot be read[\s\S]*no such file"):
        read_coco_keypoints(tmp_path / "none.json")
    with pytest.raises(DataSetError, match="Is a directory"):
        read_coco_keypoints(tmp_path)


@pytest.mark.parametrize(
    ("written", "found"),
    [
        pytest.param([], "top level: the file holds a list, not an object", id="a list"),
        pytest.param(None, "top level: the file holds a null, not an object", id="null"),
        pytest.param({"images": []}, "top level: key 'annotations' is missing", id="no annotations"),
        pytest.param({"images": {}}, "'images': not a list but a object", id="images as object"),
        pytest.param({"images": []}, "'images': there is no image", id="no images"),
    ],
)
def test_a_wrong_layout(read: Any, written: Any, found: str) -> None:
    with pytest.raises(DataSetError, match=r"labels\.json has \d+ fault") as error:
        read(written)
    assert found in str(error.value)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        pytest.param({"bbox": [0, 0, math.nan, 5]}, "annotation 1: bbox is NaN or infinite", id="NaN box"),
        pytest.param({"bbox": [0, 0, math.inf, 5]}, "annotation 1: bbox is NaN or infinite", id="infinite box"),
        pytest.param({"bbox": [0, 0, 10**400, 5]}, "annotation 1: bbox is NaN or infinite", id="box beyond float"),
        pytest.param({"bbox": [0, 0, -1, 5]}, "annotation 1: bbox has a negative width or height", id="negative box"),
        pytest.param({"bbox": [0, 0, 5]}, "annotation 1: bbox holds 3 values, expected 4", id="box of three"),
        pytest.param({"bbox": "0 0 5 5"}, "annotation 1: bbox holds a text, expected 4", id="box as text"),
        pytest.param({"bbox": [0, 0, "5", 5]}, "annotation 1: bbox is not made of numbers", id="text in box"),
        pytest.param({"bbox": None}, "annotation 1: bbox holds a null, expected 4", id="null box"),
        pytest.param({"area": math.nan}, "annotation 1: area is NaN or infinite", id="NaN area"),
        pytest.param({"area": -1.0}, "annotation 1: area is negative", id="negative area"),
        pytest.param({"area": None}, "annotation 1: area is not a number", id="null area"),
        pytest.param({"keypoints": [1, 2, 2]}, "annotation 1: keypoints holds 3 values, expected 51", id="3 keypoints"),
        pytest.param(
            {"keypoints": [math.nan] + [0] * 50}, "annotation 1: keypoints is NaN or infinite", id="NaN keypoint"
        ),
        pytest.param(
            {"keypoints": [1, 1, 3] + [0] * 48}, "annotation 1: a visibility is not 0, 1 or 2", id="visibility 3"
        ),
        pytest.param({"image_id": 99}, "annotation 1 (image 99): the image id is not in 'images'", id="unknown image"),
        pytest.param({"image_id": [10]}, "the image id is not in 'images'", id="image id as list"),
        pytest.param({"image_id": True}, "the image id is not in 'images'", id="image id true"),
        pytest.param({"category_id": 7}, "annotation 1: the category id is not in 'categories'", id="category"),
        pytest.param({"category_id": [1]}, "the category id is not in 'categories'", id="category id as list"),
        pytest.param({"iscrowd": 2}, "annotation 1: iscrowd is neither 0 nor 1", id="iscrowd 2"),
        pytest.param({"iscrowd": None}, "annotation 1: iscrowd is neither 0 nor 1", id="iscrowd null"),
        pytest.param(
            {"num_keypoints": 18}, "annotation 1: num_keypoints is not a whole number from 0 to 17", id="18 keypoints"
        ),
        pytest.param({"id": "x"}, "annotation 'x': the id is not a whole number", id="text id"),
        pytest.param({"id": 2**63}, f"annotation {2**63}: the id is not a whole number", id="id beyond 64 bit"),
        pytest.param({"id": 2}, "annotation 2: the annotation id is used twice", id="id twice"),
    ],
)
def test_a_faulty_annotation(read: Any, document: Document, change: dict[str, Any], fault: str) -> None:
    written = document()
    written["categories"].append({"id": 18, "name": "dog"})
    written["annotations"][0] |= change
    with pytest.raises(DataSetError, match=r"labels\.json has 1 fault\n") as error:
        read(written)
    assert fault in str(error.value)


@pytest.mark.parametrize("key", ["image_id", "category_id", "bbox", "area", "iscrowd", "num_keypoints", "keypoints"])
def test_a_missing_key_is_named_with_the_annotation(read: Any, document: Document, key: str) -> None:
    written = document()
    del written["annotations"][1][key]
    with pytest.raises(DataSetError, match=f"annotation 2: key '{key}' is missing"):
        read(written)


def test_annotations_without_an_id_are_named_by_position(read: Any, document: Document) -> None:
    written = document()
    del written["annotations"][1]["id"]
    written["annotations"].append("person")
    with pytest.raises(DataSetError) as error:
        read(written)
    assert "annotation at position 1: key 'id' is missing" in str(error.value)
    assert "annotation at position 2: not an object but a text" in str(error.value)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        pytest.param({"id": 20}, "image 20: the image id is used twice", id="id twice"),
        pytest.param({"id": "a"}, "image 'a': the id is not a whole number", id="text id"),
        pytest.param({"file_name": " "}, "image 10: the file name is not a text, or empty", id="no name"),
        pytest.param({"file_name": 10}, "image 10: the file name is not a text, or empty", id="number as name"),
        pytest.param({"width": 0}, "image 10: width and height are not whole numbers above 0", id="no width"),
        pytest.param({"height": 4.5}, "image 10: width and height are not whole numbers above 0", id="half a pixel"),
    ],
)
def test_a_faulty_image(read: Any, document: Document, change: dict[str, Any], fault: str) -> None:
    written = document()
    written["images"][1] |= change
    with pytest.raises(DataSetError) as error:
        read(written)
    assert fault in str(error.value)


def test_a_missing_key_of_an_image(read: Any, document: Document) -> None:
    written = document()
    del written["images"][0]["width"]
    with pytest.raises(DataSetError, match="image 20: key 'width' is missing"):
        read(written)


@pytest.mark.parametrize(
    ("categories", "fault"),
    [
        pytest.param([], "0 categories have a list 'keypoints', expected exactly 1", id="none"),
        pytest.param([{"id": 1, "name": "person"}], "0 categories have a list 'keypoints'", id="no keypoints"),
        pytest.param(
            [{"id": 1, "keypoints": ["a"]}, {"id": 2, "keypoints": ["b"]}], "2 categories have a list", id="two"
        ),
        pytest.param([{"id": 1, "keypoints": ["nose"]}], "category 1: 1 keypoints, expected the 17", id="one keypoint"),
        pytest.param(
            [{"id": 1, "keypoints": ["nose", "right_eye", "left_eye", *COCO17.keypoint_names[3:]]}],
            "category 1: keypoint 1 is 'right_eye', expected 'left_eye'",
            id="another order",
        ),
        pytest.param(["person"], "each category must be an object", id="texts"),
        pytest.param([{"id": 1}, {"id": 1}], "with a whole number of its own as id", id="id twice"),
    ],
)
def test_faulty_categories(read: Any, document: Document, categories: list[Any], fault: str) -> None:
    with pytest.raises(DataSetError) as error:
        read(document() | {"categories": categories})
    assert fault in str(error.value)


def test_all_faults_are_counted_and_the_first_twenty_listed(
    read: Any, document: Document, person_record: Record
) -> None:
    people = [person_record(number, 99) for number in range(1, 31)] + [person_record(31, 10, area=math.nan)]
    with pytest.raises(DataSetError) as error:
        read(document(people))
    text = str(error.value)
    assert "labels.json has 31 faults" in text
    assert "30 × the image id is not in 'images', 1 × area is NaN or infinite" in text
    assert text.count("annotation ") == 20 + 1  # and once in "annotation file"
    assert "… and 11 more" in text


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_whatever_stands_in_a_file_reading_ends_in_labels_or_a_data_set_error(
    data: st.DataObject, read: Any, document: Document
) -> None:
    written = copy.deepcopy(document())
    written["categories"].append({"id": 18, "name": "dog"})
    for _ in range(data.draw(st.integers(1, 3))):
        part = data.draw(st.sampled_from(["images", "annotations", "categories"]))
        entry = data.draw(st.sampled_from(written[part]))
        entry[data.draw(st.sampled_from(sorted(entry)))] = data.draw(json_values)
    with contextlib.suppress(DataSetError):
        truth = read(written).ground_truth()
        assert all(math.isfinite(value) for record in truth["annotations"] for value in record["keypoints"])


def test_labels_of_5000_images_are_read_in_under_three_seconds(tmp_path: Path, person_record: Record) -> None:
    """As large as person_keypoints_val2017.json: 5,000 images, 11,004 annotations with polygons, some 15 MB."""
    values = np.random.default_rng(0)
    polygons = values.uniform(0, 640, (11_004, 120)).round(2).tolist()
    points = values.integers(0, 640, (11_004, 51)).astype(object)
    points[:, 2::3] = 2
    people = [
        person_record(
            number + 1, int(number % 5000), keypoints=points[number].tolist(), segmentation=[polygons[number]]
        )
        for number in range(11_004)
    ]
    images = [
        {"id": number, "file_name": f"{number:012d}.jpg", "width": 640, "height": 480, "coco_url": "x" * 60}
        for number in range(5000)
    ]
    categories = [{"id": 1, "name": "person", "keypoints": list(COCO17.keypoint_names)}]
    path = tmp_path / "large.json"
    path.write_text(json.dumps({"images": images, "annotations": people, "categories": categories}))
    start = time.perf_counter()
    labels = read_coco_keypoints(path)
    assert time.perf_counter() - start < 3
    assert labels.keypoints.shape == (11_004, 17, 3)
    assert labels.keypoints[11_003].ravel().tolist() == points[11_003].tolist()


@pytest.mark.real
def test_ap_over_our_ground_truth_equals_ap_over_the_file(real_data: Path) -> None:
    """Made-up poses around the labels: pycocotools gives the same figures, to the last bit, for both ground truths."""
    path = real_data / "coco" / "person_keypoints_val.json"
    labels = read_coco_keypoints(path)
    assert (len(labels.images), len(labels), int(labels.is_crowd.sum())) == (360, 802, 11)
    assert int((labels.num_keypoints > 0).sum()) == 640
    noise = np.random.default_rng(0)
    poses = [
        {
            "image_id": image_id,
            "category_id": 1,
            "score": float(noise.random()),
            "keypoints": (keypoints + noise.normal(0, 4, keypoints.shape)).ravel().tolist(),
        }
        for image_id, keypoints in zip(labels.image_ids.tolist(), labels.keypoints, strict=True)
    ]
    figures = []
    with contextlib.redirect_stdout(io.StringIO()):
        ours = COCO()
        ours.dataset = labels.ground_truth()
        ours.createIndex()
        for truth in (COCO(str(path)), ours):
            evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(poses)), "keypoints")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            figures.append(evaluation.stats.tolist())
    assert figures[0] == figures[1]
    assert 0.2 < figures[0][0] < 0.999
