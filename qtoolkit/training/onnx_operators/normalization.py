"""Batch, instance, layer and group normalization, Softmax, Dropout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from qtoolkit.training.onnx_operators.site import Builder, Inputs, Operator, Pass, Site

__all__ = ["OPERATORS"]


def _batch_norm(site: Site) -> Operator:
    site.unless(not site.attribute("training_mode", 0), "training_mode 1")
    epsilon = site.attribute("epsilon", 1e-5)
    # ONNX weighs the old statistics with it, torch the new ones.
    momentum = 1.0 - site.attribute("momentum", 0.9)

    def run(inputs: Inputs, run: Pass) -> Tensor:
        x, scale, shift, mean, variance = inputs[:5]
        weight = momentum if run.statistics_momentum is None else run.statistics_momentum
        return F.batch_norm(x, mean, variance, scale, shift, run.training, weight, epsilon)

    return run


def _instance_norm(site: Site) -> Operator:
    epsilon = site.attribute("epsilon", 1e-5)
    return lambda inputs, run: F.instance_norm(inputs[0], weight=inputs[1], bias=inputs[2], eps=epsilon)


def _layer_norm(site: Site) -> Operator:
    site.unless(len([name for name in site.node.output if name]) == 1, "a second output")
    epsilon, axis, has_bias = site.attribute("epsilon", 1e-5), site.attribute("axis", -1), site.has(2)

    def run(inputs: Inputs, _: Pass) -> Tensor:
        x = inputs[0]
        shape = list(x.shape[axis:])
        bias = inputs[2].expand(shape) if has_bias else None
        return F.layer_norm(x, shape, inputs[1].expand(shape), bias, epsilon)

    return run


def _group_norm(site: Site) -> Operator:
    epsilon, groups, per_channel = site.attribute("epsilon", 1e-5), site.attribute("num_groups"), site.opset >= 21

    def run(inputs: Inputs, _: Pass) -> Tensor:
        x, scale, shift = inputs
        if not per_channel:  # opset 18 has one scale for a whole group
            scale, shift = (part.repeat_interleave(x.shape[1] // groups) for part in (scale, shift))
        return F.group_norm(x, groups, scale, shift, epsilon)

    return run


def _softmax(function: Callable[..., Tensor]) -> Builder:
    def build(site: Site) -> Operator:
        if site.opset >= 13:
            axis = site.attribute("axis", -1)
            return lambda inputs, run: function(inputs[0], dim=axis)
        axis = site.attribute("axis", 1)

        def run(inputs: Inputs, _: Pass) -> Tensor:
            x = inputs[0]
            # Below opset 13 all axes from this one on are one.
            return function(x.flatten(axis), dim=-1).reshape(x.shape)

        return run

    return build


def _lp_norm(site: Site) -> Operator:
    axis, order = site.attribute("axis", -1), site.attribute("p", 2)

    def run(inputs: Inputs, _: Pass) -> Tensor:
        x = inputs[0]
        size = torch.linalg.vector_norm(x, ord=order, dim=axis, keepdim=True)
        return torch.where(size == 0, torch.zeros_like(x), x / size)

    return run


def _local_response_norm(site: Site) -> Operator:
    size, alpha, beta = site.attribute("size"), site.attribute("alpha", 1e-4), site.attribute("beta", 0.75)
    bias = site.attribute("bias", 1.0)
    # An even window reaches one channel further ahead, torch's one further back.
    site.unless(size % 2 == 1, "an even size")
    return lambda inputs, run: F.local_response_norm(inputs[0], size, alpha, beta, bias)


def _dropout(site: Site) -> Operator:
    training = site.constant(2)
    site.unless(not site.has(2) or (training is not None and not training.any()), "training_mode")
    mask_wanted = len(site.node.output) > 1 and bool(site.node.output[1])

    def run(inputs: Inputs, _: Pass) -> Tensor | tuple[Tensor, ...]:
        x = inputs[0]
        return (x, torch.ones_like(x, dtype=torch.bool)) if mask_wanted else x

    return run


OPERATORS: Mapping[str, Builder] = MappingProxyType(
    {
        "BatchNormalization": _batch_norm,
        "InstanceNormalization": _instance_norm,
        "LayerNormalization": _layer_norm,
        "GroupNormalization": _group_norm,
        "LpNormalization": _lp_norm,
        "LRN": _local_response_norm,
        "Softmax": _softmax(F.softmax),
        "LogSoftmax": _softmax(F.log_softmax),
        "Dropout": _dropout,
    }
)
"""Operator → builder. Dropout hands its input on in training too: the graph is one of inference."""
