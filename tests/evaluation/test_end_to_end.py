import numpy as np
import onnx
import pytest

from qtoolkit.backends.onnxruntime_cpu import OnnxRuntimeCpu
from qtoolkit.errors import HeadError, UsageError
from qtoolkit.evaluation.end_to_end import with_nms_inside, write_end_to_end
from qtoolkit.evaluation.pose_network import PoseNetwork
from qtoolkit.graph.load import prepare_network

IMAGES = np.random.default_rng(2).integers(0, 256, (3, 48, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def network(tiny_pose_model):
    return prepare_network(tiny_pose_model(seed=4))


def people(model, **thresholds):
    with OnnxRuntimeCpu(model, threads=1) as runner:
        pose = PoseNetwork.from_runner(runner, **thresholds)
        return pose.head, [pose.people(image) for image in IMAGES]


@pytest.mark.parametrize("thresholds", [{}, {"score_threshold": 0.2, "iou_threshold": 0.4}], ids=["default", "given"])
def test_the_same_people_as_with_suppression_on_the_host(network, thresholds):
    head, expected = people(network, **thresholds)
    inside_head, found = people(with_nms_inside(network, **thresholds), **thresholds)
    assert (head.kind, inside_head.kind) == ("yolov8-pose", "separate-outputs")
    assert inside_head.outputs == ("boxes", "keypoints", "scores") and inside_head.nms_inside
    assert sum(len(each.scores) for each in expected) > 10
    for a, b in zip(expected, found, strict=True):
        for field in ("boxes_xyxy", "scores", "keypoints"):
            np.testing.assert_allclose(getattr(b, field), getattr(a, field), rtol=1e-6, atol=1e-4, err_msg=field)


def test_a_network_that_gives_people_already(network):
    with pytest.raises(HeadError, match="cannot be put behind a separate-outputs head") as error:
        with_nms_inside(with_nms_inside(network))
    assert "leave --end-to-end out" in str(error.value)


def test_a_network_without_people():
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 13]> '
        "net (float[1,3,8,8] images) => (float[1,3,8,8] y) { y = Relu(images) }"
    )
    with pytest.raises(HeadError, match="fit no known pose head"):
        with_nms_inside(prepare_network(model))


def test_files(network, tmp_path):
    onnx.save(network, tmp_path / "tiny.onnx")
    result = write_end_to_end(tmp_path / "tiny.onnx", tmp_path / "out.onnx", thresholds={"score_threshold": 0.5})
    assert (result.head, result.input_size_wh, result.opset) == ("yolov8-pose", (64, 64), 13)
    assert result.size_bytes == (tmp_path / "out.onnx").stat().st_size
    written = onnx.load(tmp_path / "out.onnx")
    assert people(written)[1][0].scores.tolist() == people(network, score_threshold=0.5)[1][0].scores.tolist()
    with pytest.raises(UsageError, match="written over itself"):
        write_end_to_end(tmp_path / "tiny.onnx", tmp_path / "tiny.onnx")
