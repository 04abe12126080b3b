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


def test_a_quantized_network(tmp_path, tiny_pose_model):
    """Q/DQ pairs stay in the network, and the people are those of the host."""
    from qtoolkit.graph.load import load_network

    model = onnx.ModelProto()
    model.CopyFrom(prepare_network(tiny_pose_model(seed=4)))
    helper, graph = onnx.helper, model.graph
    graph.initializer.extend(
        [
            onnx.numpy_helper.from_array(np.float32(1 / 255), "images.scale"),
            onnx.numpy_helper.from_array(np.uint8(0), "images.zero"),
        ]
    )
    for node in graph.node:
        node.input[:] = ["images.dq" if name == "images" else name for name in node.input]
    pair = [
        helper.make_node("QuantizeLinear", ["images", "images.scale", "images.zero"], ["images.q"]),
        helper.make_node("DequantizeLinear", ["images.q", "images.scale", "images.zero"], ["images.dq"]),
    ]
    nodes = [*pair, *graph.node]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    onnx.save(model, tmp_path / "int8.onnx")
    write_end_to_end(tmp_path / "int8.onnx", tmp_path / "out.onnx")
    written = onnx.load(tmp_path / "out.onnx")
    assert [node.op_type for node in written.graph.node].count("DequantizeLinear") == 1
    expected = people(load_network(tmp_path / "int8.onnx", allow_quantized=True))[1]
    for a, b in zip(expected, people(written)[1], strict=True):
        np.testing.assert_allclose(b.keypoints, a.keypoints, rtol=1e-6, atol=1e-4)
        assert a.scores.tolist() == b.scores.tolist()
