"""Put layers into fp16: fp16 tensors inside, Casts at the borders.

Rules:

1. The named layers run in fp16: their constants are stored as fp16, their inputs are cast.
2. An operator behind them that is no layer follows, if it is one of ``_FOLLOWERS``, every tensor it computes with comes
   out of an fp16 node and its constants fit: activation functions, residual adds, concats, pooling and resizing between
   fp16 layers need no Cast.
3. The decode tail and Q/DQ pairs stay in fp32 (fp32 scales are what TensorRT's weakly typed dialect needs).
4. One Cast a tensor and direction.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qtoolkit.errors import ModelFileError
from qtoolkit.graph.layers import decode_tail
from qtoolkit.graph.tidy import rewrite_graph_
from qtoolkit.graph.view import GraphView, node_name

__all__ = ["FP16_LIMIT", "convert_half"]

FP16_LIMIT = 65504.0
"""Largest finite fp16 number."""

_FOLLOWERS = (
    frozenset({"Relu", "LeakyRelu", "PRelu", "Elu", "Gelu", "Clip", "Tanh", "Softplus", "Mish"})
    | frozenset({"Sigmoid", "HardSigmoid", "HardSwish", "Mul", "Add", "Sub", "Pad", "Resize"})
    | frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "Concat", "Split", "Slice", "Flatten"})
    | frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "DepthToSpace", "SpaceToDepth"})
)
# Inputs that are not data although they are float: the region and the scales of a Resize.
_FLOAT32_INPUTS = {"Resize": (1, 2)}


def convert_half(model: onnx.ModelProto, layers: Collection[str], keep_float: Collection[str] = ()) -> onnx.ModelProto:
    """A copy of ``model`` with ``layers`` and what follows them (rule 2) in fp16; ``model`` itself without any.

    Nodes named in ``keep_float`` do not follow. Inputs and outputs of the network keep name and type. Raises
    ModelFileError for a constant of a layer beyond fp16's range.
    """
    if not layers:
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    view = GraphView(copy)
    half = _half_nodes(view, frozenset(layers), decode_tail(copy) | frozenset(keep_float))
    writer = _Writer(view, half)
    for index, node in enumerate(view.nodes):
        if index in half:
            writer.lower(node)
        else:
            writer.nodes.append(node)
    rewrite_graph_(copy, writer.nodes, writer.constants.values())
    return copy


def _half_nodes(view: GraphView, layers: frozenset[str], floating: frozenset[str]) -> frozenset[int]:
    half: set[int] = set()
    for index, node in enumerate(view.nodes):
        name = node_name(node)
        if name in layers:
            half.add(index)
        elif node.op_type in _FOLLOWERS and name not in floating:
            tensors = [tensor for _, tensor in _converted_inputs(view, node)]
            data = [tensor for tensor in tensors if not view.is_constant(tensor)]
            # A Clip without an upper bound carries float32's largest number.
            constants_fit = all(_largest(view, tensor) <= FP16_LIMIT for tensor in tensors)
            if data and constants_fit and all(view.producer_index(tensor) in half for tensor in data):
                half.add(index)
    return frozenset(half)


def _converted_inputs(view: GraphView, node: onnx.NodeProto) -> list[tuple[int, str]]:
    """Positions and names of the inputs of ``node`` that are fp16 where the node is."""
    skipped = _FLOAT32_INPUTS.get(node.op_type, ())
    inputs = enumerate(map(str, node.input))
    return [(i, tensor) for i, tensor in inputs if tensor and i not in skipped and _is_float32(view, tensor)]


def _is_float32(view: GraphView, tensor: str) -> bool:
    return view.elem_type(tensor) in (TensorProto.FLOAT, TensorProto.UNDEFINED)


def _largest(view: GraphView, tensor: str) -> float:
    value = view.constant(tensor)
    return 0.0 if value is None else float(np.abs(value).max(initial=0.0))


class _Writer:
    """Collects the nodes of the new graph, in order, with the Casts and the fp16 constants that they need."""

    def __init__(self, view: GraphView, half: frozenset[int]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, TensorProto] = {}
        self._view = view
        self._half = half
        self._made = {output for index in half for output in view.nodes[index].output if output}
        self._casts: set[str] = set()

    def lower(self, node: onnx.NodeProto) -> None:
        """Add ``node`` on fp16 tensors, in front of it the Casts it needs and behind it those its readers need."""
        for position, tensor in _converted_inputs(self._view, node):
            node.input[position] = self._as_half(tensor)
        outputs = [str(output) for output in node.output]
        lowered = [output for output in outputs if output and _is_float32(self._view, output)]
        for position, output in enumerate(outputs):
            if output in lowered:
                node.output[position] = _half_name(output)
        self.nodes.append(node)
        self.nodes += [
            _cast(_half_name(output), output, TensorProto.FLOAT) for output in lowered if self._read_in_float(output)
        ]

    def _as_half(self, tensor: str) -> str:
        name = _half_name(tensor)
        value = self._view.constant(tensor)
        if value is not None:
            self.constants.setdefault(name, numpy_helper.from_array(_half_constant(tensor, value), name))
        elif tensor not in self._made and name not in self._casts:
            self._casts.add(name)
            self.nodes.append(_cast(tensor, name, TensorProto.FLOAT16))
        return name

    def _read_in_float(self, tensor: str) -> bool:
        readers = self._view.consumer_indices(tensor)
        return tensor in self._view.outputs or any(index not in self._half for index in readers)


def _half_name(tensor: str) -> str:
    return f"{tensor}/fp16"


def _cast(source: str, result: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [result], name=f"{result}/Cast", to=to)


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
