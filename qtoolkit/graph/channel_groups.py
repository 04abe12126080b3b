"""Which channels of a network can be scaled, and which of them only together."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

from qtoolkit.graph.layers import weight_positions
from qtoolkit.graph.view import GraphView, attribute, node_name

__all__ = ["PINNED", "channel_groups", "scalable_layers"]

PINNED = 0
"""The group of channels that nothing may scale."""

IdArray = NDArray[np.int64]


def scalable_layers(view: GraphView) -> tuple[onnx.NodeProto, ...]:
    """The convolutions that are layers, with a weight and a bias (if any) that are constants in float32, and with an
    input and an output of known shapes."""
    layers = weight_positions(view)
    nodes = (node for node in view.nodes if node.op_type == "Conv" and node_name(node) in layers)
    return tuple(node for node in nodes if _is_scalable(view, node))


def channel_groups(view: GraphView) -> dict[str, IdArray]:
    """The group of each channel of every activation, ``(C,)`` by tensor name; channels lie along axis 1.

    Where all channels of a group are divided by one positive number, in every tensor, and the layers that make and read
    them take the number into their weights, the network computes what it did.

    Rules:

    - ``scalable_layers`` join nothing: the channels of their inputs and of their outputs are free;
    - Relu, LeakyRelu, PRelu, Identity, pooling and Resize hand each channel on; Add and Sub of two activations join
      theirs; Concat, Split and Slice join those that are the same;
    - inputs and outputs of the network are pinned, and so is whatever another node reads or makes (a Sigmoid, and with
      it SiLU, is not homogeneous).
    """
    groups = _Groups(view)
    layers = {node_name(node) for node in scalable_layers(view)}
    for index, node in enumerate(view.nodes):
        joined = node_name(node) in layers or (node.op_type in _RULES and _RULES[node.op_type](groups, node))
        for tensor in (*view.reads(index), *node.output):
            if tensor and not view.is_constant(tensor):
                groups.of(tensor) if joined else groups.pin(tensor)
    for tensor in (*view.inputs, *view.outputs):
        groups.pin(tensor)
    return groups.resolved()


def _is_scalable(view: GraphView, node: onnx.NodeProto) -> bool:
    constants = [name for name in node.input[1:] if name]
    known = view.shape(node.input[0]) is not None and view.shape(node.output[0]) is not None
    return known and all(
        view.is_constant(name) and view.elem_type(name) == onnx.TensorProto.FLOAT for name in constants
    )


class _Groups:
    """Channels and the groups they were joined to (union-find); a tensor of unknown shape is pinned as a whole."""

    def __init__(self, view: GraphView) -> None:
        self.view = view
        self._ids: dict[str, IdArray] = {}
        self._parents = [PINNED]

    def of(self, tensor: str) -> IdArray:
        """The channels of ``tensor``: ``(C,)``, or ``(1,)`` and pinned where their number is not known."""
        if tensor not in self._ids:
            shape = self.view.shape(tensor)
            count = 0 if shape is None or len(shape) < 2 else shape[1]
            first = len(self._parents)
            self._parents.extend(range(first, first + count))
            self._ids[tensor] = np.arange(first, first + count) if count else np.array([PINNED])
        return self._ids[tensor]

    def pin(self, tensor: str) -> None:
        for channel in self.of(tensor).tolist():
            self._join_two(PINNED, channel)

    def join(self, one: IdArray, other: IdArray) -> bool:
        """Join channels pair by pair; False, and nothing joined, where their numbers differ."""
        if one.shape != other.shape:
            return False
        for a, b in zip(one.tolist(), other.tolist(), strict=True):
            self._join_two(a, b)
        return True

    def resolved(self) -> dict[str, IdArray]:
        roots = np.array([self._root(i) for i in range(len(self._parents))])
        return {tensor: roots[ids] for tensor, ids in self._ids.items()}

    def _join_two(self, a: int, b: int) -> None:
        low, high = sorted((self._root(a), self._root(b)))
        self._parents[high] = low  # PINNED is the lowest

    def _root(self, channel: int) -> int:
        parents = self._parents
        while parents[channel] != channel:
            parents[channel] = parents[parents[channel]]
            channel = parents[channel]
        return channel


def _handed_on(groups: _Groups, node: onnx.NodeProto) -> bool:
    alone = all(groups.view.is_constant(name) for name in node.input[1:] if name) and len(node.output) == 1
    return alone and groups.join(groups.of(node.input[0]), groups.of(node.output[0]))


def _resized(groups: _Groups, node: onnx.NodeProto) -> bool:
    # Only there can a value come in that is no mean of input values.
    cropped = attribute(node, "coordinate_transformation_mode", b"half_pixel") == b"tf_crop_and_resize"
    return not cropped and _handed_on(groups, node)


def _added(groups: _Groups, node: onnx.NodeProto) -> bool:
    tensors = (*node.input, node.output[0])
    alike = len({groups.view.shape(tensor) for tensor in tensors}) == 1
    if not alike or any(groups.view.is_constant(tensor) for tensor in node.input):
        return False
    return all(groups.join(groups.of(node.output[0]), groups.of(tensor)) for tensor in node.input)


def _concatenated(groups: _Groups, node: onnx.NodeProto) -> bool:
    if not _is_channel_axis(groups.view, node, node.output[0], 1):
        return False
    if any(groups.view.is_constant(tensor) for tensor in node.input):
        return False
    return groups.join(np.concatenate([groups.of(tensor) for tensor in node.input]), groups.of(node.output[0]))


def _split(groups: _Groups, node: onnx.NodeProto) -> bool:
    if not _is_channel_axis(groups.view, node, node.input[0], 0):
        return False
    return groups.join(groups.of(node.input[0]), np.concatenate([groups.of(tensor) for tensor in node.output]))


def _sliced(groups: _Groups, node: onnx.NodeProto) -> bool:
    ids, rank = groups.of(node.input[0]), len(groups.view.shape(node.input[0]) or ())
    given = [groups.view.constant(name) if name else None for name in node.input[1:]]
    if len(given) < 2 or any(value is None for value in given):
        return False  # computed, or the attributes of opset 9
    starts, ends, *rest = (value.tolist() for value in given if value is not None)
    axes, steps = rest[0] if rest else range(len(starts)), rest[1] if len(rest) > 1 else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if axis % rank == 1:
            # Backwards, an end below all is that of the whole.
            ids = ids[start : (None if step < 0 and end < -len(ids) else end) : step]
    return groups.join(ids, groups.of(node.output[0]))


def _is_channel_axis(view: GraphView, node: onnx.NodeProto, tensor: str, default: int) -> bool:
    rank = len(view.shape(tensor) or ())
    return rank >= 2 and int(attribute(node, "axis", default)) in (1, 1 - rank)


_RULES: Mapping[str, Callable[[_Groups, onnx.NodeProto], bool]] = {
    **dict.fromkeys(
        ("Relu", "LeakyRelu", "PRelu", "Identity", "MaxPool", "AveragePool", "GlobalAveragePool"), _handed_on
    ),
    "Resize": _resized,
    "Add": _added,
    "Sub": _added,
    "Concat": _concatenated,
    "Split": _split,
    "Slice": _sliced,
}
