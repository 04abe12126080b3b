"""Multiply-adds (MACs) of a network at its fixed input shape, and bit operations of a layer.

Convention: **1 MAC is one multiply and one add**, so FLOPs = 2 × MACs. What multiplies activations by weights, or
activations by activations, is counted: Conv, ConvTranspose, Gemm and MatMul. Biases, activation functions, pooling,
resizing and element-wise arithmetic count nothing, as in the figures that model zoos publish. Border pixels count as
if the padding were data. Counts are for the batch in the graph, which is 1 in a prepared network; bodies of If, Loop
and Scan are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType

import onnx

from qtoolkit.errors import ModelFileError
from qtoolkit.graph.view import GraphView, attribute, node_name

__all__ = ["MAC_FORMULAS", "MacCount", "bops", "count_macs", "node_macs"]


@dataclass(frozen=True)
class MacCount:
    """MACs of a network: ``total``, and ``per_node`` by node name for the nodes that have any."""

    total: int
    per_node: Mapping[str, int]

    @property
    def gmacs(self) -> float:
        """Total in units of 10⁹ MACs."""
        return self.total / 1e9


def _shape(view: GraphView, node: onnx.NodeProto, tensor: str) -> tuple[int, ...]:
    shape = view.shape(tensor)
    if shape is None:
        raise ModelFileError(
            f"the multiply-adds of node {node_name(node)!r} ({node.op_type}) cannot be counted",
            expected="a network whose tensor shapes are all fixed",
            found=f"tensor {tensor!r} with an unknown shape",
            do="read the network with an input size (--input-size), which fixes its shapes",
        )
    return shape


def _conv(view: GraphView, node: onnx.NodeProto) -> int:
    """N·Cout·Hout·Wout · Cin/group·kh·kw; the weight is (Cout, Cin/group, kh, kw)."""
    weight = _shape(view, node, node.input[1])
    return prod(_shape(view, node, node.output[0])) * prod(weight[1:])


def _conv_transpose(view: GraphView, node: onnx.NodeProto) -> int:
    """N·Cin·Hin·Win · Cout/group·kh·kw; the weight is (Cin, Cout/group, kh, kw)."""
    weight = _shape(view, node, node.input[1])
    return prod(_shape(view, node, node.input[0])) * prod(weight[1:])


def _gemm(view: GraphView, node: onnx.NodeProto) -> int:
    """M·N·K, K being the dimension that A and B share."""
    shape = _shape(view, node, node.input[0])
    return prod(_shape(view, node, node.output[0])) * shape[0 if attribute(node, "transA", 0) else 1]


def _matmul(view: GraphView, node: onnx.NodeProto) -> int:
    """(elements of the output)·K, K being the last dimension of the left operand."""
    return prod(_shape(view, node, node.output[0])) * _shape(view, node, node.input[0])[-1]


MAC_FORMULAS: Mapping[str, Callable[[GraphView, onnx.NodeProto], int]] = MappingProxyType(
    {"Conv": _conv, "ConvTranspose": _conv_transpose, "Gemm": _gemm, "MatMul": _matmul}
)
"""Operator → formula; an operator that is not listed has no MACs."""


def node_macs(view: GraphView, node: onnx.NodeProto) -> int:
    """MACs of one node; 0 for an operator without a formula. Raises ModelFileError where a shape is unknown."""
    formula = MAC_FORMULAS.get(node.op_type)
    return 0 if formula is None else formula(view, node)


def count_macs(model: onnx.ModelProto) -> MacCount:
    """MACs of the whole network, decode arithmetic and matrix products of activations included.

    Raises ModelFileError where a shape that a formula needs is not known.
    """
    view = GraphView(model)
    per_node: dict[str, int] = {}
    for node in view.nodes:
        if macs := node_macs(view, node):
            name = node_name(node)
            per_node[name] = per_node.get(name, 0) + macs
    return MacCount(sum(per_node.values()), MappingProxyType(per_node))


def bops(macs: int, weight_bits: int, activation_bits: int) -> int:
    """Bit operations of a layer: MACs × weight bits × activation bits.

    Source: van Baalen et al., "Bayesian Bits: Unifying Quantization and Pruning", NeurIPS 2020.
    """
    return macs * weight_bits * activation_bits
