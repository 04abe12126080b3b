"""Where the images of a batch lie in each tensor of a graph that was prepared for a batch of one.

The graph's input has the batch as its first axis. From there on it is followed through each operator: a Transpose
moves it, a Reshape keeps it or makes it the outer part of an axis (a batch of attention heads), a reduction over it
ends it. With that, constants that were written for one image can be told from those that were not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from qtoolkit.graph.view import GraphView, node_name
from qtoolkit.training.onnx_batch_rules import BatchStep, Dims, Mixes, Place, batch_place
from qtoolkit.training.onnx_operators.site import Places

__all__ = ["BatchPlaces", "follow_batch"]

_NO_BATCH_OPS = frozenset({"Shape", "Size", "ConstantOfShape", "Range", "Constant"})


@dataclass(frozen=True)
class BatchPlaces:
    """Result of ``follow_batch``: ``axes`` tensor → axis of the batch, for those that have one; ``fixed_batch`` the
    batch that the graph was written for; ``mixing`` the names of nodes that run at that batch only."""

    axes: Mapping[str, int]
    fixed_batch: int
    mixing: frozenset[str]

    def of(self, node: onnx.NodeProto) -> Places:
        """The axes of the node's inputs and of its first output."""
        return Places(tuple(self.axes.get(name) for name in node.input), self.axes.get(node.output[0]))


def follow_batch(view: GraphView) -> BatchPlaces:
    """Follow the batch through the graph of ``view``, whose shapes should be inferred.

    Graph inputs of two dimensions or more carry the batch on their first axis; of several, those with the size that the
    first of them has there. Where that axis is open, constants of 1 count as written for a batch of one.
    """
    dims = _known_dims(view)
    carriers = [name for name in view.inputs if len(dims.get(name) or ()) >= 2]
    leading = {name: (dims.get(name) or (None,))[0] for name in carriers}
    fixed_batch = next((size for size in leading.values() if size), 1)
    places = {name: Place(0) for name in carriers if leading[name] in (fixed_batch, None)}
    mixing: set[str] = set()
    for node in view.nodes:
        given = [places.get(name) for name in node.input]
        outers = {place.outer for place in given if place is not None}
        if node.op_type in _NO_BATCH_OPS or not outers:
            continue
        axes = tuple(None if place is None else place.axis for place in given)
        known = tuple(dims.get(name) for name in node.input)
        step = BatchStep(view, node, known, axes, dims.get(node.output[0]), fixed_batch, max(outers))
        try:
            place = batch_place(step)
        except Mixes:
            mixing.add(node_name(node))
            continue
        places.update((name, place) for name in node.output if name)
    return BatchPlaces({name: place.axis for name, place in places.items()}, fixed_batch, frozenset(mixing))


def _known_dims(view: GraphView) -> dict[str, Dims]:
    graph = view.model.graph
    dims: dict[str, Dims] = {tensor.name: tuple(int(dim) for dim in tensor.dims) for tensor in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        if value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape"):
            shape = value.type.tensor_type.shape.dim
            dims[value.name] = tuple(int(dim.dim_value) if dim.HasField("dim_value") else None for dim in shape)
    for node in view.nodes:
        if node.op_type == "Constant" and (array := view.constant(node.output[0])) is not None:
            dims[node.output[0]] = array.shape
    return dims
