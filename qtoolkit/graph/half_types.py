"""Which nodes of a quantized graph compute in fp16 when it is typed strongly: rules 2 to 4 of ``strongly_typed``."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from qtoolkit.graph.half import FP16_LIMIT
from qtoolkit.graph.layers import decode_tail, weight_positions
from qtoolkit.graph.plain_weights import with_plain_weights
from qtoolkit.graph.view import GraphView, node_name

__all__ = ["half_nodes"]

_FOLLOWERS = (
    frozenset({"Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Gelu", "Clip", "Tanh", "Softplus", "Mish", "Identity"})
    | frozenset({"Sigmoid", "HardSigmoid", "HardSwish", "Mul", "Add", "Sub", "Div", "Pad", "Resize", "Max", "Min"})
    | frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "Concat", "Split", "Slice", "Flatten", "Gather"})
    | frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "DepthToSpace", "SpaceToDepth", "Expand"})
    | frozenset({"MatMul", "Softmax"})
)
_PAIR = ("QuantizeLinear", "DequantizeLinear")
# The largest value of a pair's grid, times this, must fit: what lies in front of a pair is not clipped yet.
_HEADROOM = 4.0
_LARGEST_8BIT = 127.0
_FLOAT32_INPUTS = {"Resize": (1, 2)}


def half_nodes(view: GraphView, model: onnx.ModelProto, keep_float: frozenset[str]) -> frozenset[int]:
    """Indices of the nodes of ``model`` (seen by ``view``, without Casts between float types) that take fp16."""
    plain = with_plain_weights(model)
    layers = weight_positions(GraphView(plain))
    floating = decode_tail(plain) | keep_float | _beyond_range(view)
    half: set[int] = set()
    for index, node in enumerate(view.nodes):
        name = node_name(node)
        if name in floating or (node.op_type == "DequantizeLinear" and view.is_constant(node.input[0])):
            continue
        if name in layers:
            takes_half = _has_narrow_weight(view, str(node.input[layers[name]]))
        elif node.op_type in _PAIR:
            takes_half = view.elem_type(node.input[1]) in (TensorProto.FLOAT, TensorProto.FLOAT16)
        else:
            takes_half = node.op_type in _FOLLOWERS and _follows(view, node, half)
        if takes_half:
            half.add(index)
    for index, node in enumerate(view.nodes):
        if node.op_type == "DequantizeLinear" and view.is_constant(node.input[0]):
            readers = view.consumer_indices(node.output[0])
            if readers and all(reader in half for reader in readers):
                half.add(index)
    return frozenset(half)


def _has_narrow_weight(view: GraphView, weight: str) -> bool:
    if view.is_constant(weight):
        return view.elem_type(weight) == TensorProto.FLOAT16
    producer = view.producer(weight)
    return producer is not None and producer.op_type in (*_PAIR, "Cast")


def _follows(view: GraphView, node: onnx.NodeProto, half: set[int]) -> bool:
    skipped = _FLOAT32_INPUTS.get(node.op_type, ())
    tensors = [str(name) for i, name in enumerate(node.input) if name and i not in skipped]
    floats = [name for name in tensors if view.elem_type(name) in (0, TensorProto.FLOAT, TensorProto.FLOAT16)]
    data = [name for name in floats if not view.is_constant(name)]
    constants = [np.abs(value) for name in floats if (value := view.constant(name)) is not None]
    fits = all(float(value.max(initial=0.0)) <= FP16_LIMIT for value in constants)
    return bool(data) and fits and all(view.producer_index(name) in half for name in data)


def _beyond_range(view: GraphView) -> frozenset[str]:
    """Nodes around the pairs whose grids reach so far that fp16 could overflow there."""
    found: set[str] = set()
    for node in view.nodes:
        if node.op_type not in _PAIR or view.is_constant(node.input[0]):
            continue
        scale = view.constant(node.input[1])
        if scale is not None and float(np.abs(scale).max(initial=0.0)) * _LARGEST_8BIT * _HEADROOM > FP16_LIMIT:
            producer = view.producer(node.input[0])
            near = [node, *([] if producer is None else [producer]), *view.consumers(node.output[0])]
            found |= {node_name(each) for each in near}
    return frozenset(found)
