"""The precision of each layer, read back from a graph that has been quantized or put into fp16."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import TensorProto

from qtoolkit.graph.layers import decode_tail, weight_positions
from qtoolkit.graph.plain_weights import with_plain_weights
from qtoolkit.graph.view import GraphView, node_name

__all__ = ["float32_nodes", "layer_precisions", "precision_label"]

_INTEGERS: dict[int, str] = {
    TensorProto.INT8: "int8", TensorProto.UINT8: "int8", TensorProto.INT16: "int16", TensorProto.UINT16: "int16",
}  # fmt: skip


def layer_precisions(model: onnx.ModelProto) -> dict[str, str]:
    """Layer → ``int8``, ``int16`` (of weight or input), ``fp16`` or ``fp32``, in the order of the graph.

    A layer is integer where its weight and its input come out of DequantizeLinear; one with only one of them runs in
    float.
    """
    view = GraphView(model)
    by_name = {node_name(node): node for node in view.nodes}
    found: dict[str, str] = {}
    for name, position in weight_positions(GraphView(with_plain_weights(model))).items():
        node = by_name[name]
        integers = [_dequantized_type(view, str(tensor)) for tensor in node.input[:2]]
        if all(integers):
            found[name] = "int16" if "int16" in integers else "int8"
        else:
            found[name] = "fp16" if view.elem_type(node.input[position]) == TensorProto.FLOAT16 else "fp32"
    return found


def float32_nodes(model: onnx.ModelProto) -> frozenset[str]:
    """Nodes that a runtime must not lower to fp16: the decode tail (pixels), and layers that are float32.

    In a network without a narrower layer these are all; nothing is lowered there.
    """
    plain = with_plain_weights(model)
    precisions = layer_precisions(model)
    return decode_tail(plain) | {name for name, precision in precisions.items() if precision == "fp32"}


def precision_label(precisions: Mapping[str, str]) -> str:
    """The one precision of all layers, or ``mixed (12 fp16, 60 int8)``."""
    kinds = sorted(set(precisions.values()))
    if len(kinds) == 1:
        return kinds[0]
    counts = (f"{sum(value == kind for value in precisions.values())} {kind}" for kind in kinds)
    return f"mixed ({', '.join(counts)})"


def _dequantized_type(view: GraphView, tensor: str) -> str | None:
    producer = view.producer(tensor)
    if producer is None or producer.op_type != "DequantizeLinear":
        return None
    return _INTEGERS.get(view.elem_type(producer.input[0]), "int8")
