"""Nearest-neighbour upsampling of 8-bit tensors, written out for runtimes that compute it slowly.

ONNX Runtime's processor kernel of Resize finds each value by its index, on one thread: the two of YOLOv8n-pose took 1.1
of 23 ms. Its integer convolutions keep channels last; there repeating a place is copying a row of channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from qtoolkit.graph.tidy import with_graph
from qtoolkit.graph.view import GraphView, attribute, node_name

__all__ = ["expand_upsampling"]

_REPEATS = frozenset(
    ((b"asymmetric", b"floor"), (b"half_pixel", b"round_prefer_floor"), (b"half_pixel", b"round_prefer_ceil"))
)
"""Coordinates and rounding with which a whole factor repeats each value, the first of each pair ONNX's own default."""


def expand_upsampling(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of ``model`` in which upsampling that repeats each place of an 8-bit tensor is written as such: channels
    last, (N, H, 1, W, 1, C) expanded to (N, H, f, W, g, C), and back; ``model`` itself where there is none.

    Values are the same to the bit. Rules: a Resize by whole factors f, g, nearest, of an activation (N, C, H, W) of
    known shape, between a DequantizeLinear of 8 bit and QuantizeLinear nodes only; others stay.
    """
    view = GraphView(model)
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []
    for node in view.nodes:
        shapes = _repeated_shapes(view, node)
        if shapes is None:
            nodes.append(node)
        else:
            _write(node, *shapes, nodes, constants)
    if len(nodes) == len(view.nodes):
        return model
    return with_graph(model, nodes, constants)


def _repeated_shapes(view: GraphView, node: onnx.NodeProto) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Shapes of the input and the output of a Resize that only repeats; None for any other node."""
    if node.op_type != "Resize" or attribute(node, "mode", b"nearest") != b"nearest" or attribute(node, "axes"):
        return None
    ways = (
        attribute(node, "coordinate_transformation_mode", b"half_pixel"),
        attribute(node, "nearest_mode", b"round_prefer_floor"),
    )
    before, after = _known_shape(view, node.input[0]), view.shape(node.output[0])
    if ways not in _REPEATS or not _is_between_8_bits(view, node) or before is None or after is None:
        return None
    whole = len(before) == 4 and before[:2] == after[:2] and not any(b % a for a, b in zip(before, after, strict=True))
    return (before, after) if whole and _asks_for(view, node, before, after) else None


def _is_between_8_bits(view: GraphView, node: onnx.NodeProto) -> bool:
    maker, readers = view.producer(node.input[0]), view.consumers(node.output[0])
    if maker is None or maker.op_type != "DequantizeLinear" or len(maker.input) < 3:
        return False
    zero = view.constant(maker.input[2])
    eight = zero is not None and zero.dtype.itemsize == 1
    quantized = all(reader.op_type == "QuantizeLinear" for reader in readers) and node.output[0] not in view.outputs
    return eight and bool(readers) and quantized


def _known_shape(view: GraphView, tensor: str) -> tuple[int, ...] | None:
    """Shape of ``tensor``, if need be that of what its Q/DQ pair rounds."""
    while (shape := view.shape(tensor)) is None:
        maker = view.producer(tensor)
        if maker is None or maker.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            return None
        tensor = maker.input[0]
    return shape


def _asks_for(view: GraphView, node: onnx.NodeProto, before: Sequence[int], after: Sequence[int]) -> bool:
    """Whether scales or sizes of the Resize are constants that make ``after`` of ``before``."""
    given = [view.constant(name) if name else None for name in node.input[2:4]]
    scales, sizes = [*given, None, None][:2]
    if scales is not None and scales.size:
        return np.array_equal(scales * np.array(before), after)
    return sizes is not None and np.array_equal(sizes, after)


def _write(
    node: onnx.NodeProto,
    before: tuple[int, ...],
    after: tuple[int, ...],
    nodes: list[onnx.NodeProto],
    constants: list[onnx.TensorProto],
) -> None:
    name, (n, c, h, w), (_, _, tall, wide) = node_name(node), before, after

    def shape(suffix: str, *sizes: int) -> str:
        constants.append(numpy_helper.from_array(np.array(sizes, np.int64), f"{name}/{suffix}"))
        return f"{name}/{suffix}"

    def add(op_type: str, inputs: list[str], output: str, node_called: str = "", **attributes: Any) -> str:
        nodes.append(helper.make_node(op_type, inputs, [output], node_called or output, **attributes))
        return output

    last = add("Transpose", [node.input[0]], f"{name}/channels_last", perm=[0, 2, 3, 1])
    places = add("Reshape", [last, shape("places", n, h, 1, w, 1, c)], f"{name}/each")
    repeats = shape("repeats", n, h, tall // h, w, wide // w, c)
    repeated = add("Expand", [places, repeats], f"{name}/repeated", name)
    whole = add("Reshape", [repeated, shape("whole", n, tall, wide, c)], f"{name}/upsampled")
    add("Transpose", [whole], node.output[0], f"{name}/channels_first", perm=[0, 3, 1, 2])
