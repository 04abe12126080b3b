"""Store weights as fp16 and compute in float32: half the file, the same network but for the rounding of its weights.

Rules:

1. A float32 initializer of at least ``FEWEST_ELEMENTS`` elements is stored as fp16, and a Cast to float32 stands in
   front of its first reader. The Cast's output has the initializer's old name, so readers, layers and tensors keep
   theirs. Runtimes fold the Cast when they load the network, and ``load_network`` does: latency is that of float32.
2. Constants of the decode tail stay: anchors and grids in pixels, rounded to 11 bits, would move people.
3. A tensor stays where fp16 would lose more than rounding: where its largest absolute value is not finite, above 65504,
   or so small (below 2⁻¹⁴) that no fp16 number near it has all 11 bits. So no stored weight is off by more than 2⁻¹¹
   of itself or 2⁻²⁵, whichever is larger.
4. What the graph lists as an input or gives out stays.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qtoolkit.graph.half import FP16_LIMIT
from qtoolkit.graph.layers import decode_tail
from qtoolkit.graph.tidy import rewrite_graph_
from qtoolkit.graph.view import GraphView, node_name

__all__ = ["FEWEST_ELEMENTS", "store_half"]

FEWEST_ELEMENTS = 256
"""Smaller tensors, biases mostly, would save nothing and cost a node each."""

_SMALLEST_NORMAL = 2.0**-14


def store_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a prepared float network with its large weights stored as fp16; ``load_network`` undoes the Casts."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    view = GraphView(copy)
    stored = _storable(view, decode_tail(copy))
    nodes: list[onnx.NodeProto] = []
    halves: dict[str, TensorProto] = {}
    for index, node in enumerate(view.nodes):
        for tensor in view.reads(index):
            if tensor in stored and tensor not in halves:
                name = f"{tensor}/half"
                halves[tensor] = numpy_helper.from_array(stored[tensor].astype(np.float16), name)
                nodes.append(helper.make_node("Cast", [name], [tensor], f"{name}/Cast", to=TensorProto.FLOAT))
        nodes.append(node)
    for index in reversed(range(len(copy.graph.initializer))):
        if copy.graph.initializer[index].name in halves:
            del copy.graph.initializer[index]
    rewrite_graph_(copy, nodes, halves.values())
    return copy


def _storable(view: GraphView, tail: frozenset[str]) -> dict[str, np.ndarray[Any, Any]]:
    """Values of the initializers that rules 1 to 4 let through, by name."""
    fixed = {*view.outputs, *(value.name for value in view.model.graph.input)}
    found: dict[str, np.ndarray[Any, Any]] = {}
    for tensor in view.model.graph.initializer:
        readers = view.consumer_indices(tensor.name)
        if tensor.data_type != TensorProto.FLOAT or math.prod(tensor.dims) < FEWEST_ELEMENTS:
            continue
        if tensor.name in fixed or any(node_name(view.nodes[index]) in tail for index in readers):
            continue
        value = numpy_helper.to_array(tensor)
        largest = float(np.abs(value).max())
        # All zeros are exact. NaN compares false.
        if largest == 0.0 or _SMALLEST_NORMAL <= largest <= FP16_LIMIT:
            found[tensor.name] = value
    return found
