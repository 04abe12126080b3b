"""Constants that a node reads, replaced without changing what other nodes read."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from qtoolkit.graph.view import GraphView, node_name

__all__ = ["store_constant_"]


def store_constant_(view: GraphView, layer: onnx.NodeProto, position: int, value: np.ndarray[Any, Any]) -> None:
    """Make ``value`` the constant that ``layer`` reads at ``position``, 1 for its weight and 2 for its bias; in place.

    An initializer that another node reads too keeps its values: the layer gets one of its own. The same for an input
    that the layer did not have.
    """
    name = layer.input[position] if len(layer.input) > position else ""
    own = view.initializer(name)
    if own is not None and len(view.consumers(name)) == 1 and name not in view.outputs:
        own.CopyFrom(numpy_helper.from_array(value, name))
        return
    graph = view.model.graph
    taken = {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input}
    taken |= {name for node in view.nodes for name in node.output}
    fresh = f"{node_name(layer)}.{('weight', 'bias')[position - 1]}"
    while fresh in taken:
        fresh += ".folded"
    graph.initializer.append(numpy_helper.from_array(value, fresh))
    while len(layer.input) <= position:
        layer.input.append("")
    layer.input[position] = fresh
