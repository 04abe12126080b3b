"""A Mul behind each last convolution, one number a channel, so that its rows can be scaled.

What follows the last layers is arithmetic in float, the decode tail; there the scales are taken out again.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from qtoolkit.graph.tidy import rewrite_graph_
from qtoolkit.graph.view import GraphView, node_name

__all__ = ["insert_row_scales_", "restored_output", "rows_of"]

_SUFFIX = "/rows"


def rows_of(view: GraphView, node: onnx.NodeProto) -> int:
    """How many rows of a last convolution can be scaled: its output channels, 0 where it has one row only, is not over
    an image or does not make float32."""
    shape = view.shape(node.output[0]) or ()
    fits = len(shape) == 4 and shape[1] > 1 and view.elem_type(node.output[0]) == onnx.TensorProto.FLOAT
    return shape[1] if fits else 0


def insert_row_scales_(model: onnx.ModelProto, scales: Mapping[str, NDArray[np.float64]]) -> None:
    """Put a Mul by ``scales`` (layer → (C,)) behind each of these last convolutions; in place.

    The Mul makes the tensor that the convolution made, so nothing else of the graph changes.
    """
    view = GraphView(model)
    nodes, added = [], []
    for node in view.nodes:
        nodes.append(node)
        layer, output = node_name(node), node.output[0]
        if layer not in scales:
            continue
        made = helper.make_tensor_value_info(f"{output}{_SUFFIX}", onnx.TensorProto.FLOAT, view.shape(output))
        model.graph.value_info.append(made)
        # The name of a node without one would change with its output.
        node.name, node.output[0] = layer, made.name
        factors = scales[layer].reshape(1, -1, 1, 1).astype(np.float32)
        added.append(numpy_helper.from_array(factors, f"{layer}{_SUFFIX}/scale"))
        nodes.append(helper.make_node("Mul", [made.name, added[-1].name], [output], f"{layer}{_SUFFIX}"))
    rewrite_graph_(model, nodes, added)


def restored_output(view: GraphView, tensor: str) -> str:
    """The output of a last layer as the float network has it: ``tensor``, or what its Mul makes of it."""
    readers = view.consumers(tensor)
    scaled = len(readers) == 1 and readers[0].op_type == "Mul" and node_name(readers[0]).endswith(_SUFFIX)
    return str(readers[0].output[0]) if scaled and tensor.endswith(_SUFFIX) else tensor
