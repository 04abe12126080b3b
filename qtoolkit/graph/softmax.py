"""Softmax over an axis that is not the last, written out for runtimes that compute it slowly.

ONNX Runtime's processor kernel moves such an axis to the end value by value, on one thread: the Softmax over the bins
of a box's sides (Generalized Focal Loss, arXiv 2006.04388) was the slowest node of YOLOv8n-pose there.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from qtoolkit.graph.read import default_opset
from qtoolkit.graph.tidy import rewrite_graph_
from qtoolkit.graph.view import GraphView, attribute, node_name

__all__ = ["expand_softmax"]

_AXES_AS_INPUT = 18
"""From this opset on ReduceMax takes its axes as an input."""


def expand_softmax(model: onnx.ModelProto, nodes: Collection[str]) -> onnx.ModelProto:
    """A copy of ``model`` (opset 13 or newer) in which the named Softmax nodes over an inner axis are written out;
    ``model`` itself where there is none.

        softmax(x) = e / Σ e,   e = exp(x − max x)

    Rules: a Softmax over the last axis, of a tensor whose shape is not known, or not in float32 stays. Where nothing
    but a convolution of 1 × 1 without a bias reads it, over all channels, the two become one product of matrices with
    the division behind it: w · (e / Σ e) = (w · e) / Σ e, one number a place to divide in place of one a bin.
    Results differ by float32's rounding.
    """
    view = GraphView(model)
    chosen = {
        index: axis
        for index, node in enumerate(view.nodes)
        if node_name(node) in nodes and (axis := _inner_axis(view, node)) is not None
    }
    if not chosen:
        return model
    writer = _Writer(view, default_opset(model) or 0)
    for index, node in enumerate(view.nodes):
        if index in chosen:
            writer.expand(node, chosen[index])
        else:
            writer.keep(node)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    rewrite_graph_(copy, writer.nodes, writer.constants.values())
    return copy


def _inner_axis(view: GraphView, node: onnx.NodeProto) -> int | None:
    shape = view.shape(node.input[0]) if node.op_type == "Softmax" else None
    if shape is None or view.elem_type(node.input[0]) != onnx.TensorProto.FLOAT:
        return None
    axis = int(attribute(node, "axis", -1)) % len(shape)
    return None if axis == len(shape) - 1 else axis


@dataclass(frozen=True)
class _Powers:
    """What a Softmax that a convolution reads became: e, shape (N, C, places), and its sum, (N, 1, places)."""

    powers: str
    total: str
    weight: NDArray[np.float32]
    shape: tuple[int, ...]


class _Writer:
    """Collects the new nodes and constants of one graph, in order."""

    def __init__(self, view: GraphView, opset: int) -> None:
        self._view, self._opset = view, opset
        self._of_convolutions: dict[str, _Powers] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def keep(self, node: onnx.NodeProto) -> None:
        read = self._of_convolutions.get(node.input[0]) if node.input else None
        if read is None:
            self.nodes.append(node)
            return
        name = node_name(node)
        weight = self._constant(f"{name}/matrix", read.weight)
        self._add("MatMul", [weight, read.powers], f"{name}/product", name)
        self._add("Div", [f"{name}/product", read.total], f"{name}/mean")
        shape = self._constant(f"{name}/shape", np.array(read.shape, np.int64))
        self._add("Reshape", [f"{name}/mean", shape], node.output[0], f"{name}/Reshape")

    def expand(self, node: onnx.NodeProto, axis: int) -> None:
        source, output, name = node.input[0], node.output[0], node_name(node)
        axes = self._constant(f"softmax/axis{axis}", np.array([axis], np.int64))
        if self._opset >= _AXES_AS_INPUT:
            self._add("ReduceMax", [source, axes], f"{name}/max", keepdims=1)
        else:
            self._add("ReduceMax", [source], f"{name}/max", keepdims=1, axes=[axis])
        self._add("Sub", [source, f"{name}/max"], f"{name}/below")
        self._add("Exp", [f"{name}/below"], f"{name}/powers")
        read = self._convolution_of(node, axis)
        powers = f"{name}/powers" if read is None else read.powers
        if read is not None:
            places = np.array([*self._view.shape(output)[:2], -1], np.int64)  # type: ignore[index]  # known: _inner_axis
            self._add("Reshape", [f"{name}/powers", self._constant(f"{name}/shape", places)], powers)
            self._of_convolutions[output] = read
        self._add("ReduceSum", [powers, axes], f"{name}/sum", keepdims=1)
        if read is None:
            self._add("Div", [powers, f"{name}/sum"], output, f"{name}/Div")

    def _convolution_of(self, node: onnx.NodeProto, axis: int) -> _Powers | None:
        """The convolution that takes a weighted mean of the Softmax's bins, where nothing else reads it."""
        tensor, name = node.output[0], node_name(node)
        readers = self._view.consumers(tensor)
        if axis != 1 or len(readers) != 1 or tensor in self._view.outputs or readers[0].op_type != "Conv":
            return None
        reader = readers[0]
        weight, shape = self._view.constant(reader.input[1]), self._view.shape(reader.output[0])
        if weight is None or shape is None or reader.input[0] != tensor or any(reader.input[2:]):
            return None
        moved = any(attribute(reader, "pads", ())) or any(step != 1 for step in attribute(reader, "strides", ()))
        whole = attribute(reader, "group", 1) == 1 and all(size == 1 for size in weight.shape[2:])
        if moved or not whole:
            return None
        return _Powers(f"{name}/bins", f"{name}/sum", weight.reshape(weight.shape[:2]), shape)

    def _add(self, op_type: str, inputs: list[str], output: str, name: str = "", **attributes: Any) -> None:
        self.nodes.append(helper.make_node(op_type, inputs, [output], name or output, **attributes))

    def _constant(self, name: str, value: NDArray[np.generic]) -> str:
        self.constants.setdefault(name, numpy_helper.from_array(value, name))
        return name
