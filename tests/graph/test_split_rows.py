from __future__ import annotations

import numpy as np
import onnx
import pytest

from qtoolkit.artifacts.plan import Precision
from qtoolkit.graph.layers import Structure
from qtoolkit.graph.load import prepare_network
from qtoolkit.graph.placement import Placement, QuantizedTensor
from qtoolkit.graph.qdq import LayerWeights, insert_qdq
from qtoolkit.graph.split_rows import RowSplit, order_readers, split_rows
from qtoolkit.graph.view import GraphView
from qtoolkit.numerics.affine import IntegerGrid, QuantParams, params_from_range

GRID = IntegerGrid(8, signed=True, symmetric=True, narrow_range=True)


def _splits(structure, seed=0):
    """Every layer that can be split, in two groups drawn at random."""
    random = np.random.default_rng(seed)
    splits = {}
    for name, layer in structure.layers.items():
        readers = None if name in structure.last else order_readers(structure, layer)
        rows = layer.weight_shape[0]
        if layer.op_type == "Conv" and rows > 1 and (name in structure.last or readers is not None):
            groups = np.split(random.permutation(rows), [rows // 3 or 1])
            splits[name] = RowSplit(tuple(np.sort(group) for group in groups), readers)
    return splits


def _weights(structure, splits):
    """Weights on grids with one scale a group, written as one a channel."""
    found = {}
    for name, split in splits.items():
        layer = structure.layers[name]
        weight = structure.view.constant(layer.weight)
        scale = np.ones(len(weight), np.float32)
        for rows in split.groups:
            scale[rows] = np.abs(weight[rows]).max() / 127
        params = QuantParams(scale, np.zeros(len(weight), np.int8), GRID, 0)
        found[name] = LayerWeights.quantized(weight, params, structure.view.constant(layer.bias), 0.01)
    return found


@pytest.mark.parametrize("activation", ["silu", "relu"])
def test_a_whole_network_computes_the_same(tiny_pose_model, run_network, image, activation):
    model = prepare_network(tiny_pose_model(activation))
    structure = Structure.of(model)
    splits = _splits(structure)
    assert len(splits) >= 8 and any(split.readers is None for split in splits.values())
    placement = Placement({}, dict.fromkeys(splits, Precision.INT8))
    plain = insert_qdq(model, placement, {}, _weights(structure, splits))
    divided = split_rows(plain, structure.layers, splits, frozenset({"Relu"}))
    onnx.checker.check_model(divided)
    view = GraphView(divided)
    assert len(view.ancestors(view.outputs)) == len(view.nodes)
    before, after = (run_network(network, {"images": image(64)}) for network in (plain, divided))
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, rtol=1e-4, atol=1e-3)


def _net(parse_network, body, output="float[1,4,4,4] y"):
    random = np.random.default_rng(1)
    model = parse_network(f"net (float[1,3,4,4] images) => ({output}) {{ {body} }}")
    for name, shape in (("wa", (6, 3, 1, 1)), ("wb", (2, 3, 1, 1)), ("wc", (4, 8, 1, 1)), ("wd", (4, 6, 1, 1))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name))
    return prepare_network(model)


def test_readers_behind_a_concat_begin_where_the_channels_lie(parse_network):
    model = _net(parse_network, "b = Conv(images, wb) a = Conv(images, wa) r = Relu(a) c = Concat<axis=1>(b, r) "
                 "y = Conv(c, wc)")  # fmt: skip
    structure = Structure.of(model)
    assert order_readers(structure, structure.layers["a"]) == (("y", 2),)
    assert order_readers(structure, structure.layers["b"]) == (("y", 0),)


@pytest.mark.parametrize("body", [
    "a = Conv(images, wa) s = Add(a, a) y = Conv(s, wd)",
    "a = Conv(images, wa) s = Softmax<axis=1>(a) y = Conv(s, wd)",
    "a = Conv(images, wa) s = Sigmoid(a) t = Mul(a, s) u = Add(t, s) y = Conv(u, wd)",
])  # fmt: skip
def test_where_the_order_matters_it_stays(parse_network, body):
    structure = Structure.of(_net(parse_network, body))
    assert order_readers(structure, structure.layers["a"]) is None


def test_each_part_lies_on_the_grid_of_the_whole(parse_network, run_network):
    model = _net(parse_network, "a = Conv(images, wa) r = Relu(a) y = Conv(r, wd)")
    structure = Structure.of(model)
    split = RowSplit((np.array([1, 4, 5]), np.array([0, 2, 3])), order_readers(structure, structure.layers["a"]))
    params = params_from_range(0.0, 2.0, IntegerGrid(8, signed=False, symmetric=False))
    placement = Placement({("r", 8): QuantizedTensor("r", 8, None, "r")}, {})
    plain = insert_qdq(model, placement, {("r", 8): params}, {})
    divided = split_rows(plain, structure.layers, {"a": split}, frozenset({"Relu"}))
    view = GraphView(divided)
    concat = next(node for node in view.nodes if node.op_type == "Concat")
    assert [view.producer(tensor).op_type for tensor in concat.input] == ["DequantizeLinear"] * 2
    assert [view.producer(view.producer(f"a/part{i}/quantized").input[0]).op_type for i in (0, 1)] == ["Relu"] * 2
    feeds = {"images": np.random.default_rng(2).random((1, 3, 4, 4), dtype=np.float32)}
    np.testing.assert_allclose(run_network(divided, feeds)["y"], run_network(plain, feeds)["y"], rtol=1e-5, atol=1e-5)
    # What was replaced is gone.
    names = {tensor.name for tensor in divided.graph.initializer}
    assert names == {name for node in view.nodes for name in node.input} & names and "wa" not in names
