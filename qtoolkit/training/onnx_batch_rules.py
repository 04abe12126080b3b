"""For each operator, where the batch lies in its output, given where it lies in its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import onnx

from qtoolkit.graph.view import GraphView, attribute

__all__ = ["BatchStep", "Dims", "Mixes", "Place", "batch_place"]

Dims: TypeAlias = "tuple[int | None, ...]"
_ALONG_AXIS_DEFAULTS = {"Softmax": -1, "LogSoftmax": -1, "TopK": -1, "Split": 0, "LpNormalization": -1}
_BATCH_FIRST_OPS = frozenset(
    {"Conv", "ConvTranspose", "BatchNormalization", "InstanceNormalization", "GroupNormalization", "MaxPool"}
    | {"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "DepthToSpace", "SpaceToDepth"}
)
# Operators in which an operand with more than one row would be one row for each image.
_ARITHMETIC_OPS = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Mod", "Max", "Min", "Sum", "Mean", "Where", "PRelu"})


class Place(NamedTuple):
    """The axis along which the batch lies, and how many elements of it lie outside the batch: 1 but where an axis
    before it was merged with it."""

    axis: int
    outer: int = 1


class Mixes(Exception):
    """The node computes with several images at once, or its constants cannot be written for more than one."""


@dataclass(frozen=True)
class BatchStep:
    """One node with what is known of its inputs: their dimensions, None where unknown, and their batch axes.

    ``target`` are the dimensions of its first output, ``fixed_batch`` the batch that the graph was written for, and
    ``outer`` is that of the ``Place`` of the batch in the inputs.
    """

    view: GraphView
    node: onnx.NodeProto
    dims: tuple[Dims | None, ...]
    axes: tuple[int | None, ...]
    target: Dims | None
    fixed_batch: int
    outer: int = 1

    def rank(self, position: int) -> int:
        """Number of dimensions of an input. Raises Mixes where it is unknown."""
        known = self.dims[position]
        if known is None:
            raise Mixes
        return len(known)

    def integers(self, position: int, name: str) -> list[int] | None:
        """An attribute, or the constant at an input; None where there is neither."""
        given = attribute(self.node, name)
        if given is not None:
            return [int(value) for value in given]
        if position >= len(self.node.input) or not self.node.input[position]:
            return None
        values = self.view.constant(self.node.input[position])
        if values is None:
            raise Mixes
        return [int(value) for value in values.reshape(-1)]

    @property
    def first(self) -> tuple[int, Dims]:
        """Batch axis and dimensions of the first input, which has to have both."""
        axis, dims = self.axes[0], self.dims[0]
        if axis is None or dims is None:
            raise Mixes
        return axis, dims


def _broadcast(step: BatchStep) -> int:
    """Operands aligned at their last axes, as in arithmetic; an operator with one data input and small parameters is
    the same case."""
    if step.node.op_type in _BATCH_FIRST_OPS and step.axes[0] != 0:
        raise Mixes
    present = [place for place, name in enumerate(step.node.input) if name]
    if len({step.axes[place] for place in present}) == 1 and any(step.dims[place] is None for place in present):
        return step.axes[present[0]] or 0
    widest = max(len(step.dims[place] or ()) for place in present)
    places = {axis - step.rank(place) + widest for place, axis in enumerate(step.axes) if axis is not None}
    place = _only(places)
    if step.node.op_type in _ARITHMETIC_OPS:
        for dims, axis in zip(step.dims, step.axes, strict=True):
            own = place - widest + len(dims or ())
            if axis is None and dims and own >= 0 and dims[own] not in (1, None):
                raise Mixes
    return place


def _only(places: set[int]) -> int:
    if len(places) != 1:
        raise Mixes
    return places.pop()


def _along_axis(step: BatchStep) -> int:
    axis, dims = step.first
    if attribute(step.node, "axis", _ALONG_AXIS_DEFAULTS[step.node.op_type]) % len(dims) == axis:
        raise Mixes
    return axis


def _transpose(step: BatchStep) -> int:
    axis, dims = step.first
    order = attribute(step.node, "perm") or list(range(len(dims)))[::-1]
    return list(order).index(axis)


def _reshape(step: BatchStep) -> Place:
    axis, dims = step.axes[0], step.dims[0] or ()
    before = dims[: axis or 0]
    if axis is None or (axis and (not before or None in before)):
        raise Mixes
    target: Sequence[int | None] | None = step.target
    if target is None:
        values = step.view.constant(step.node.input[1])
        target = [None] if values is None else [int(value) or None for value in values]
    offset = step.outer * prod(size or 1 for size in before)
    offsets = [_product(target[:place]) for place in range(len(target) + 1)]
    reached = [place for place in range(len(target)) if offsets[place] == offset]
    for place in reached:
        if target[place] in (step.fixed_batch, None):
            return Place(place)
    # Axes that go take the batch into the axis before, as where (sequence, batch, channels) become rows; else it goes
    # into the axis behind, as where (sequence, batch, channels) become (sequence, batch · heads, channels of a head).
    if reached and (reached[0] == 0 or len(target) >= len(dims)):
        return Place(reached[0])
    for place, (start, end) in enumerate(pairwise(offsets)):
        if start and end and start < offset <= end and offset % start == 0:
            return Place(place, offset // start)
    raise Mixes


def _product(sizes: Sequence[int | None]) -> int | None:
    return None if any(size is None or size < 0 for size in sizes) else prod(size or 0 for size in sizes)


def _flatten(step: BatchStep) -> Place:
    axis, dims = step.first
    cut = attribute(step.node, "axis", 1)
    cut = cut if cut >= 0 else cut + len(dims)
    offset = _product(dims[:axis] if axis < cut else dims[cut:axis])
    if offset is None:
        raise Mixes
    return Place(0 if axis < cut else 1, offset * step.outer)


def _squeeze(step: BatchStep) -> int:
    axis, dims = step.first
    axes = step.integers(1, "axes")
    if axes is None:
        raise Mixes
    gone = {place % len(dims) for place in axes}
    if axis in gone:
        raise Mixes
    return axis - sum(place < axis for place in gone)


def _unsqueeze(step: BatchStep) -> int:
    axis, dims = step.first
    axes = step.integers(1, "axes") or []
    rank = len(dims) + len(axes)
    new = {place % rank for place in axes}
    return [place for place in range(rank) if place not in new][axis]


def _concat(step: BatchStep) -> int:
    place = _only({axis for axis in step.axes if axis is not None})
    if attribute(step.node, "axis") % step.rank(next(i for i, a in enumerate(step.axes) if a is not None)) == place:
        raise Mixes
    for dims, axis in zip(step.dims, step.axes, strict=True):
        # A constant beside images is repeated for each; of several rows it would belong to a merged axis.
        if axis is None and (dims is None or dims[place] != step.fixed_batch):
            raise Mixes
    return place


def _slice(step: BatchStep) -> int:
    axis, dims = step.first
    starts, ends = step.integers(1, "starts") or [], step.integers(2, "ends") or []
    axes = step.integers(3, "axes") or list(range(len(starts)))
    steps = step.integers(4, "steps") or [1] * len(starts)
    for start, end, place, stride in zip(starts, ends, axes, steps, strict=True):
        size = dims[axis] or step.fixed_batch
        if place % len(dims) == axis and range(size)[start:end:stride] != range(size):
            raise Mixes
    return axis


def _reduce(step: BatchStep) -> int:
    axis, dims = step.first
    axes = step.integers(1, "axes")
    if not axes and attribute(step.node, "noop_with_empty_axes", 0):
        return axis
    gone = {place % len(dims) for place in axes or range(len(dims))}
    if axis in gone:
        raise Mixes
    return axis if attribute(step.node, "keepdims", 1) else axis - sum(place < axis for place in gone)


def _arg_extreme(step: BatchStep) -> int:
    axis, dims = step.first
    gone = int(attribute(step.node, "axis", 0)) % len(dims)
    if gone == axis:
        raise Mixes
    return axis if attribute(step.node, "keepdims", 1) else axis - (gone < axis)


def _cumulative_sum(step: BatchStep) -> int:
    axis, dims = step.first
    if [place % len(dims) for place in step.integers(1, "axis") or [axis]] == [axis]:
        raise Mixes
    return axis


def _gather(step: BatchStep) -> int:
    cut = int(attribute(step.node, "axis", 0)) % step.rank(0)
    data, indices = step.axes[0], step.axes[1]
    if data is None:
        return cut + (indices or 0)
    if indices is not None or data == cut:
        raise Mixes
    return data if data < cut else data - 1 + step.rank(1)


def _gather_nd(step: BatchStep) -> int:
    if attribute(step.node, "batch_dims", 0) < 1:
        raise Mixes
    return _only(set(step.axes) if step.axes == (0, 0) else set())


def _matmul(step: BatchStep) -> int:
    for place, contracted in ((0, -1), (1, -2)):
        axis = step.axes[place]
        if axis is not None and axis - step.rank(place) == contracted:
            raise Mixes
    return _broadcast(step)


def _gemm(step: BatchStep) -> int:
    if step.axes[0] is None or any(axis is not None for axis in step.axes[1:]):
        raise Mixes
    if step.axes[0] != attribute(step.node, "transA", 0):
        raise Mixes
    return 0


def _einsum(step: BatchStep) -> int:
    terms, _, result = attribute(step.node, "equation").decode().replace(" ", "").partition("->")
    letters = {term[axis] for term, axis in zip(terms.split(","), step.axes, strict=True) if axis is not None}
    if "." in terms or len(letters) != 1 or not letters <= set(result):
        raise Mixes
    place: int = result.index(letters.pop())
    return place


def _expand(step: BatchStep) -> int:
    axis, dims = step.first
    rank = len(step.target) if step.target is not None else len(dims)
    return axis + rank - len(dims)


def _mixes(step: BatchStep) -> int:
    raise Mixes


def batch_place(step: BatchStep) -> Place:
    """Where the batch lies in the outputs of ``step``; at least one of its inputs has one.

    Raises Mixes where the node can only be run with the batch that the graph was written for.
    """
    if step.node.op_type in ("Reshape", "Flatten"):
        return _reshape(step) if step.node.op_type == "Reshape" else _flatten(step)
    return Place(_RULES.get(step.node.op_type, _broadcast)(step), step.outer)


_RULES: Mapping[str, Callable[[BatchStep], int]] = MappingProxyType(
    dict.fromkeys(_ALONG_AXIS_DEFAULTS, _along_axis)
    | dict.fromkeys(("NonZero", "OneHot", "ScatterND", "ScatterElements"), _mixes)
    | {f"Reduce{kind}": _reduce for kind in ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2")}
    | {f"Reduce{kind}": _reduce for kind in ("SumSquare", "LogSum", "LogSumExp")}
    | {
        "ArgMax": _arg_extreme,
        "ArgMin": _arg_extreme,
        "Transpose": _transpose,
        "CumSum": _cumulative_sum,
        "Squeeze": _squeeze,
        "Unsqueeze": _unsqueeze,
        "Concat": _concat,
        "Slice": _slice,
        "Gather": _gather,
        "GatherND": _gather_nd,
        "MatMul": _matmul,
        "Gemm": _gemm,
        "Einsum": _einsum,
        "Expand": _expand,
    }
)
