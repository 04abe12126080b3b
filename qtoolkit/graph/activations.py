"""Which activation function follows a tensor, read from the graph's operators."""

from __future__ import annotations

from qtoolkit.graph.view import GraphView

__all__ = ["activation_behind", "is_unit_interval", "silu_around"]

_BY_OPERATOR = {
    "Relu": "relu",
    "LeakyRelu": "leaky_relu",
    "HardSwish": "hard_swish",
    "Mish": "mish",
    "Gelu": "gelu",
    "Sigmoid": "sigmoid",
    "HardSigmoid": "sigmoid",
    "Tanh": "tanh",
    "Softplus": "softplus",
}
_UNIT_INTERVAL = frozenset({"Sigmoid", "HardSigmoid", "Softmax"})


def activation_behind(view: GraphView, tensor: str) -> str | None:
    """Name of the only function that reads ``tensor``, as in ``numerics.activations``; None where others read it too.

    Patterns: one operator of that name; Sigmoid and Mul of the same tensor, which is SiLU.
    """
    if tensor in view.outputs:
        return None
    readers = view.consumers(tensor)
    if len(readers) == 1:
        return _BY_OPERATOR.get(readers[0].op_type)
    if {reader.op_type for reader in readers} == {"Sigmoid", "Mul"} and len(readers) == 2:
        sigmoid = next(reader for reader in readers if reader.op_type == "Sigmoid")
        product = next(reader for reader in readers if reader.op_type == "Mul")
        if set(product.input) == {tensor, sigmoid.output[0]} and len(view.consumers(sigmoid.output[0])) == 1:
            return "silu"
    return None


def silu_around(view: GraphView, tensor: str) -> tuple[str, str] | None:
    """The tensors before and behind the SiLU (Sigmoid and Mul) that ``tensor`` is one of; None where it is of none."""
    producer = view.producer(tensor)
    candidates = [tensor, *(producer.input if producer is not None and producer.op_type == "Mul" else ())]
    for before in candidates:
        if activation_behind(view, before) != "silu":
            continue
        product = next(reader for reader in view.consumers(before) if reader.op_type == "Mul")
        if tensor in (before, product.output[0]):
            return before, str(product.output[0])
    return None


def is_unit_interval(view: GraphView, tensor: str) -> bool:
    """Whether ``tensor`` comes out of a function whose values are 0 to 1 whatever goes in."""
    producer = view.producer(tensor)
    return producer is not None and producer.op_type in _UNIT_INTERVAL
