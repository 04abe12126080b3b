"""Activation functions."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from qtoolkit.training.onnx_operators.site import Builder, Inputs, Operator, Pass, Site, elementwise

__all__ = ["OPERATORS"]


def _leaky_relu(site: Site) -> Operator:
    slope = site.attribute("alpha", 0.01)
    return lambda inputs, run: F.leaky_relu(inputs[0], slope)


def _prelu(_: Site) -> Operator:
    # The slope broadcasts as any operand does, so that it need not be one a channel.
    return lambda inputs, run: torch.where(inputs[0] < 0, inputs[0] * inputs[1], inputs[0])


def _elu(site: Site) -> Operator:
    alpha = site.attribute("alpha", 1.0)
    return lambda inputs, run: F.elu(inputs[0], alpha)


def _celu(site: Site) -> Operator:
    alpha = site.attribute("alpha", 1.0)
    return lambda inputs, run: F.celu(inputs[0], alpha)


def _selu(site: Site) -> Operator:
    alpha = site.attribute("alpha", 1.67326319217681884765625)
    gamma = site.attribute("gamma", 1.05070102214813232421875)
    return lambda inputs, run: gamma * F.elu(inputs[0], alpha)


def _hard_sigmoid(site: Site) -> Operator:
    alpha, beta = site.attribute("alpha", 0.2), site.attribute("beta", 0.5)
    return lambda inputs, run: (inputs[0] * alpha + beta).clamp(0.0, 1.0)


def _gelu(site: Site) -> Operator:
    approximate = site.attribute("approximate", "none")
    return lambda inputs, run: F.gelu(inputs[0], approximate=approximate)


def _swish(site: Site) -> Operator:
    alpha = site.attribute("alpha", 1.0)
    if alpha == 1.0:
        return lambda inputs, run: F.silu(inputs[0])
    return lambda inputs, run: inputs[0] * torch.sigmoid(alpha * inputs[0])


def _thresholded_relu(site: Site) -> Operator:
    alpha = site.attribute("alpha", 1.0)
    return lambda inputs, run: torch.where(inputs[0] > alpha, inputs[0], torch.zeros_like(inputs[0]))


def _shrink(site: Site) -> Operator:
    bias, limit = site.attribute("bias", 0.0), site.attribute("lambd", 0.5)

    def run(inputs: Inputs, _: Pass) -> Tensor:
        x = inputs[0]
        zero = torch.zeros_like(x)
        return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, zero))

    return run


def _clip(site: Site) -> Operator:
    if site.opset < 11:
        low, high = site.attribute("min"), site.attribute("max")
        if low is None and high is None:
            return lambda inputs, run: inputs[0]
        return lambda inputs, run: inputs[0].clamp(low, high)
    bounds = (site.constant(1), site.constant(2))
    if any(site.has(place) and bounds[place - 1] is None for place in (1, 2)):
        return _clip_at_computed_bounds(site)
    low, high = (None if bound is None else bound.item() for bound in bounds)
    if low is None and high is None:
        return lambda inputs, run: inputs[0]
    return lambda inputs, run: inputs[0].clamp(low, high)


def _clip_at_computed_bounds(site: Site) -> Operator:
    has_low, has_high = site.has(1), site.has(2)

    def run(inputs: Inputs, _: Pass) -> Tensor:
        x = inputs[0]
        x = torch.maximum(x, inputs[1]) if has_low else x
        return torch.minimum(x, inputs[2]) if has_high else x

    return run


OPERATORS: Mapping[str, Builder] = MappingProxyType(
    {
        "Relu": elementwise(torch.relu),
        "LeakyRelu": _leaky_relu,
        "PRelu": _prelu,
        "Elu": _elu,
        "Celu": _celu,
        "Selu": _selu,
        "ThresholdedRelu": _thresholded_relu,
        "Shrink": _shrink,
        "Sigmoid": elementwise(torch.sigmoid),
        "HardSigmoid": _hard_sigmoid,
        "HardSwish": elementwise(F.hardswish),
        "Mish": elementwise(F.mish),
        "Swish": _swish,
        "Gelu": _gelu,
        "Softplus": elementwise(F.softplus),
        "Softsign": elementwise(F.softsign),
        "Tanh": elementwise(torch.tanh),
        "Clip": _clip,
    }
)
"""Operator → builder."""
