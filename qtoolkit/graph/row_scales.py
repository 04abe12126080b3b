"""A Mul behind each last convolution, one number a channel, so that its rows can be scaled.

What follows the last layers is arithmetic in float, the decode tail; there the scales are taken out again.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from qtoolkit.graph.layers import last_layers
from qtoolkit.graph.tidy import rewrite_graph_
from qtoolkit.graph.view import GraphView, node_name

__all__ = ["insert_row_scales_", "restored_output"]

_SUFFIX = "/rows"


def insert_row_scales_(model: onnx.ModelProto) -> dict[str, str]:
    """Put a Mul by ones, float32 ``(1, C, 1, 1)``, behind each last convolution of ``model``; in place.

    The Mul makes the tensor that the convolution made, so nothing else of the graph changes. Returns layer → the
    initializer that its Mul reads. Left out are convolutions of one row, those that are not over an image, and those
    whose output is not float32.
    """
    view, last = GraphView(model), set(last_layers(model))
    nodes, constants, added = [], dict[str, str](), []
    for node in view.nodes:
        nodes.append(node)
        layer, output = node_name(node), node.output[0]
        shape = view.shape(output) if node.op_type == "Conv" and layer in last else None
        if shape is None or len(shape) != 4 or shape[1] == 1 or view.elem_type(output) != onnx.TensorProto.FLOAT:
            continue
        constants[layer] = f"{layer}{_SUFFIX}/scale"
        # The name of a node without one would change with its output.
        node.name, node.output[0] = layer, f"{output}{_SUFFIX}"
        added.append(numpy_helper.from_array(np.ones((1, shape[1], 1, 1), np.float32), constants[layer]))
        nodes.append(helper.make_node("Mul", [node.output[0], constants[layer]], [output], f"{layer}{_SUFFIX}"))
        made = helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, list(shape))
        model.graph.value_info.append(made)
    rewrite_graph_(model, nodes, added)
    return constants


def restored_output(view: GraphView, tensor: str) -> str:
    """The output of a last layer as the float network has it: ``tensor``, or what its Mul makes of it."""
    readers = view.consumers(tensor)
    scaled = len(readers) == 1 and readers[0].op_type == "Mul" and node_name(readers[0]).endswith(_SUFFIX)
    return str(readers[0].output[0]) if scaled and tensor.endswith(_SUFFIX) else tensor
