"""What in a network is a layer, and what merely decodes the outputs of the last ones.

A layer is a Conv, ConvTranspose, Gemm or MatMul with one constant operand of two dimensions or more: its weight.
Not a layer, although it has the form of one, is arithmetic with constants that nobody trained:

- an expectation over bins (the "DFL" of YOLOv8 and its kin): one output channel, and weights 0, 1, … n−1; or, behind
  a Softmax, any evenly spaced weights;
- a coordinate map, such as (cx, cy, w, h) → (x1, y1, x2, y2): a MatMul or Gemm with at most 64 weights, each one 0,
  ±½ or ±1.

Taking such a node for a layer would pull the box arithmetic before it out of the decode tail and into 8 bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx

from qtoolkit.errors import ModelFileError
from qtoolkit.graph.macs import node_macs
from qtoolkit.graph.view import GraphView, attribute, node_name

__all__ = [
    "LAYER_OPS",
    "Layer",
    "Structure",
    "decode_tail",
    "find_layers",
    "last_layers",
    "layer_levels",
    "layer_neighbours",
    "weight_positions",
]

LAYER_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_SHAPE_ONLY_OPS = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Cast"})
_COORDINATE_MAP_SIZE = 64
# Weights that were rebuilt from 8 or 16 bits miss the whole numbers by a little.
_BIN_TOLERANCE = 0.01


@dataclass(frozen=True)
class Layer:
    """One quantizable unit of the network.

    ``name`` is the node's name. ``input`` and ``output`` are its activation tensors, ``weight`` and ``bias`` the names
    of its constants (``bias`` None where there is none, as for every MatMul). Shapes are those of the tensors: NCHW
    for Conv and ConvTranspose. ``weight_channel_axis`` is the axis of the weight along which output channels lie
    (for a grouped ConvTranspose it holds output channels / ``group`` entries, each used once per group). ``macs`` is
    multiply-adds per image, as ``graph.macs`` counts them.
    """

    name: str
    op_type: str
    input: str
    output: str
    weight: str
    bias: str | None
    weight_shape: tuple[int, ...]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    group: int
    macs: int
    weight_channel_axis: int


@dataclass(frozen=True, eq=False)
class Structure:
    """What is known of a network's graph, found once where many plans are tried on it: index, layers, tail, last
    layers."""

    view: GraphView
    layers: dict[str, Layer]
    tail: frozenset[str]
    last: frozenset[str]

    @classmethod
    def of(cls, model: onnx.ModelProto) -> Structure:
        """The structure of ``model``, which must not be changed afterwards. Raises as ``find_layers`` does."""
        layers = {layer.name: layer for layer in find_layers(model)}
        return cls(GraphView(model), layers, decode_tail(model), frozenset(last_layers(model)))


def find_layers(model: onnx.ModelProto) -> tuple[Layer, ...]:
    """The layers of ``model`` in the order of its nodes, which is topological.

    Raises ModelFileError where the shape of a layer's input or output is not known.
    """
    view = GraphView(model)
    return tuple(_describe(view, view.nodes[index], operand) for index, operand in _layer_operands(view).items())


def decode_tail(model: onnx.ModelProto) -> frozenset[str]:
    """Names of the nodes that are no layers and from which no layer is reachable.

    They are what follows the last layers: activation functions of the outputs, DFL, anchors, the Concat of boxes,
    scores and keypoints, NMS. Names are unique in a prepared network.
    """
    view = GraphView(model)
    layers = _layer_operands(view)
    ahead = _layers_ahead(view, layers)
    return frozenset(node_name(view.nodes[i]) for i in range(len(view.nodes)) if i not in layers and not ahead[i])


def last_layers(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the layers from which no other layer is reachable, in topological order."""
    view = GraphView(model)
    layers = _layer_operands(view)
    ahead = _layers_ahead(view, layers)
    return tuple(node_name(view.nodes[index]) for index in layers if not ahead[index])


def layer_neighbours(model: onnx.ModelProto) -> dict[str, tuple[str, ...]]:
    """Layer → the layers that read its output, directly or through nodes that are no layers, in topological order."""
    view = GraphView(model)
    layers = _layer_operands(view)
    # For each node, the layers whose outputs reach it without passing another layer.
    sources: list[frozenset[int]] = []
    following: dict[int, list[int]] = {index: [] for index in layers}
    for index in range(len(view.nodes)):
        producers = {view.producer_index(name) for name in view.reads(index)} - {None}
        reaching = frozenset[int]().union(*(sources[p] for p in producers if p is not None and p < index))
        if index in layers:
            for source in sorted(reaching):
                following[source].append(index)
        sources.append(frozenset({index}) if index in layers else reaching)
    return {node_name(view.nodes[i]): tuple(node_name(view.nodes[j]) for j in after) for i, after in following.items()}


def layer_levels(model: onnx.ModelProto) -> tuple[tuple[str, ...], ...]:
    """The layers by the largest number of layers in front of them: none sees another of its level, only earlier ones.

    Within a level they stand in topological order.
    """
    levels: dict[str, int] = {}
    following = layer_neighbours(model)
    for name, after in following.items():
        level = levels.setdefault(name, 0)
        for other in after:
            levels[other] = max(levels.get(other, 0), level + 1)
    found: list[list[str]] = [[] for _ in range(max(levels.values(), default=-1) + 1)]
    for name in following:
        found[levels[name]].append(name)
    return tuple(tuple(names) for names in found)


def weight_positions(view: GraphView) -> dict[str, int]:
    """Layer → position of its weight among the inputs of its node, in topological order; no shapes are needed."""
    return {node_name(view.nodes[index]): position for index, position in _layer_operands(view).items()}


def _layer_operands(view: GraphView) -> dict[int, int]:
    """Index of each layer's node → position of the weight among its inputs, in graph order."""
    operands: dict[int, int] = {}
    for index, node in enumerate(view.nodes):
        position = _weight_position(view, node)
        if position is not None and not _is_fixed_arithmetic(view, node, position):
            operands[index] = position
    return operands


def _weight_position(view: GraphView, node: onnx.NodeProto) -> int | None:
    if node.op_type not in LAYER_OPS or node.domain not in ("", "ai.onnx"):
        return None
    constant = [view.is_constant(name) and len(view.shape(name) or ()) >= 2 for name in node.input[:2]]
    if constant == [False, True]:
        return 1
    return 0 if constant == [True, False] and node.op_type == "MatMul" and not view.is_constant(node.input[1]) else None


def _weight_channel_axis(node: onnx.NodeProto, position: int, rank: int) -> int:
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return rank - 1 if position == 1 else rank - 2


def _is_fixed_arithmetic(view: GraphView, node: onnx.NodeProto, position: int) -> bool:
    shape = view.shape(node.input[position]) or ()
    if prod(shape) > max(_COORDINATE_MAP_SIZE, *shape):
        return False  # most weights: told by their shape, without decoding them
    weight = view.constant(node.input[position])
    if weight is None or weight.size == 0 or weight.dtype.kind != "f":
        return False
    small_matrix = node.op_type in ("MatMul", "Gemm") and weight.size <= _COORDINATE_MAP_SIZE
    if small_matrix and bool(np.isin(np.abs(weight), (0.0, 0.5, 1.0)).all()):
        return True
    channels = weight.shape[_weight_channel_axis(node, position, weight.ndim)]
    # One output channel, and no kernel: as many weights as the one axis that is summed over.
    if channels != 1 or weight.size != max(weight.shape) or _has_bias(view, node):
        return False
    bins = weight.reshape(-1).astype(np.float64)
    if bins.size >= 2 and bool(np.allclose(bins, np.arange(bins.size), rtol=0.0, atol=_BIN_TOLERANCE)):
        return True
    return _evenly_spaced(bins) and _follows_softmax(view, node.input[1 - position])


def _has_bias(view: GraphView, node: onnx.NodeProto) -> bool:
    if len(node.input) < 3 or not node.input[2]:
        return False
    bias = view.constant(node.input[2])
    return bias is None or bool(np.any(bias != 0))


def _evenly_spaced(bins: np.ndarray[Any, Any]) -> bool:
    if bins.size < 3 or bins[0] == bins[-1]:
        return False
    even = np.linspace(bins[0], bins[-1], bins.size)
    return bool(np.allclose(bins, even, rtol=0.0, atol=_BIN_TOLERANCE * abs(even[1] - even[0])))


def _follows_softmax(view: GraphView, tensor: str) -> bool:
    producer = view.producer(tensor)
    while producer is not None and producer.op_type in _SHAPE_ONLY_OPS:
        producer = view.producer(producer.input[0])
    return producer is not None and producer.op_type == "Softmax"


def _layers_ahead(view: GraphView, layers: dict[int, int]) -> list[bool]:
    """For each node, whether a layer is reachable from its outputs."""
    ahead = [False] * len(view.nodes)
    for index in range(len(view.nodes) - 1, -1, -1):
        users = {user for name in view.nodes[index].output if name for user in view.consumer_indices(name)}
        ahead[index] = any(user in layers or ahead[user] for user in users)
    return ahead


def _describe(view: GraphView, node: onnx.NodeProto, position: int) -> Layer:
    weight, activation = node.input[position], node.input[1 - position]
    shapes = {name: view.shape(name) for name in (weight, activation, node.output[0])}
    for name, shape in shapes.items():
        if shape is None:
            raise ModelFileError(
                f"layer {node_name(node)!r} ({node.op_type}) has a tensor whose shape is not fixed",
                expected="fixed shapes at the input and the output of every layer",
                found=f"tensor {name!r} with an unknown shape",
                do="give the input size with --input-size, or export the network with fixed shapes",
            )
    weight_shape = shapes[weight] or ()
    has_bias = len(node.input) > 2 and view.is_constant(node.input[2])
    return Layer(
        name=node_name(node),
        op_type=node.op_type,
        input=activation,
        output=node.output[0],
        weight=weight,
        bias=node.input[2] if has_bias else None,
        weight_shape=weight_shape,
        input_shape=shapes[activation] or (),
        output_shape=shapes[node.output[0]] or (),
        group=int(attribute(node, "group", 1)),
        macs=node_macs(view, node),
        weight_channel_axis=_weight_channel_axis(node, position, len(weight_shape)),
    )
