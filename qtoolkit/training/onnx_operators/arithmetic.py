"""Functions and comparisons applied element by element, and casts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from types import MappingProxyType

import torch
from torch import Tensor

from qtoolkit.training.onnx_operators.site import Builder, Inputs, Operator, Pass, Site, elementwise, torch_dtype

__all__ = ["OPERATORS"]

Binary = Callable[[Tensor, Tensor], Tensor]


def _binary(function: Binary) -> Builder:
    return lambda site: lambda inputs, run: function(inputs[0], inputs[1])


def _folded(function: Binary) -> Builder:
    """An operator of one input or more, taken two by two."""
    return lambda site: lambda inputs, run: reduce(function, inputs)


def _divide(a: Tensor, b: Tensor) -> Tensor:
    # Whole numbers are divided as C does it, towards zero.
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _power(a: Tensor, b: Tensor) -> Tensor:
    return torch.pow(a, b).to(a.dtype)


def _pow(site: Site) -> Operator:
    exponent = site.constant(1)
    if exponent is not None and exponent.size == 1 and exponent.ndim <= 1:
        value = exponent.item()
        # A number needs no gradient, and torch has faster ways for 2 and 0.5.
        return lambda inputs, run: torch.pow(inputs[0], value).to(inputs[0].dtype)
    return lambda inputs, run: _power(inputs[0], inputs[1])


def _modulo(site: Site) -> Operator:
    function = torch.fmod if site.attribute("fmod", 0) else torch.remainder
    return lambda inputs, run: function(inputs[0], inputs[1])


def _mean(_: Site) -> Operator:
    return lambda inputs, run: reduce(torch.add, inputs) / len(inputs)


def _cast(site: Site) -> Operator:
    target = torch_dtype(site.attribute("to"))

    def run(inputs: Inputs, _: Pass) -> Tensor:
        return inputs[0].to(target)

    return run


def _cast_like(_: Site) -> Operator:
    return lambda inputs, run: inputs[0].to(inputs[1].dtype)


def _is_infinite(site: Site) -> Operator:
    positive, negative = site.attribute("detect_positive", 1), site.attribute("detect_negative", 1)

    def run(inputs: Inputs, _: Pass) -> Tensor:
        found = torch.zeros_like(inputs[0], dtype=torch.bool)
        found = found | torch.isposinf(inputs[0]) if positive else found
        return found | torch.isneginf(inputs[0]) if negative else found

    return run


_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Neg": torch.neg,
    "Sqrt": torch.sqrt,
    "Exp": torch.exp,
    "Log": torch.log,
    "Erf": torch.erf,
    "Reciprocal": torch.reciprocal,
    "Floor": torch.floor,
    "Ceil": torch.ceil,
    "Round": torch.round,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Cos": torch.cos,
    "Tan": torch.tan,
    "Asin": torch.asin,
    "Acos": torch.acos,
    "Atan": torch.atan,
    "Sinh": torch.sinh,
    "Cosh": torch.cosh,
    "Not": torch.logical_not,
    "IsNaN": torch.isnan,
    "Identity": lambda x: x,
}
_BINARY: dict[str, Binary] = {
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Div": _divide,
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
}
_FOLDED: dict[str, Binary] = {"Sum": torch.add, "Max": torch.maximum, "Min": torch.minimum}


def _where(_: Site) -> Operator:
    return lambda inputs, run: torch.where(inputs[0], inputs[1], inputs[2])


OPERATORS: Mapping[str, Builder] = MappingProxyType(
    {name: elementwise(function) for name, function in _UNARY.items()}
    | {name: _binary(function) for name, function in _BINARY.items()}
    | {name: _folded(function) for name, function in _FOLDED.items()}
    | {
        "Pow": _pow,
        "Mod": _modulo,
        "Mean": _mean,
        "Where": _where,
        "Cast": _cast,
        "CastLike": _cast_like,
        "IsInf": _is_infinite,
    }
)
"""Operator → builder."""
