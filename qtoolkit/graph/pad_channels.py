"""Channels filled up with zeros to a number that a runtime's integer kernels take.

The fast integer convolution of ONNX Runtime's processor kernels (MLAS) wants the channels that it reads and makes in
fours; others fall back to one that took 1.3 to 1.6 times as long. A pose network has such a number by nature: 17
keypoints of 3 values are 51 channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from qtoolkit.graph.plain_weights import dequantized_constant
from qtoolkit.graph.view import GraphView, attribute, node_name

__all__ = ["pad_channels"]

_ONE_BY_ONE = frozenset(
    ("Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Clip", "Cast", "Identity", "MaxPool",
     "AveragePool", "Mul", "Add", "Sub", "QuantizeLinear", "DequantizeLinear")
)  # fmt: skip
"""Operators that compute each channel from the same channel of their inputs, where all else is one number."""


@dataclass
class _Group:
    """Tensors that have the same channels, the convolutions that make them and those that read them."""

    tensors: dict[str, None] = field(default_factory=dict)
    makers: list[onnx.NodeProto] = field(default_factory=list)
    readers: list[onnx.NodeProto] = field(default_factory=list)

    @property
    def sides(self) -> tuple[tuple[list[onnx.NodeProto], int], ...]:
        """Its convolutions, with the axis of their weights along which its channels lie."""
        return (self.makers, 0), (self.readers, 1)


def pad_channels(model: onnx.ModelProto, multiple: int) -> onnx.ModelProto:
    """A copy of ``model`` in which integer convolutions hand on their channels in a multiple of ``multiple``; ``model``
    itself where they do already.

    The channels that are added have weights and biases of 0 and are read with weights of 0, so results are the same to
    the bit where sums are exact, as those of integers are. Rules: convolutions without groups alone make and read the
    channels, operators that work channel by channel may stand between; nothing is added where the channels are an
    output of the network, where one of the convolutions is without a constant weight of its own, or has a zero point in
    it, and where none of them runs on integers.
    """
    if multiple < 2:
        return model
    view = GraphView(model)
    edits: dict[str, NDArray[Any]] = {}
    widened: dict[str, int] = {}
    for node in view.nodes:
        if node.op_type != "Conv" or node.output[0] in widened:
            continue
        group = _group_of(view, node.output[0])
        channels = None if group is None else _channels(view, group)
        if group is None or channels is None or channels % multiple == 0:
            continue
        wide = -(-channels // multiple) * multiple
        found = _padded(view, group, wide, edits)
        if found is not None:
            edits |= found
            widened |= dict.fromkeys(group.tensors, wide)
    return _rewritten(model, edits, widened) if edits else model


def _group_of(view: GraphView, start: str) -> _Group | None:
    """All that has the channels of ``start``; None where something has them that cannot take more."""
    group, pending = _Group(), [start]
    while pending:
        tensor = pending.pop()
        if tensor in group.tensors:
            continue
        group.tensors[tensor] = None
        maker = view.producer(tensor)
        if maker is None or tensor in view.outputs:
            return None
        for node in (maker, *view.consumers(tensor)):
            plain = _is_plain_convolution(node)
            if plain and node is maker:
                group.makers.append(node)
            elif plain and tensor not in node.input[1:]:
                group.readers.append(node)
            elif (joined := _joined(view, node)) is not None:
                pending += joined
            else:
                return None
    return group


def _is_plain_convolution(node: onnx.NodeProto) -> bool:
    return node.op_type == "Conv" and attribute(node, "group", 1) == 1


def _joined(view: GraphView, node: onnx.NodeProto) -> list[str] | None:
    """The activations that ``node`` reads and makes, which have the same channels; None where they need not have."""
    if node.op_type not in _ONE_BY_ONE or len(node.output) != 1:
        return None
    constants = {name: view.constant(name) for name in node.input if name and view.is_constant(name)}
    if any(value is None or value.size != 1 for value in constants.values()):
        return None
    return [*(name for name in node.input if name and name not in constants), node.output[0]]


def _channels(view: GraphView, group: _Group) -> int | None:
    """How many channels the group has; None where its convolutions differ, so that some are spread over others."""
    counts = {_weight_shape(view, node)[axis] for nodes, axis in group.sides for node in nodes}
    return counts.pop() if len(counts) == 1 else None


def _weight_shape(view: GraphView, node: onnx.NodeProto) -> tuple[int | None, ...]:
    weight = dequantized_constant(view, node.input[1])
    return (None, None) if weight is None else weight.shape


def _padded(
    view: GraphView, group: _Group, wide: int, before: dict[str, NDArray[Any]]
) -> dict[str, NDArray[Any]] | None:
    """The constants of the group with ``wide`` channels, by name; None where one cannot be changed, or none pays."""
    if not any(_is_on_integers(view, node) for node in (*group.makers, *group.readers)):
        return None
    edits = dict(before)
    for nodes, axis in group.sides:
        for node in nodes:
            names = [node.input[1], *(node.input[2:3] if axis == 0 else ())]
            if not all(_pad_constant(view, name, node, axis, wide, edits) for name in names if name):
                return None
    return edits


def _is_on_integers(view: GraphView, node: onnx.NodeProto) -> bool:
    makers = [view.producer(name) for name in node.input[:2]]
    return all(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers)


def _pad_constant(
    view: GraphView, tensor: str, reader: onnx.NodeProto, axis: int, wide: int, edits: dict[str, NDArray[Any]]
) -> bool:
    """Put ``tensor`` with zeros up to ``wide`` along ``axis`` into ``edits``; whether that can be done.

    It is a constant, or one behind a DequantizeLinear or Cast, with no reader but ``reader``.
    """
    if [node_name(node) for node in view.consumers(tensor)] != [node_name(reader)]:
        return False
    maker = view.producer(tensor)
    if view.is_constant(tensor) or maker is None:
        return _pad(view, tensor, axis, wide, "constant", edits)
    value, *grid = (name for name in maker.input if name)
    if maker.op_type not in ("DequantizeLinear", "Cast") or any(len(view.consumers(each)) != 1 for each in maker.input):
        return False
    scale, zero = [view.constant(name) for name in (*grid, "", "")][:2]
    stored = view.constant(value)
    if stored is None or (zero is not None and bool(zero.any())) or (grid and scale is None):
        return False
    by_channel = scale is not None and scale.size > 1 and int(attribute(maker, "axis", 1)) % stored.ndim == axis
    # The last channel's own scales: a bias whose scale is not that of input times weight keeps a runtime in float.
    padded = all(_pad(view, name, 0, wide, "edge", edits) for name in grid) if by_channel else True
    return padded and _pad(view, value, axis, wide, "constant", edits)


def _pad(
    view: GraphView, name: str, axis: int, wide: int, mode: Literal["edge", "constant"], edits: dict[str, NDArray[Any]]
) -> bool:
    array = edits.get(name, view.constant(name))
    if view.initializer(name) is None or array is None:
        return False
    edits[name] = np.pad(array, [(0, wide - n if index == axis else 0) for index, n in enumerate(array.shape)], mode)
    return True


def _rewritten(model: onnx.ModelProto, edits: dict[str, NDArray[Any]], widened: dict[str, int]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in edits:
            tensor.CopyFrom(numpy_helper.from_array(edits[tensor.name], tensor.name))
    _widen_(copy.graph.value_info, widened)
    return copy


def _widen_(values: Iterable[onnx.ValueInfoProto], widened: dict[str, int]) -> None:
    for value in values:
        dims = value.type.tensor_type.shape.dim
        if value.name in widened and len(dims) > 1:
            dims[1].dim_value = widened[value.name]
