from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper, shape_inference

from qtoolkit.errors import ModelFileError
from qtoolkit.graph.layers import (
    decode_tail,
    find_layers,
    last_layers,
    layer_levels,
    layer_neighbours,
    weight_positions,
)
from qtoolkit.graph.load import load_network, prepare_network
from qtoolkit.graph.view import GraphView, node_name


@pytest.fixture(scope="module")
def pose(tiny_pose_model):
    return prepare_network(tiny_pose_model())


def test_layers_of_the_pose_network_are_its_convolutions_without_the_dfl(pose):
    names = [layer.name for layer in find_layers(pose)]
    assert len(names) == 12 + 3 * 3 * 2
    assert names[:3] == ["stem", "down4", "c2f.in"]
    assert "dfl.conv.node" not in names


def test_a_layer_is_described_in_full(pose):
    layer = find_layers(pose)[0]
    assert (layer.name, layer.op_type, layer.input, layer.output) == ("stem", "Conv", "images", "stem.bn.out")
    assert (layer.weight, layer.bias) == ("stem.weight", "stem.bias")
    assert layer.weight_shape == (8, 3, 3, 3)
    assert layer.input_shape == (1, 3, 64, 64)
    assert layer.output_shape == (1, 8, 32, 32)
    assert (layer.group, layer.weight_channel_axis, layer.macs) == (1, 0, 8 * 32 * 32 * 27)


def test_every_kind_of_layer_and_the_axis_of_its_output_channels(mixed_layers_model):
    layers = {layer.name: layer for layer in find_layers(prepare_network(mixed_layers_model()))}
    found = {name: (layer.op_type, layer.weight_shape, layer.weight_channel_axis) for name, layer in layers.items()}
    assert found == {
        "conv": ("Conv", (8, 3, 3, 3), 0),
        "up.out.node": ("ConvTranspose", (8, 3, 2, 2), 1),
        "left.node": ("MatMul", (5, 6), 0),
        "right.node": ("MatMul", (256, 12), 1),
        "fc1.out.node": ("Gemm", (20, 1352), 0),
        "output0.node": ("Gemm", (20, 10), 1),
    }
    assert layers["up.out.node"].group == 2
    assert layers["left.node"].input == "tokens"
    assert layers["output0.node"].bias is None
    assert layers["right.node"].macs == 6 * 12 * 256


def test_a_product_of_two_activations_is_no_layer(mixed_layers_model):
    names = {layer.name for layer in find_layers(prepare_network(mixed_layers_model()))}
    assert not names & {"scores.node", "attention.node"}


def test_an_open_shape_is_an_error_that_names_the_layer(dynamic_pose_model):
    with pytest.raises(ModelFileError, match=r"layer 'stem' .*shape is not fixed"):
        find_layers(dynamic_pose_model())


def test_positions_of_weights_need_no_shapes(dynamic_pose_model, mixed_layers_model):
    model = prepare_network(mixed_layers_model())
    positions = weight_positions(GraphView(model))
    nodes = {node_name(node): node for node in model.graph.node}
    assert [nodes[name].input[place] for name, place in positions.items()] == [x.weight for x in find_layers(model)]
    assert positions["left.node"] == 0
    assert "stem" in weight_positions(GraphView(dynamic_pose_model()))


def test_last_layers_are_the_nine_of_the_head(pose):
    assert set(last_layers(pose)) == {f"head.{b}.{i}.1" for b in ("box", "score", "keypoints") for i in range(3)}


def test_decode_tail_holds_everything_behind_the_last_layers_and_nothing_before(pose):
    tail = decode_tail(pose)
    assert {"dfl.conv.node", "dfl.softmax.node", "head.box.0.flat.node", "output0.node", "kp.sigmoid.node"} <= tail
    assert not tail & {layer.name for layer in find_layers(pose)}
    assert not tail & {"head.box.0.0.act.node", "up.node", "sppf.pool1.node", "c2f.add.node"}


def test_neighbours_look_through_what_is_no_layer(pose):
    after = layer_neighbours(pose)
    assert after["stem"] == ("down4",)
    # The left half of the split goes to the concat, the right half into the bottleneck.
    assert after["c2f.in"] == ("c2f.a", "c2f.out")
    assert after["c2f.b"] == ("c2f.out",)
    assert set(after["sppf.out"]) == {"neck16", *(f"head.{b}.2.0" for b in ("box", "score", "keypoints"))}
    assert after["head.box.0.1"] == ()
    assert set(after) == {layer.name for layer in find_layers(pose)}


# Last node of a small network: (weight, how the node is written, whether it is a layer).
ARITHMETIC = {
    "expectation over bins": (np.arange(8).reshape(1, 8, 1, 1), "Conv(x, w)", False),
    "expectation over bins, rounded weights": (np.arange(8).reshape(1, 8, 1, 1) + 0.004, "Conv(x, w)", False),
    "two output channels": (np.stack([np.arange(8)] * 2).reshape(2, 8, 1, 1), "Conv(x, w)", True),
    "evenly spaced, no softmax": (np.linspace(0, 1, 8).reshape(1, 8, 1, 1), "Conv(x, w)", True),
    "evenly spaced behind a softmax": (np.linspace(-1, 1, 8).reshape(1, 8, 1, 1), "Conv(s, w)", False),
    "uneven behind a softmax": (np.array([0, 1, 3, 4, 4, 5, 6, 8.0]).reshape(1, 8, 1, 1), "Conv(s, w)", True),
    "one output channel, trained": (np.linspace(0, 1, 8).reshape(1, 8, 1, 1) ** 2, "Conv(x, w)", True),
    "map from centre to corners": (
        np.array([[1, 0, 1, 0], [0, 1, 0, 1], [-0.5, 0, 0.5, 0], [0, -0.5, 0, 0.5]]),
        "MatMul(flat, w)",
        False,
    ),
    "convolution with ones": (np.ones((1, 8, 1, 1)), "Conv(x, w)", True),
    "trained 4x4 map": (np.arange(16).reshape(4, 4) / 7, "MatMul(flat, w)", True),
    "one-dimensional weight": (np.ones(4) * 3, "MatMul(flat, w)", False),
}


@pytest.mark.parametrize("case", ARITHMETIC.values(), ids=ARITHMETIC)
def test_arithmetic_with_constants_is_told_from_layers(parse_network, case):
    weight, call, is_layer = case
    model = parse_network(
        f"""net (float[1,8,2,2] images) => (y) {{
          x = Relu(images)
          soft = Softmax<axis=1>(images)
          s = Transpose<perm=[0,1,3,2]>(soft)
          shape = Constant<value=int64[2] {{8, 4}}>()
          flat = Reshape(x, shape)
          [last] y = {call}
        }}"""
    )
    model.graph.initializer.append(numpy_helper.from_array(weight.astype(np.float32), "w"))
    model.graph.output[0].type.tensor_type.elem_type = 1
    model = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    assert [layer.name for layer in find_layers(model)] == (["last"] if is_layer else [])
    assert ("last" in decode_tail(model)) is not is_layer


def test_a_bias_makes_a_layer_of_evenly_spaced_weights(parse_network):
    model = parse_network("net (float[1,8,2,2] x, float[1] b) => (float[1,1,2,2] y) { [last] y = Conv(x, w, b) }")
    bins = np.arange(8, dtype=np.float32).reshape(1, 8, 1, 1)
    model.graph.initializer.append(numpy_helper.from_array(bins, "w"))
    model.graph.initializer.append(numpy_helper.from_array(np.float32([0.5]), "b"))
    assert [layer.name for layer in find_layers(model)] == ["last"]


@pytest.mark.real
def test_layers_of_the_real_network(real_data):
    model = load_network(real_data / "models" / "yolov8n-pose.onnx")
    names = [layer.name for layer in find_layers(model)]
    assert len(names) == 72
    assert set(last_layers(model)) == {f"model.22.cv{branch}.{level}.2" for branch in (2, 3, 4) for level in range(3)}
    assert "Conv_172" in decode_tail(model)


class TestLevels:
    def test_a_layer_stands_behind_all_that_it_depends_on(self, tiny_pose_model):
        model = prepare_network(tiny_pose_model())
        level = {name: number for number, names in enumerate(layer_levels(model)) for name in names}
        assert set(level) == set(layer_neighbours(model))
        for name, after in layer_neighbours(model).items():
            assert all(level[other] > level[name] for other in after)
        before = {name: [a for a, after in layer_neighbours(model).items() if name in after] for name in level}
        assert all(level[name] == 0 or max(level[a] for a in before[name]) == level[name] - 1 for name in level)

    def test_a_network_without_layers_has_none(self, parse_network):
        assert layer_levels(parse_network("net (float[1,3,4,4] x) => (float[1,3,4,4] y) { y = Relu(x) }")) == ()
