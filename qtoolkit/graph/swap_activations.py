"""Replacement of activation functions by ReLU, which every device computes and every integer grid holds well."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from math import erf, sqrt
from types import MappingProxyType

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper
from onnx.reference import ReferenceEvaluator

from qtoolkit.errors import ModelFileError, UsageError
from qtoolkit.graph.tidy import remove_unused_
from qtoolkit.graph.view import GraphView, node_name
from qtoolkit.numerics.activations import ACTIVATIONS

__all__ = ["ActivationSwap", "find_activations", "swap_activations"]

_Array = NDArray[np.float64]
_BY_OPERATOR: Mapping[str, str] = MappingProxyType(
    {
        "Swish": "silu",
        "HardSwish": "hard_swish",
        "Mish": "mish",
        "Gelu": "gelu",
        "LeakyRelu": "leaky_relu",
        "PRelu": "prelu",
        "Elu": "elu",
        "Celu": "celu",
        "Selu": "selu",
    }
)
# What the formulas of activation functions are written with.
_ELEMENTWISE = frozenset(
    {"Add", "Sub", "Mul", "Div", "Pow", "Neg", "Reciprocal", "Exp", "Log", "Sqrt", "Erf", "Min", "Max", "Clip"}
    | {"Relu", "Sigmoid", "HardSigmoid", "Tanh", "Softplus", "Identity"}
)
_LONGEST_FORMULA = 12
# The formulas compared differ by more than that somewhere on the grid, float32 rounding changes them by less.
_TOLERANCE = 1e-4
_GRID = np.linspace(-10.0, 10.0, 401)
_ACTIVATION_OPS = frozenset({*_BY_OPERATOR, "Relu", "Sigmoid", "Tanh", "HardSigmoid", "Softplus", "Clip", "Softmax"})

_FORMULAS: tuple[tuple[str, Callable[[_Array], _Array]], ...] = (
    *((name, ACTIVATIONS[name]) for name in ("silu", "mish", "hard_swish", "gelu")),
    ("gelu", lambda x: 0.5 * x * (1.0 + np.array([erf(value / sqrt(2.0)) for value in x]))),
    ("quick_gelu", lambda x: x / (1.0 + np.exp(-1.702 * x))),
    ("leaky_relu", lambda x: np.maximum(x, 0.1 * x)),
)


@dataclass(frozen=True)
class ActivationSwap:
    """One activation function of a network: its ``kind``, the last node of its formula, and what goes in and out.

    ``kind`` is silu, mish, hard_swish, gelu, quick_gelu, leaky_relu, prelu, elu, celu or selu; ``input`` and ``output``
    are tensors.
    """

    kind: str
    node: str
    input: str
    output: str


def find_activations(model: onnx.ModelProto) -> tuple[ActivationSwap, ...]:
    """The activation functions that ``swap_activations`` would replace, in graph order.

    A formula is known by its values: nodes of arithmetic between one tensor and a Mul, Div or Max, with single numbers
    as the only constants, are computed on a grid and compared with the functions of that name. So the order of factors
    and the way that a formula is written do not matter. A gate, which multiplies by a function of something else (as
    squeeze-and-excitation and attention do), is none, nor is a Sigmoid or Softmax alone.
    """
    view = GraphView(model)
    found = []
    for node in view.nodes:
        match = _match(view, node)
        if match is not None:
            found.append(ActivationSwap(match[0], node_name(node), match[1], node.output[0]))
    return tuple(found)


def swap_activations(
    model: onnx.ModelProto, activation: str = "relu", only: Collection[str] | None = None
) -> tuple[onnx.ModelProto, tuple[ActivationSwap, ...]]:
    """A copy of ``model`` with its activation functions replaced by ReLU, and the list of what was replaced.

    Rules:

    - what counts as an activation function says ``find_activations``; with ``only``, a collection of their node names,
      the others stay;
    - the last node of the formula becomes a Relu that keeps its name and its output tensor, so that all layers and
      tensors behind it keep their names;
    - nodes of the formula that nothing else reads go;
    - the copy computes something else, so it has to be retrained.

    Raises UsageError for another ``activation`` than relu and for names in ``only`` that are no activation functions;
    ModelFileError, saying which activations there are, where there is nothing to replace.
    """
    if activation != "relu":
        raise UsageError("activations cannot be replaced by this function", expected="relu", found=activation)
    swaps = find_activations(model)
    if only is not None:
        if unknown := sorted(set(only) - {swap.node for swap in swaps}):
            raise UsageError(
                "a node is no activation function that can be replaced",
                expected="names of nodes that find_activations gives",
                found=", ".join(map(repr, unknown)),
            )
        swaps = tuple(swap for swap in swaps if swap.node in only)
    if not swaps:
        raise _nothing_to_swap(model)
    swapped = onnx.ModelProto()
    swapped.CopyFrom(model)
    by_output = {swap.output: swap for swap in swaps}
    for node in swapped.graph.node:
        if node.output and node.output[0] in by_output:
            swap = by_output[node.output[0]]
            node.CopyFrom(helper.make_node("Relu", [swap.input], [swap.output], node.name or None))
    remove_unused_(swapped)
    return swapped, swaps


def _nothing_to_swap(model: onnx.ModelProto) -> ModelFileError:
    present = Counter(node.op_type for node in model.graph.node if node.op_type in _ACTIVATION_OPS)
    listed = ", ".join(f"{count} {name}" for name, count in sorted(present.items()))
    return ModelFileError(
        "there is nothing to replace by ReLU",
        expected="SiLU, Mish, HardSwish, GELU, LeakyReLU, PReLU or ELU in the network",
        found=listed or "no activation function",
        do="quantize the network as it is",
    )


def _match(view: GraphView, node: onnx.NodeProto) -> tuple[str, str] | None:
    """Kind and input tensor of the activation function that ends in ``node``, or None."""
    if node.domain == "com.microsoft" and node.op_type == "Gelu":
        return "gelu", node.input[0]
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type in _BY_OPERATOR:
        return _BY_OPERATOR[node.op_type], node.input[0]
    if node.op_type not in ("Mul", "Div", "Max"):
        return None
    return _match_formula(view, node)


def _match_formula(view: GraphView, last: onnx.NodeProto) -> tuple[str, str] | None:
    """Go back from ``last`` until all of it depends on one tensor alone, and see whether that function is known."""
    formula = {last.output[0]: last}
    open_tensors = _data_inputs(view, last)
    while open_tensors is not None and len(formula) <= _LONGEST_FORMULA:
        if len(open_tensors) == 1 and len(formula) > 1:
            (source,) = open_tensors
            # Nodes were met from the last one back, so that the other way round each follows what it reads.
            kind = _kind_of(view, list(formula.values())[::-1], source)
            if kind is not None:
                return kind, source
        # Graph inputs stay open: the others have to lead back to them.
        produced = {index: name for name in open_tensors if (index := view.producer_index(name)) is not None}
        if not produced or view.nodes[max(produced)].op_type not in _ELEMENTWISE:
            return None
        node = view.nodes[max(produced)]
        behind = _data_inputs(view, node)
        if behind is None:
            return None
        formula[node.output[0]] = node
        open_tensors = (open_tensors - set(node.output)) | behind
    return None


def _data_inputs(view: GraphView, node: onnx.NodeProto) -> set[str] | None:
    """The inputs of ``node`` that are no constants; None where one of its constants is more than a number."""
    constants = {name: view.constant(name) for name in node.input if name}
    if any(value is not None and value.size != 1 for value in constants.values()):
        return None
    return {name for name, value in constants.items() if value is None}


def _kind_of(view: GraphView, nodes: list[onnx.NodeProto], source: str) -> str | None:
    """Name of the function that ``nodes`` compute of ``source``, or None."""
    constants = {name: view.constant(name) for node in nodes for name in node.input if name}
    feeds = {name: value for name, value in constants.items() if value is not None}
    feeds[source] = _GRID.astype(np.float32)
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in feeds.items()
    ]
    output = nodes[-1].output[0]
    graph = helper.make_graph(nodes, "formula", inputs, [onnx.ValueInfoProto(name=output)])
    single = helper.make_model(graph, opset_imports=list(view.model.opset_import))
    with np.errstate(all="ignore"):
        try:
            (values,) = ReferenceEvaluator(single).run([output], feeds)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return None
    if np.asarray(values).shape != _GRID.shape:
        return None
    for kind, function in _FORMULAS:
        if bool(np.allclose(np.asarray(values, np.float64), function(_GRID), rtol=0.0, atol=_TOLERANCE)):
            return kind
    return None
