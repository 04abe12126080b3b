from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from qtoolkit.errors import UsageError
from qtoolkit.graph.equalize import can_be_equalized, equalized
from qtoolkit.graph.layers import find_layers, last_layers
from qtoolkit.graph.load import prepare_network
from qtoolkit.graph.row_scales import restored_output
from qtoolkit.graph.view import GraphView, node_name

SIZE = 6
OPERATORS = (
    "conv",
    "grouped",
    "depthwise",
    "relu",
    "relu",
    "leaky",
    "pool",
    "add",
    "concat",
    "split",
    "resize",
    "silu",
)


def random_network(seed: int, length: int) -> onnx.ModelProto:
    """A network with branches: each node reads tensors made anywhere before it; channels are of very unequal size."""
    random = np.random.default_rng(seed)
    nodes: list[onnx.NodeProto] = []
    constants = {"halves": np.array([2, 2], np.int64), "twice": np.array([1, 1, 2, 2], np.float32)}
    tensors = {"images": 3}

    def node(op_type, inputs, channels, outputs=1, **attributes):
        names = [f"t{len(nodes)}.{i}" for i in range(outputs)]
        nodes.append(helper.make_node(op_type, inputs, names, f"{op_type}{len(nodes)}", **attributes))
        tensors.update(dict.fromkeys(names, channels))
        return names[0]

    def conv(x, channels, group=1, kernel=3):
        name = f"w{len(constants)}"
        sizes = np.exp(random.normal(0, 2, (channels, 1, 1, 1)))
        constants[name] = random.normal(0, 0.3, (channels, tensors[x] // group, kernel, kernel)) * sizes
        inputs = [x, name]
        if random.random() < 0.7:
            constants[f"{name}.bias"] = random.normal(0, 1, channels) * sizes.ravel()
            inputs.append(f"{name}.bias")
        return node("Conv", inputs, channels, group=group, pads=[kernel // 2] * 4)

    def some(channels=None):
        fitting = [name for name, count in tensors.items() if channels in (None, count)]
        return str(random.choice(fitting))

    x = conv("images", 4)
    for operator in random.choice(OPERATORS, length):
        x = some()
        four = some(4)
        if operator == "conv":
            conv(x, 4, kernel=int(random.choice([1, 3])))
        elif operator == "grouped":
            conv(four, 4, group=2)
        elif operator == "depthwise":
            conv(four, 4, group=4)
        elif operator == "relu":
            node("Relu", [four], 4)
        elif operator == "leaky":
            node("LeakyRelu", [x], tensors[x], alpha=0.125)
        elif operator == "pool":
            node("MaxPool", [x], tensors[x], kernel_shape=[3, 3], pads=[1] * 4)
        elif operator == "add":
            node("Add", [four, some(4)], 4)
        elif operator == "concat":
            conv(node("Concat", [x, four], tensors[x] + 4, axis=1), 4)
        elif operator == "split":
            node("Split", [four, "halves"], 2, outputs=2, axis=1)
        elif operator == "resize":
            larger = node("Resize", [four, "", "twice"], 4, mode="nearest")
            node("AveragePool", [larger], 4, kernel_shape=[2, 2], strides=[2, 2])
            del tensors[larger]
        else:
            node("Mul", [x, node("Sigmoid", [x], tensors[x])], tensors[x])
    read = {name for each in nodes for name in each.input}
    ends = [conv(name, 2) for name in list(tensors) if name not in read]
    values = [helper.make_tensor_value_info("images", TensorProto.FLOAT, (1, 3, SIZE, SIZE))]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 2, SIZE, SIZE)) for name in ends]
    initializers = [
        numpy_helper.from_array(v if v.dtype == np.int64 else v.astype(np.float32), name)
        for name, v in constants.items()
    ]
    graph = helper.make_graph(nodes, "random", values, outputs, initializers)
    return prepare_network(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(4, 25))
def test_the_network_computes_the_same(run_network, seed, length):
    model = random_network(seed, length)
    before = model.SerializeToString()
    try:
        scaled = equalized(model)
    except UsageError:
        return
    assert model.SerializeToString() == before
    images = {"images": np.random.default_rng(seed).normal(size=(1, 3, SIZE, SIZE)).astype(np.float32)}
    expected, found = run_network(model, images), run_network(scaled, images)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-4 * np.abs(expected[name]).max())
    names = [node_name(node) for node in scaled.graph.node if not node_name(node).endswith("/rows")]
    assert names == [node_name(node) for node in model.graph.node]
    assert last_layers(scaled) == last_layers(model)


def test_random_networks_are_scaled_at_all():
    changed = 0
    for seed in range(12):
        model = random_network(seed, 15)
        try:
            changed += equalized(model).SerializeToString() != model.SerializeToString()
        except UsageError:
            continue
    assert changed >= 6


def weight(model: onnx.ModelProto, name: str) -> np.ndarray:
    return next(numpy_helper.to_array(each) for each in model.graph.initializer if each.name == name)


@pytest.fixture
def network(parse_network):
    """``network(lines)``: convolution w makes t, and what reads it; weights differ a thousandfold between channels."""

    def make(lines: str) -> onnx.ModelProto:
        model = parse_network(
            f"net (float[1,3,4,4] images) => (float[1,2,4,4] y) {{ t = Conv(images, w, b)\n{lines} }}"
        )
        random = np.random.default_rng(0)
        sizes = np.array([0.01, 0.1, 1, 10], np.float32)
        values = {
            "w": random.normal(size=(4, 3, 1, 1)) * sizes.reshape(-1, 1, 1, 1), "b": sizes,
            "v": random.normal(size=(2, 4, 1, 1)), "u": random.normal(size=(4, 4, 1, 1)),
            "k": random.normal(size=(4, 4)),
        }  # fmt: skip
        model.graph.initializer.extend(numpy_helper.from_array(v.astype(np.float32), n) for n, v in values.items())
        return onnx.shape_inference.infer_shapes(model)

    return make


def rows(model: onnx.ModelProto) -> np.ndarray:
    """Scales of the rows of the last layer y, (2, 1, 1, 1)."""
    return weight(model, "y/rows/scale").reshape(-1, 1, 1, 1)


def ranges(model: onnx.ModelProto) -> tuple[np.ndarray, np.ndarray]:
    return np.abs(weight(model, "w")).max(axis=(1, 2, 3)), np.abs(weight(model, "v")).max(axis=(0, 2, 3))


def test_weights_on_both_sides_are_alike(network):
    model = network("r = Relu(t)\ny = Conv(r, v)")
    made, read = ranges(equalized(model))
    np.testing.assert_allclose(made, read, rtol=0.03)
    before = np.divide(*ranges(model))
    assert before.max() / before.min() > 100


def test_the_bias_takes_the_scale_of_its_channel(network):
    model = network("r = Relu(t)\ny = Conv(r, v)")
    scaled = equalized(model)
    factors = weight(model, "b") / weight(scaled, "b")
    assert np.ptp(factors) > 1
    np.testing.assert_allclose(weight(scaled, "w") * factors.reshape(-1, 1, 1, 1), weight(model, "w"), rtol=1e-5)
    restored = weight(scaled, "v") * rows(scaled) / factors.reshape(-1, 1, 1)
    np.testing.assert_allclose(restored, weight(model, "v"), rtol=1e-5)


def test_a_residual_is_scaled_on_both_sides_of_its_sum_alike(network):
    model = network("r = Relu(t)\np = Conv(r, u)\nq = Add(p, r)\ny = Conv(q, v)")
    scaled = equalized(model)
    factors = weight(model, "b") / weight(scaled, "b")
    restored = weight(scaled, "v") * rows(scaled) / factors.reshape(-1, 1, 1)
    np.testing.assert_allclose(restored, weight(model, "v"), rtol=1e-5)
    # The weight between reads and makes channels of the same scales.
    both = weight(model, "u")[..., 0, 0] * factors[None, :] / factors[:, None]
    np.testing.assert_allclose(weight(scaled, "u")[..., 0, 0], both, rtol=1e-5)
    assert np.ptp(factors) > 1


@pytest.mark.parametrize("lines", [
    "s = Sigmoid(t)\nr = Mul(t, s)\np = Conv(r, v)\ny = MatMul(p, k)",
    "r = Relu(t)\nm = Mul(r, r)\nc = Concat<axis = 1>(r, m)\np = Conv<group = 2>(c, v)\ny = MatMul(p, k)",
])  # fmt: skip
def test_a_network_without_such_channels_is_refused(network, lines):
    model = network(lines)
    assert not can_be_equalized(model)
    with pytest.raises(UsageError, match=r"no channel .* can be scaled"):
        equalized(model)


def test_a_channel_without_weights_stays(network):
    model = network("r = Relu(t)\ny = Conv(r, v)")
    values = weight(model, "w").copy()
    values[1] = 0
    next(each for each in model.graph.initializer if each.name == "w").CopyFrom(numpy_helper.from_array(values, "w"))
    assert weight(equalized(model), "b")[1] == weight(model, "b")[1]


def test_a_weight_of_two_layers_is_copied_first(network, run_network, image):
    model = network("r = Relu(t)\np = Conv(r, u)\nq = Relu(p)\ns = Conv(q, u)\ny = Conv(s, v)")
    scaled = equalized(model)
    assert len({node.input[1] for node in scaled.graph.node if node.op_type == "Conv"}) == 4
    found, expected = (run_network(each, {"images": image(4)}) for each in (scaled, model))
    np.testing.assert_allclose(found["y"], expected["y"], rtol=1e-4, atol=1e-4)


def test_both_default_activations(tiny_pose_model):
    view = GraphView(equalized(prepare_network(tiny_pose_model("relu"))))
    assert view.nodes
    silu = prepare_network(tiny_pose_model("silu"))
    changed, last = GraphView(equalized(silu)), set(last_layers(silu))
    for layer in find_layers(silu):
        same = np.array_equal(changed.constant(layer.weight), GraphView(silu).constant(layer.weight))
        # With SiLU nothing can be scaled but the rows of the last layers.
        assert same == (layer.name not in last or layer.output_shape[1] == 1)


def test_rows_of_a_last_layer_become_as_large_as_the_largest(network, run_network, image):
    model = network("s = Sigmoid(t)\nr = Mul(t, s)\ny = Conv(r, v, c)")
    values = {"v": weight(model, "v") * np.array([[[[1.0]]], [[[0.01]]]]), "c": np.array([1.0, 2.0])}
    for name, value in values.items():
        for each in [each for each in model.graph.initializer if each.name == name]:
            model.graph.initializer.remove(each)
        model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    scaled = equalized(model)
    np.testing.assert_allclose(*np.abs(weight(scaled, "v")).max(axis=(1, 2, 3)), rtol=0.03)
    assert rows(scaled).ravel()[1] < 0.1 < rows(scaled).ravel()[0]
    found, expected = (run_network(each, {"images": image(4)}) for each in (scaled, model))
    np.testing.assert_allclose(found["y"], expected["y"], rtol=1e-4, atol=1e-5)
    view = GraphView(scaled)
    assert [restored_output(view, layer.output) for layer in find_layers(scaled)] == ["t", "y"]


def test_a_row_without_weights_worth_mentioning_does_not_drive_its_bias(network):
    model = network("s = Sigmoid(t)\nr = Mul(t, s)\ny = Conv(r, v)")
    small = weight(model, "v") * np.array([[[[1.0]]], [[[1e-9]]]])
    model.graph.initializer.remove(next(each for each in model.graph.initializer if each.name == "v"))
    model.graph.initializer.append(numpy_helper.from_array(small.astype(np.float32), "v"))
    assert rows(equalized(model)).min() == 2.0**-10
