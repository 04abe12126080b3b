"""Sums, means and extremes along axes, and what picks by rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from qtoolkit.training.onnx_operators.site import Builder, Inputs, Operator, Pass, Site

__all__ = ["OPERATORS"]

Reduction = Callable[[Tensor, list[int], bool], Tensor]


def _reduce(function: Reduction, axes_are_input_since: int) -> Builder:
    def build(site: Site) -> Operator:
        axes_of = site.axes(axes_are_input_since)
        keep, idle = bool(site.attribute("keepdims", 1)), bool(site.attribute("noop_with_empty_axes", 0))

        def run(inputs: Inputs, _: Pass) -> Tensor:
            x = inputs[0]
            axes = axes_of(inputs) if axes_of else []
            if not axes and idle:
                return x
            return function(x, axes or list(range(x.dim())), keep)

        return run

    return build


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.mean(axes, keepdim=keep) if x.is_floating_point() else x.double().mean(axes, keepdim=keep).to(x.dtype)


def _extreme_index(function: Callable[..., Tensor]) -> Builder:
    def build(site: Site) -> Operator:
        axis, keep = site.attribute("axis", 0), bool(site.attribute("keepdims", 1))
        if not site.attribute("select_last_index", 0):
            return lambda inputs, run: function(inputs[0], dim=axis, keepdim=keep)

        def run(inputs: Inputs, _: Pass) -> Tensor:
            last: int = inputs[0].shape[axis] - 1
            return last - function(inputs[0].flip(axis), dim=axis, keepdim=keep)

        return run

    return build


def _top_k(site: Site) -> Operator:
    axis, largest = site.attribute("axis", -1), bool(site.attribute("largest", 1))
    count_attribute = site.attribute("k")
    count_of = site.integers(1) if count_attribute is None else None

    def run(inputs: Inputs, _: Pass) -> tuple[Tensor, ...]:
        count = count_of(inputs)[0] if count_of else count_attribute
        # Sorted stably, because among equals ONNX takes the first.
        values, indices = torch.sort(inputs[0], dim=axis, descending=largest, stable=True)
        return values.narrow(axis, 0, count), indices.narrow(axis, 0, count)

    return run


def _cumulative_sum(site: Site) -> Operator:
    axis_of = site.integers(1)
    exclusive, reverse = site.attribute("exclusive", 0), site.attribute("reverse", 0)

    def run(inputs: Inputs, _: Pass) -> Tensor:
        x, axis = inputs[0], axis_of(inputs)[0]
        x = x.flip(axis) if reverse else x
        total = x.cumsum(axis).to(x.dtype)
        total = total - x if exclusive else total
        return total.flip(axis) if reverse else total

    return run


_REDUCTIONS: dict[str, Reduction] = {
    "ReduceMean": _mean,
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keepdim=keep),
    "ReduceProd": _product,
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
    "ReduceL2": lambda x, axes, keep: torch.linalg.vector_norm(x, dim=axes, keepdim=keep),
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keepdim=keep),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keepdim=keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: x.logsumexp(axes, keepdim=keep),
}


OPERATORS: Mapping[str, Builder] = MappingProxyType(
    {name: _reduce(function, 18) for name, function in _REDUCTIONS.items()}
    | {
        "ReduceSum": _reduce(lambda x, axes, keep: x.sum(axes, keepdim=keep, dtype=x.dtype), 13),
        "ArgMax": _extreme_index(torch.argmax),
        "ArgMin": _extreme_index(torch.argmin),
        "TopK": _top_k,
        "CumSum": _cumulative_sum,
    }
)
"""Operator → builder."""
