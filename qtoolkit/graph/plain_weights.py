"""Read the structure of a quantized graph: its weights dequantized, its pairs on activations left out."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from qtoolkit.graph.tidy import with_graph
from qtoolkit.graph.view import GraphView, attribute

__all__ = ["dequantized_constant", "with_plain_weights"]


def dequantized_constant(view: GraphView, tensor: str) -> NDArray[np.floating[Any]] | None:
    """Value of a weight, through the DequantizeLinear or the Cast that it may stand behind; None if it is no constant.

    Dequantized: (q - zero point) · scale, in float32, along ``axis`` where the scale is a vector.
    """
    value = view.constant(tensor)
    if value is not None:
        return np.asarray(value) if value.dtype.kind == "f" else None
    node = view.producer(tensor)
    if node is None or node.op_type not in ("DequantizeLinear", "Cast"):
        return None
    parts = [view.constant(name) for name in node.input]
    if any(part is None for part in parts):
        return None
    arrays = [np.asarray(part) for part in parts]
    if node.op_type == "Cast":
        return arrays[0].astype(np.float32)
    scale = arrays[1].astype(np.float32)
    zero = arrays[2].astype(np.float32) if len(arrays) > 2 else np.zeros_like(scale)
    if scale.ndim == 1 and scale.size > 1:
        shape = [1] * arrays[0].ndim
        shape[int(attribute(node, "axis", 1))] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    return np.asarray((arrays[0].astype(np.float32) - zero) * scale, np.float32)


def with_plain_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of ``model`` with the float weights that its DequantizeLinear and Cast nodes on constants give.

    Layers, their names and the decode tail of a quantized network are then found as in a float one. Nodes that read
    activations stay as they are, their Q/DQ pairs too: this copy is for reading, not for running.
    """
    view = GraphView(model)
    kept: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []
    for node in view.nodes:
        if node.op_type in ("DequantizeLinear", "Cast") and node.output[0] not in view.outputs:
            value = dequantized_constant(view, node.output[0])
            if value is not None:
                constants.append(numpy_helper.from_array(np.ascontiguousarray(value), node.output[0]))
                continue
        kept.append(node)
    return with_graph(model, kept, constants)
