"""Find what TensorRT refuses, or runs slower or worse than it could, in the Q/DQ pairs of a graph.

Rules, from NVIDIA's "Working with Quantized Types" and what its ONNX parser refuses:

- ``opset``: the dialect's range of opsets; ``scale-type``: fp16 scales are for some strongly typed targets only.
- ``zero-point``: every zero point is 0. ``integer-type``: 8-bit signed integers only, biases are left in float.
- ``scale``: a scale is a constant above 0. ``weight-axis``: along the output channels, 0 for Conv, 1 for ConvTranspose;
  ``activation-axis``: activations have one scale.
- ``unpaired``: a Q whose integers nobody dequantizes, or a DQ of integers that are no constant and come from no Q.
- ``split-fusion``: a pair between a layer and its activation function keeps the runtime from fusing the two.
- ``half-quantized``: a layer with an 8-bit weight but a float input, or the other way round, runs in float.
- ``residual``: an Add between 8-bit layers with a pair on one input only.
- ``shared-scale``: the quantized inputs of a Concat, or input and output of a pooling or a reshaping, with different
  scales: the runtime converts between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto

from qtoolkit.artifacts.target import Target
from qtoolkit.graph.layers import weight_positions
from qtoolkit.graph.plain_weights import with_plain_weights
from qtoolkit.graph.read import default_opset
from qtoolkit.graph.view import GraphView, attribute, node_name

__all__ = ["Finding", "lint_qdq"]

_Q, _DQ = "QuantizeLinear", "DequantizeLinear"
_SHARING = frozenset({"MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice"})
_ACTIVATIONS = frozenset({"Relu", "LeakyRelu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "PRelu", "Tanh", "Elu"})


@dataclass(frozen=True)
class Finding:
    """``node`` breaks ``rule``: what is wrong and what to do. An ``error`` is refused, a ``warning`` costs time."""

    rule: str
    severity: Literal["error", "warning"]
    node: str
    what: str
    do: str

    def __str__(self) -> str:
        return f"{self.severity} {self.rule}: {self.node}: {self.what}; {self.do}"


def lint_qdq(model: onnx.ModelProto, target: Target) -> tuple[Finding, ...]:
    """What ``target`` (a row with ``opsets``) would refuse or run badly in ``model``; empty where all is well."""
    graph = _Graph(model, target)
    checks: tuple[Callable[[_Graph], Iterator[Finding]], ...] = (
        _opset, _grids, _axes, _unpaired, _split_fusions, _half_quantized, _residuals, _shared_scales,
    )  # fmt: skip
    return tuple(finding for check in checks for finding in check(graph))


class _Graph:
    """A quantized graph, its pairs and its layers."""

    def __init__(self, model: onnx.ModelProto, target: Target) -> None:
        self.model = model
        self.target = target
        self.view = GraphView(model)
        self.layers = weight_positions(GraphView(with_plain_weights(model)))
        self.pairs = [node for node in self.view.nodes if node.op_type in (_Q, _DQ)]

    def is_weight_pair(self, node: onnx.NodeProto) -> bool:
        """Whether a DQ works on a constant."""
        return node.op_type == _DQ and self.view.is_constant(node.input[0])

    def dequantizer(self, tensor: str) -> onnx.NodeProto | None:
        """The DQ that makes ``tensor``, or None."""
        producer = self.view.producer(tensor)
        return producer if producer is not None and producer.op_type == _DQ else None

    def scale(self, node: onnx.NodeProto) -> float | None:
        """The scale of a pair with one scale; None where it is no constant, or a vector."""
        value = self.view.constant(node.input[1])
        return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else None

    def quantizer_behind(self, tensor: str) -> onnx.NodeProto | None:
        """The Q that reads ``tensor``, where one does."""
        return next((node for node in self.view.consumers(tensor) if node.op_type == _Q), None)


def _opset(graph: _Graph) -> Iterator[Finding]:
    opset = default_opset(graph.model) or 0
    lowest, highest = graph.target.opsets or (opset, opset)
    if graph.pairs and not lowest <= opset <= highest:
        # Newer versions read newer opsets; their own parser says so if they do not.
        yield Finding(
            "opset", "error" if opset < lowest else "warning", "the network",
            f"opset {opset}, {graph.target.name} takes {lowest} to {highest} in every version",
            f"export the float network at opset {min(highest, 17)} and quantize it again",
        )  # fmt: skip
    for node in graph.pairs:
        if not graph.target.half_scales and graph.view.elem_type(node.input[1]) == TensorProto.FLOAT16:
            yield Finding(
                "scale-type", "warning" if graph.target.strongly_typed else "error", node_name(node),
                f"an fp16 scale, {graph.target.name} computes with float32 ones",
                f"build for --target {graph.target.name} from the network as `qtool quantize` wrote it",
            )  # fmt: skip


def _grids(graph: _Graph) -> Iterator[Finding]:
    for node in graph.pairs:
        name = node_name(node)
        scale = graph.view.constant(node.input[1])
        if scale is None or not bool(np.all(np.isfinite(scale) & (scale > 0))):
            found = "a scale that is computed" if scale is None else "a scale that is not above 0"
            yield Finding("scale", "error", name, found, "quantize with constant scales")
        kind = graph.view.elem_type(node.input[2]) if len(node.input) > 2 and node.input[2] else TensorProto.UINT8
        if kind != TensorProto.INT8:
            bits = TensorProto.DataType.Name(kind).lower()
            yield Finding(
                "integer-type", "error", name, f"integers of type {bits}, TensorRT takes int8",
                f"quantize the float network with --target {graph.target.name}",
            )  # fmt: skip
            continue
        zero = graph.view.constant(node.input[2])
        if zero is None or bool(np.any(zero != 0)):
            found = "computed" if zero is None else str(int(np.abs(zero).max()))
            yield Finding(
                "zero-point", "error", name, f"a zero point other than 0 ({found})",
                f"quantize the float network with --target {graph.target.name} (symmetric)",
            )  # fmt: skip


def _axes(graph: _Graph) -> Iterator[Finding]:
    weights = _weight_dequantizers(graph)
    for node in graph.pairs:
        scale = graph.view.constant(node.input[1])
        if scale is None or scale.size <= 1:
            continue
        name, axis = node_name(node), int(attribute(node, "axis", 1))
        if not graph.is_weight_pair(node) and name not in weights:
            yield Finding(
                "activation-axis", "error", name, f"{scale.size} scales on an activation",
                "quantize activations per tensor",
            )  # fmt: skip
        elif name in weights and axis != weights[name][1]:
            reader, wanted = weights[name]
            yield Finding(
                "weight-axis", "error", name, f"scales along axis {axis} of the weight of {reader}",
                f"quantize along axis {wanted}, its output channels",
            )  # fmt: skip


def _weight_dequantizers(graph: _Graph) -> dict[str, tuple[str, int]]:
    """DQ of a weight → (layer that reads it, axis of its output channels)."""
    found: dict[str, tuple[str, int]] = {}
    for layer in graph.view.nodes:
        position = graph.layers.get(node_name(layer))
        dequantizer = None if position is None else graph.dequantizer(layer.input[position])
        if dequantizer is None or position is None:
            continue
        axis = {"Conv": 0, "ConvTranspose": 1}.get(layer.op_type)
        if axis is None:
            rank = len(graph.view.shape(dequantizer.input[0]) or (0, 0))
            transposed = layer.op_type == "Gemm" and bool(attribute(layer, "transB", 0))
            axis = 0 if transposed else rank - (1 if position == 1 else 2)
        found[node_name(dequantizer)] = (node_name(layer), axis)
    return found


def _unpaired(graph: _Graph) -> Iterator[Finding]:
    for node in graph.pairs:
        if node.op_type == _Q:
            readers = graph.view.consumers(node.output[0])
            alone = not readers or any(reader.op_type != _DQ for reader in readers)
        else:
            producer = graph.view.producer(node.input[0])
            quantized = producer is not None and producer.op_type == _Q
            alone = not quantized and not graph.view.is_constant(node.input[0])
        if alone:
            yield Finding(
                "unpaired", "error", node_name(node), f"{node.op_type} without its other half",
                "put a DequantizeLinear behind every QuantizeLinear",
            )  # fmt: skip


def _split_fusions(graph: _Graph) -> Iterator[Finding]:
    for node in graph.pairs:
        producer = graph.view.producer(node.input[0])
        if node.op_type != _Q or producer is None or node_name(producer) not in graph.layers:
            continue
        dequantizers = graph.view.consumers(node.output[0])
        behind = [reader for each in dequantizers for reader in graph.view.consumers(each.output[0])]
        if any(reader.op_type in _ACTIVATIONS for reader in behind):
            yield Finding(
                "split-fusion", "warning", node_name(node),
                f"a pair between {node_name(producer)} and its activation function",
                f"quantize behind the activation function (--target {graph.target.name} does)",
            )  # fmt: skip


def _half_quantized(graph: _Graph) -> Iterator[Finding]:
    for node in graph.view.nodes:
        position = graph.layers.get(node_name(node))
        if position is None:
            continue
        weight, data = (graph.dequantizer(node.input[i]) is not None for i in (position, 1 - position))
        if weight != data:
            missing = "its input has no pair" if weight else "its weight has no pair"
            yield Finding(
                "half-quantized", "warning", node_name(node), f"{missing}, so it runs in float",
                "quantize both, or neither",
            )  # fmt: skip


def _residuals(graph: _Graph) -> Iterator[Finding]:
    for node in graph.view.nodes:
        shapes = [graph.view.shape(tensor) for tensor in node.input]
        if node.op_type != "Add" or any(graph.view.is_constant(tensor) for tensor in node.input):
            continue
        paired = [graph.dequantizer(tensor) is not None for tensor in node.input]
        if shapes[0] == shapes[1] and any(paired) and not all(paired):
            yield Finding(
                "residual", "warning", node_name(node), "a pair on one input of a residual Add only",
                "quantize both inputs, so that it fuses with the layer in front of it",
            )  # fmt: skip


def _shared_scales(graph: _Graph) -> Iterator[Finding]:
    for node in graph.view.nodes:
        if node.op_type == "Concat":
            dequantizers = [graph.dequantizer(tensor) for tensor in node.input]
            scales = {graph.scale(each) for each in dequantizers if each is not None}
        elif node.op_type in _SHARING:
            before, after = graph.dequantizer(node.input[0]), graph.quantizer_behind(node.output[0])
            scales = {graph.scale(each) for each in (before, after) if before is not None and each is not None}
        else:
            continue
        if len(scales) > 1:
            listed = ", ".join(f"{scale:.4g}" for scale in sorted(each for each in scales if each is not None))
            yield Finding(
                "shared-scale", "warning", node_name(node), f"different scales around a {node.op_type} ({listed})",
                "give all of its quantized tensors one range",
            )  # fmt: skip
