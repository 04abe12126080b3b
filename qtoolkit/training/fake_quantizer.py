"""Fake quantization in torch with a scale that is learned (LSQ).

::

    s = s₀ · 2^δ                                        δ learned, 0 at first; rounded where scales are powers of two
    y = (clip(round(x / s) + z, qmin, qmax) − z) · s    round half to even, all in float32

The forward values are those of ``numerics.affine.fake_quantize`` bit for bit. Gradients, with v = x / s:

- to x: 1 inside the grid, 0 where the value is clipped (straight-through estimator);
- to s: round(v) − v inside, qmin − z or qmax − z where it is clipped, all times 1 / √(N · Qmax) with N the number of
  values that share the scale (of one image). Source: Esser et al., "Learned Step Size Quantization", arXiv 1902.08153.

Not s itself is the parameter but the logarithm of its ratio to the first scale: a step of Adam has the size of the
learning rate whatever the gradient, which would be nothing for one scale and many times another; as a logarithm every
scale changes by the same share, and stays above 0. Where scales are powers of two, δ is rounded in the forward pass and
its gradient passes straight through (Jain et al., "Trained Quantization Thresholds", arXiv 1903.08066).
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from qtoolkit.numerics.affine import QuantParams

__all__ = ["FakeQuantizer", "round_bias"]

_BIAS_LIMIT = 2**31 - 1
_Bound: TypeAlias = "float | Tensor"


class _LearnedStep(torch.autograd.Function):
    """The formula above; ``scale`` and the bounds, in steps from the zero point, broadcast against ``x``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, lowest: _Bound, highest: _Bound, factor: float) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.bounds, ctx.factor = (lowest, highest), factor
        # −0.0 must become 0.0, as it does on its way through an integer.
        return (x / scale).round_().clamp_(lowest, highest).add_(0.0).mul_(scale)  # type: ignore[arg-type]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (given,) = gradients
        x, scale = ctx.saved_tensors
        steps = x / scale
        rounded = steps.round()
        clipped = rounded.clamp(*ctx.bounds)
        # As floats: products with a mask of booleans take several times as long.
        inside = (clipped == rounded).to(steps.dtype)
        to_scale = None
        if ctx.needs_input_grad[1]:
            # Inside: round(v) − v; outside the bound alone.
            error = clipped.sub_(steps.mul_(inside)).mul_(given)
            to_scale = error.sum_to_size(scale.shape).mul_(ctx.factor)
        return given * inside, to_scale, None, None, None


class FakeQuantizer(nn.Module):
    """Rounds a tensor to the grid of ``params``, which may become another one where ``learned``.

    One scale or, along ``params.axis``, one for each channel; zero points stay as they are. ``batched`` says that the
    first axis holds images. It can be shared by tensors that must have one grid, and called with more arguments, which
    are left unread: it takes the place of an ONNX node.
    """

    start: Tensor
    log2_ratio: Tensor

    def __init__(self, params: QuantParams, learned: bool, batched: bool = True) -> None:
        super().__init__()
        self.first = params
        self._batched = batched
        self.register_buffer("start", torch.from_numpy(params.scale.copy()))
        ratio = torch.zeros(params.scale.shape)
        if learned:
            self.log2_ratio = nn.Parameter(ratio)
        else:
            self.register_buffer("log2_ratio", ratio)

    @property
    def scale(self) -> Tensor:
        """The scale of now: () or (C,), float32."""
        ratio = self.log2_ratio
        if self.first.grid.power_of_two:
            ratio = ratio + (ratio.round() - ratio).detach()
        return self.start * torch.exp2(ratio)

    def forward(self, x: Tensor, *_: Tensor) -> Tensor:
        """``x`` on the grid: float32, its shape. It is computed in float32 under autocast too."""
        x = x.float()
        shape = self._shape(x)
        sharing = max(1, x.numel() // (self.start.numel() * (len(x) if self._batched else 1)))
        factor = float(sharing * self.first.grid.qmax) ** -0.5
        lowest, highest = (
            _bound(limit, self.first, shape, x.device) for limit in (self.first.grid.qmin, self.first.grid.qmax)
        )
        scale = self.scale.reshape(shape)
        result: Tensor = _LearnedStep.apply(x, scale, lowest, highest, factor)  # type: ignore[no-untyped-call]
        return result

    def params(self) -> QuantParams:
        """The quantization parameters of now."""
        scale = self.scale.detach().cpu().numpy()
        return QuantParams(scale, self.first.zero_point, self.first.grid, self.first.axis)

    def _shape(self, x: Tensor) -> list[int]:
        shape = [1] * x.dim()
        if self.first.axis is not None:
            shape[self.first.axis] = -1
        return shape


def _bound(limit: int, params: QuantParams, shape: list[int], device: torch.device) -> _Bound:
    """A limit of the grid in steps from the zero point: a number where all channels have one, which is much faster."""
    steps = limit - params.zero_point.astype(np.float32)
    if bool(np.all(steps == steps.flat[0])):
        return float(steps.flat[0])
    return torch.from_numpy(steps).to(device).reshape(shape)


def round_bias(bias: Tensor, input_scale: Tensor, weight_scale: Tensor) -> Tensor:
    """A bias (C,) on its int32 grid of scale input × weight; the gradient passes straight through to the bias alone.

    ``input_scale`` is (), ``weight_scale`` () or (C,). The integers are computed in float64, as float32 cannot hold
    them.
    """
    with torch.no_grad():
        scale = (input_scale * weight_scale).float()
        steps = (bias.double() / scale.double()).round().clamp(-_BIAS_LIMIT, _BIAS_LIMIT)
        rounded = steps.float() * scale
    return bias + (rounded - bias).detach()
