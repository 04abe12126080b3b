"""Softmax over an axis that is not the last, written out for runtimes that compute it slowly.

ONNX Runtime's processor kernel moves such an axis to the end value by value, on one thread: the Softmax over the bins
of a box's sides (Generalized Focal Loss, arXiv 2006.04388) was the slowest node of YOLOv8n-pose there.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from qtoolkit.graph.read import default_opset
from qtoolkit.graph.tidy import with_graph
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
        elif node_name(node) not in writer.written:
            writer.nodes.append(node)
    return with_graph(model, writer.nodes, writer.constants.values())


def _inner_axis(view: GraphView, node: onnx.NodeProto) -> int | None:
    shape = view.shape(node.input[0]) if node.op_type == "Softmax" else None
    if shape is None or view.elem_type(node.input[0]) != onnx.TensorProto.FLOAT:
        return None
    axis = int(attribute(node, "axis", -1)) % len(shape)
    return None if axis == len(shape) - 1 else axis


class _Writer:
    """Collects the new nodes and constants of one graph, in order; ``written``: convolutions that are among them."""

    def __init__(self, view: GraphView, opset: int) -> None:
        self._view, self._opset = view, opset
        self.written: set[str] = set()
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def expand(self, node: onnx.NodeProto, axis: int) -> None:
        source, name = node.input[0], node_name(node)
        axes = self._constant(f"softmax/axis{axis}", np.array([axis], np.int64))
        if self._opset >= _AXES_AS_INPUT:
            self._add("ReduceMax", [source, axes], f"{name}/max", keepdims=1)
        else:
            self._add("ReduceMax", [source], f"{name}/max", keepdims=1, axes=[axis])
        self._add("Sub", [source, f"{name}/max"], f"{name}/below")
        self._add("Exp", [f"{name}/below"], f"{name}/powers")
        mean = self._convolution_of(node.output[0], axis)
        if mean is None:
            self._add("ReduceSum", [f"{name}/powers", axes], f"{name}/sum", keepdims=1)
            self._add("Div", [f"{name}/powers", f"{name}/sum"], node.output[0], f"{name}/Div")
            return
        bins = np.array([*(self._view.shape(source) or ())[:2], -1], np.int64)
        self._add("Reshape", [f"{name}/powers", self._constant(f"{name}/shape", bins)], f"{name}/bins")
        self._add("ReduceSum", [f"{name}/bins", axes], f"{name}/sum", keepdims=1)
        self._write_mean(*mean, f"{name}/bins", f"{name}/sum")

    def _write_mean(
        self, convolution: onnx.NodeProto, weight: NDArray[np.floating[Any]], bins: str, total: str
    ) -> None:
        """What ``convolution`` makes, from e in ``bins`` (N, C, places) and its sum in ``total`` (N, 1, places)."""
        name, output = node_name(convolution), convolution.output[0]
        matrix = self._constant(f"{name}/matrix", weight.reshape(weight.shape[:2]))
        self._add("MatMul", [matrix, bins], f"{name}/product", name)
        self._add("Div", [f"{name}/product", total], f"{name}/mean")
        size = self._constant(f"{name}/shape", np.array(self._view.shape(output), np.int64))
        self._add("Reshape", [f"{name}/mean", size], output, f"{name}/Reshape")
        self.written.add(name)

    def _convolution_of(self, tensor: str, axis: int) -> tuple[onnx.NodeProto, NDArray[np.floating[Any]]] | None:
        """The one convolution that alone reads the bins ``tensor``, for their weighted mean; and its weight."""
        readers = self._view.consumers(tensor)
        if axis != 1 or len(readers) != 1 or tensor in self._view.outputs or readers[0].op_type != "Conv":
            return None
        (reader,) = readers
        weight, shape = self._view.constant(reader.input[1]), self._view.shape(reader.output[0])
        if weight is None or shape is None or reader.input[0] != tensor or any(reader.input[2:]):
            return None
        moved = any(attribute(reader, "pads", ())) or any(step != 1 for step in attribute(reader, "strides", ()))
        whole = attribute(reader, "group", 1) == 1 and all(size == 1 for size in weight.shape[2:])
        return (reader, weight) if whole and not moved else None

    def _add(self, op_type: str, inputs: list[str], output: str, name: str = "", **attributes: Any) -> None:
        self.nodes.append(helper.make_node(op_type, inputs, [output], name or output, **attributes))

    def _constant(self, name: str, value: NDArray[np.generic]) -> str:
        self.constants.setdefault(name, numpy_helper.from_array(value, name))
        return name
