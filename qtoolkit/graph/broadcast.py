"""Constants that arithmetic spreads over a tensor in short runs, spread beforehand where that is slow.

ONNX Runtime's processor kernels work run by run: an Add of (A, 17, 2) and (A, 1, 2), the grid of a pose network's
keypoints, makes 17 A steps of 2 values each, and took a tenth of the time of a small 8-bit network.
"""

from __future__ import annotations

from collections.abc import Collection
from math import prod

import numpy as np
import onnx
from onnx import helper, numpy_helper

from qtoolkit.graph.tidy import with_graph
from qtoolkit.graph.view import GraphView, node_name

__all__ = ["expand_broadcasts"]

_ARITHMETIC = frozenset(("Add", "Sub", "Mul", "Div"))
_SHORT = 8
"""Runs of fewer values than that are slow: what a vector instruction takes at a time."""
_MANY = 1024
"""Fewer runs than that take no time worth a node."""


def expand_broadcasts(model: onnx.ModelProto, nodes: Collection[str]) -> onnx.ModelProto:
    """A copy of ``model`` in which constants that a named Add, Sub, Mul or Div spreads in many short
    runs go through an Expand to the shape of the output; ``model`` itself where there is none.

    The Expand is of constants, so that a runtime does it once, when it opens the network, and the file does not grow.
    Values are the same to the bit. Rules: the shape of the output is known, and the other input has it.
    """
    view = GraphView(model)
    rewritten: list[onnx.NodeProto] = []
    shapes: dict[str, onnx.TensorProto] = {}
    for node in view.nodes:
        short = _spread_input(view, node) if node_name(node) in nodes else None
        if short is None:
            rewritten.append(node)
            continue
        target = f"{node_name(node)}/whole/shape"
        shapes[target] = numpy_helper.from_array(np.array(view.shape(node.output[0]), np.int64), target)
        whole = f"{node_name(node)}/whole"
        rewritten.append(helper.make_node("Expand", [short, target], [whole], whole))
        rewritten.append(onnx.NodeProto.FromString(node.SerializeToString()))
        rewritten[-1].input[list(node.input).index(short)] = whole
    if not shapes:
        return model
    return with_graph(model, rewritten, shapes.values())


def _spread_input(view: GraphView, node: onnx.NodeProto) -> str | None:
    """The constant input that ``node`` spreads over its other input in many short runs; None where there is none."""
    if node.op_type not in _ARITHMETIC:
        return None
    shape = view.shape(node.output[0])
    constants = [name for name in node.input if view.is_constant(name)]
    if shape is None or len(constants) != 1:
        return None
    (constant,) = constants
    spread, other = view.shape(constant), [view.shape(name) for name in node.input if name != constant]
    if spread is None or other != [shape]:
        return None
    run = _run(shape, spread)
    return constant if run < _SHORT and prod(shape) // run >= _MANY else None


def _run(shape: tuple[int, ...], spread: tuple[int, ...]) -> int:
    """How many values in a row of a tensor of ``shape`` meet one value, or as many in a row, of one of ``spread``."""
    aligned = (1,) * (len(shape) - len(spread)) + spread
    run, whole = 1, None
    for size, own in zip(reversed(shape), reversed(aligned), strict=True):
        if size == 1:
            continue
        if whole is None:
            whole = own == size
        if (own == size) != whole:
            break
        run *= size
    return run
