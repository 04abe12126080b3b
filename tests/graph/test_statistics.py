from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from qtoolkit.graph.load import prepare_network
from qtoolkit.graph.statistics import OFFSET_INPUT, add_statistics
from qtoolkit.graph.view import GraphView


@pytest.fixture(scope="module")
def pose(tiny_pose_model):
    return prepare_network(tiny_pose_model())


@pytest.fixture(scope="module")
def all_tensors(pose):
    """Every float tensor of the network, its input first."""
    view = GraphView(pose)
    made = [name for node in view.nodes for name in node.output]
    return ["images", *(name for name in made if view.elem_type(name) == onnx.TensorProto.FLOAT)]


@pytest.fixture(scope="module")
def activations(pose, all_tensors, run_network, image):
    """The values themselves, through extra outputs."""
    model = onnx.ModelProto()
    model.CopyFrom(pose)
    for name in all_tensors[1:]:
        if name != "output0":
            model.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return {"images": image(64), **run_network(model, {"images": image(64)})}


def measure(model, tensors, run_network, image, offset, sample_size):
    measuring, measured = add_statistics(model, tensors, sample_size)
    onnx.checker.check_model(measuring, full_check=True)
    values = run_network(measuring, {"images": image, OFFSET_INPUT: np.array([offset], np.int64)})
    return measured, values


def test_extremes_of_every_tensor_are_exact(pose, all_tensors, activations, run_network, image):
    measured, values = measure(pose, all_tensors, run_network, image(64), 0, 100)
    assert len(all_tensors) > 100
    for name in all_tensors:
        assert values[measured[name].minimum] == activations[name].min(), name
        assert values[measured[name].maximum] == activations[name].max(), name
        assert measured[name].size == activations[name].size


@pytest.mark.parametrize("offset", [0, 1, 7919, 7919 * 157])
def test_the_sample_is_every_sth_value_from_the_offset_on(pose, all_tensors, activations, run_network, image, offset):
    measured, values = measure(pose, all_tensors, run_network, image(64), offset, 100)
    for name in all_tensors:
        flat = activations[name].ravel()
        stride = max(1, flat.size // 100) | 1
        np.testing.assert_array_equal(values[measured[name].sample], flat[offset % stride :: stride])


def test_a_small_tensor_is_sampled_whole(pose, run_network, image):
    measured, values = measure(pose, ["images"], run_network, image(64), 5, 3 * 64 * 64)
    np.testing.assert_array_equal(values[measured["images"].sample], image(64).ravel())


def test_offsets_of_successive_images_see_every_place(pose, run_network, image):
    measuring, measured = add_statistics(pose, ["images"], 1000)
    numbered = np.arange(3 * 64 * 64, dtype=np.float32).reshape(1, 3, 64, 64)
    seen = set()
    for offset in range(0, 7919 * 13, 7919):
        values = run_network(measuring, {"images": numbered, OFFSET_INPUT: np.array([offset], np.int64)})
        seen |= set(values[measured["images"].sample].astype(int).tolist())
    assert seen == set(range(3 * 64 * 64))


@given(size=st.integers(1, 10**7), sample_size=st.integers(2, 5000))
def test_the_sample_never_is_empty_and_hardly_more_than_asked_for(size, sample_size):
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [size])
    node = helper.make_node("Relu", ["x"], ["y"], name="y")
    output = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [size])
    model = helper.make_model(helper.make_graph([node], "g", [value], [output]))
    measuring, _ = add_statistics(model, ["x"], sample_size)
    stride = int(GraphView(measuring).constant("x/statistics/stride").item())
    # The last start, stride - 1, still lies in the tensor.
    assert stride % 2 == 1 and stride <= size
    most = -(-size // stride)
    assert most <= 2 * sample_size
    # From half of what was asked for on: the stride was rounded up to an odd number.
    assert most >= min(size, sample_size) / 2


def test_the_networks_own_outputs_give_way_to_the_statistics(pose):
    before = pose.SerializeToString(deterministic=True)
    measuring, measured = add_statistics(pose, ["images", "output0"])
    names = [value.name for value in measuring.graph.output]
    assert names == [name for each in measured.values() for name in each[:3]]
    assert [value.name for value in measuring.graph.input] == ["images", OFFSET_INPUT]
    assert pose.SerializeToString(deterministic=True) == before
