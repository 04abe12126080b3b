"""Put layers into fp16: fp16 tensors inside, Casts at the borders.

Rules:

1. The named layers run in fp16: their constants are stored as fp16, their inputs are cast.
2. An operator behind them that is no layer follows, if it is one of ``_FOLLOWERS`` and every tensor it computes with comes
   out of an fp16 node: activation functions, residual adds, concats, pooling and resizing between fp16 layers need no Cast.
3. The decode tail and Q/DQ pairs stay in fp32 (fp32 scales are what TensorRT's weakly typed dialect needs).
4. One Cast a tensor and direction, right behind its producer.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qtoolkit.errors import ModelFileError
from qtoolkit.graph.layers import decode_tail
from qtoolkit.graph.view import GraphView, node_name

__all__ = ["FP16_LIMIT", "convert_half"]

FP16_LIMIT = 65504.0
"""Largest finite fp16 number."""

_FOLLOWERS = frozenset(
    "Relu LeakyRelu PRelu Sigmoid HardSigmoid HardSwish Mish Gelu Elu Tanh Softplus Clip Mul Add Sub Concat Split Slice "
    "MaxPool AveragePool GlobalAveragePool Resize Pad Reshape Transpose Squeeze Unsqueeze Flatten DepthToSpace "
    "SpaceToDepth".split()
)
# Inputs that are not data although they are float: the region and the scales of a Resize.
_FLOAT32_INPUTS = {"Resize": (1, 2)}


def convert_half(model: onnx.ModelProto, layers: Collection[str]) -> onnx.ModelProto:
    """A copy of ``model`` (the model itself where there are none) with the layers named in ``layers`` (and what follows them, rule 2) in fp16.

    Inputs and outputs of the network keep name and type. Raises ModelFileError for a constant beyond fp16's range.
    """
    if not layers:
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    view = GraphView(copy)
    half = _half_nodes(view, frozenset(layers), decode_tail(copy))
    made = {output for index in half for output in view.nodes[index].output if output}
    nodes, casts, constants = [], set[str](), dict[str, TensorProto]()
    for index, node in enumerate(view.nodes):
        if index not in half:
            nodes.append(node)
            continue
        for position, tensor in enumerate(node.input):
            if not tensor or position in _FLOAT32_INPUTS.get(node.op_type, ()) or not _is_float32(view, tensor):
                continue
            node.input[position] = _as_half(view, tensor, made, nodes, casts, constants)
        outputs = [str(output) for output in node.output if output and _is_float32(view, output)]
        for position, output in enumerate(node.output):
            if output in outputs:
                node.output[position] = f"{output}/fp16"
        nodes.append(node)
        nodes += [_cast(f"{name}/fp16", name, TensorProto.FLOAT) for name in outputs if _read_in_float(view, name, half)]
    _replace(copy, nodes, constants)
    return copy


def _half_nodes(view: GraphView, layers: frozenset[str], tail: frozenset[str]) -> frozenset[int]:
    half: set[int] = set()
    for index, node in enumerate(view.nodes):
        name = node_name(node)
        if name in layers:
            half.add(index)
        elif node.op_type in _FOLLOWERS and name not in tail:
            skipped = _FLOAT32_INPUTS.get(node.op_type, ())
            data = [t for i, t in enumerate(node.input) if t and i not in skipped and not view.is_constant(t)]
            if data and all(view.producer_index(tensor) in half for tensor in data):
                half.add(index)
    return frozenset(half)


def _is_float32(view: GraphView, tensor: str) -> bool:
    return view.elem_type(tensor) in (TensorProto.FLOAT, TensorProto.UNDEFINED)


def _read_in_float(view: GraphView, tensor: str, half: frozenset[int]) -> bool:
    return tensor in view.outputs or any(index not in half for index in view.consumer_indices(tensor))


def _cast(source: str, result: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [result], name=f"{result}/Cast", to=to)


def _as_half(
    view: GraphView,
    tensor: str,
    made: set[str],
    nodes: list[onnx.NodeProto],
    casts: set[str],
    constants: dict[str, TensorProto],
) -> str:
    name = f"{tensor}/fp16"
    if tensor in made:
        return name
    value = view.constant(tensor)
    if value is not None:
        constants.setdefault(name, numpy_helper.from_array(_half_constant(tensor, value), name))
    elif name not in casts:
        casts.add(name)
        nodes.append(_cast(tensor, name, TensorProto.FLOAT16))
    return name


def _half_constant(tensor: str, value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    largest = float(np.abs(value).max(initial=0.0))
    if largest > FP16_LIMIT:
        raise ModelFileError(
            f"constant {tensor!r} does not fit fp16",
            expected=f"absolute values up to {FP16_LIMIT:.0f}",
            found=f"{largest:.6g}",
            do="give its layer another precision in the plan (fp32, int8 or int16)",
        )
    return value.astype(np.float16)


def _replace(model: onnx.ModelProto, nodes: list[onnx.NodeProto], constants: dict[str, TensorProto]) -> None:
    graph = model.graph
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    used = {name for node in copies for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    made = {name for node in copies for name in node.output}
    known = [value for value in graph.value_info if value.name in made]
    for field, values in ((graph.node, copies), (graph.initializer, [*kept, *constants.values()]), (graph.value_info, known)):
        del field[:]
        field.extend(values)
