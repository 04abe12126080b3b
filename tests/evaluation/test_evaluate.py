from __future__ import annotations

import json

import cv2
import numpy as np
import onnx
import pytest

from qtoolkit.data.people import People
from qtoolkit.data.skeletons import COCO17
from qtoolkit.data.sources import DataSource, open_data_source
from qtoolkit.errors import DataSetError, HeadError, ModelFileError
from qtoolkit.evaluation.evaluate import coco_results, evaluate_network, runnable_network


@pytest.fixture
def network(tiny_pose_model, tmp_path):
    onnx.save(tiny_pose_model(activation="relu"), tmp_path / "tiny.onnx")
    return tmp_path / "tiny.onnx"


@pytest.fixture
def source(tmp_path) -> DataSource:
    """Three photos, of which the third is empty; a person of 40×40 pixels on each."""
    root = tmp_path / "people"
    (root / "val").mkdir(parents=True)
    for image_id in (1, 2, 3):
        noise = np.random.default_rng(image_id).integers(0, 256, (60, 80, 3), np.uint8)
        content = b"" if image_id == 3 else cv2.imencode(".png", noise)[1].tobytes()
        (root / "val" / f"{image_id}.png").write_bytes(content)
    person = {
        "category_id": 1,
        "bbox": [10, 10, 40, 40],
        "area": 1200.0,
        "iscrowd": 0,
        "num_keypoints": 17,
        "keypoints": [12, 14, 2] * 17,
    }
    document = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 80, "height": 60} for i in (1, 2, 3)],
        "annotations": [person | {"id": i, "image_id": i} for i in (1, 2, 3)],
        "categories": [{"id": 1, "name": "person", "keypoints": list(COCO17.keypoint_names), "skeleton": []}],
    }
    (root / "val.json").write_text(json.dumps(document))
    (root / "dataset.yaml").write_text("kind: coco-keypoints\nval: {images: val, annotations: val.json}\n")
    return open_data_source(root)


def _people(count: int) -> People:
    boxes = np.tile(np.array([0, 0, 10, 20], np.float32), (count, 1))
    keypoints = np.full((count, 17, 3), 0.1234567, np.float32)
    return People(boxes, np.linspace(0.9, 0.1, count, dtype=np.float32), keypoints)


class TestEvaluateNetwork:
    def test_record_and_conditions(self, network, source):
        seen = []
        result = evaluate_network(network, source, threads=1, progress=lambda *each: seen.append(each))
        record = result.record
        assert (record.model, record.head, record.input_size_wh) == ("tiny.onnx", "yolov8-pose", (64, 64))
        assert (record.data, record.images, record.skipped) == ("people", 2, 1)
        assert record.runtime["runtime"] == "onnxruntime"
        assert record.runtime["threads"] == 1
        assert (record.score_threshold, record.iou_threshold) == (0.001, 0.7)
        assert [each.path.name for each in result.skipped] == ["3.png"]
        assert set(result.people) == {1, 2}
        assert seen == [(1, 2), (2, 2)]
        assert list(record.metrics) == ["ap", "ap50", "ap75", "ap_m", "ap_l", "ar"]

    def test_the_same_again_is_the_same(self, network, source):
        assert evaluate_network(network, source).record == evaluate_network(network, source).record

    def test_a_high_score_threshold_finds_nobody(self, network, source):
        result = evaluate_network(network, source, score_threshold=1.0)
        assert sum(map(len, result.people.values())) == 0
        assert (result.record.ap, result.record.ar) == (0.0, 0.0)
        # No large person is labelled.
        assert result.record.ap_l is None

    def test_another_input_size(self, dynamic_pose_model, source, tmp_path):
        onnx.save(dynamic_pose_model(activation="relu"), tmp_path / "open.onnx")
        record = evaluate_network(tmp_path / "open.onnx", source, input_size_wh=(96, 64)).record
        assert record.input_size_wh == (96, 64)

    def test_no_labels(self, network, source):
        photos = open_data_source(source.evaluation.images_dir)
        with pytest.raises(DataSetError, match="has no labels to evaluate with"):
            evaluate_network(network, photos)

    def test_no_evaluation_part(self, network, source):
        calib_only = DataSource("half", "coco-keypoints", calib=source.evaluation)
        with pytest.raises(DataSetError, match="the data set half has nothing to evaluate on"):
            evaluate_network(network, calib_only)

    def test_another_skeleton_is_found_before_anything_is_run(self, network_builder, source, tmp_path):
        # 16 keypoints, those of MPII, as heatmaps at a quarter of the input.
        net = network_builder(activation="relu", batch_norm=False)
        net.plain_conv("maps", net.conv("stem", "images", 3, 8, kernel=3, stride=2), 8, 16, kernel=3, stride=2)
        onnx.save(net.model({"images": (1, 3, 64, 64)}, {"maps.out": (1, 16, 16, 16)}), tmp_path / "mpii.onnx")
        with pytest.raises(HeadError, match=r"mpii\.onnx and the labels have different skeletons") as caught:
            evaluate_network(tmp_path / "mpii.onnx", source, progress=lambda *each: pytest.fail("it was run"))
        assert caught.value.found == "a heatmap head with 16 keypoints"


class TestRunnableNetwork:
    def test_a_fixed_network_is_run_as_it_is(self, network):
        assert runnable_network(network) == network

    def test_a_size_gives_a_copy(self, dynamic_pose_model, tmp_path):
        onnx.save(dynamic_pose_model(), tmp_path / "open.onnx")
        model = runnable_network(tmp_path / "open.onnx", (64, 96))
        assert isinstance(model, onnx.ModelProto)
        assert [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim] == [1, 3, 96, 64]

    def test_an_open_batch_becomes_one(self, tiny_pose_model, tmp_path):
        model = tiny_pose_model()
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
        onnx.save(model, tmp_path / "batch.onnx")
        fixed = runnable_network(tmp_path / "batch.onnx")
        assert isinstance(fixed, onnx.ModelProto)
        assert fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1

    def test_no_network(self, tmp_path):
        with pytest.raises(ModelFileError, match="there is no file"):
            runnable_network(tmp_path / "no.onnx")


class TestCocoResults:
    def test_one_record_a_person(self):
        (first, second) = coco_results({7: _people(2), 8: People.empty(17)})
        assert (first["image_id"], first["category_id"]) == (7, 1)
        assert first["score"] == pytest.approx(0.9)
        assert second["score"] == pytest.approx(0.1)
        assert first["keypoints"] == [0.123] * 51

    def test_the_twenty_most_confident(self):
        records = coco_results({1: _people(25)})
        assert len(records) == 20
        assert records[-1]["score"] > 0.1
