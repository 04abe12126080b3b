"""Learned rounding of a weight, and activations that are rounded here and there only.

AdaRound (Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", arXiv 2004.10568, equations 22
to 24): of the two grid values around each weight w, one is chosen by a variable V of its own::

    ŵ    = s · clip(⌊w / s⌋ + h(V), qmin, qmax)
    h(V) = clip(σ(V) · (ζ − γ) + γ, 0, 1)                 rectified sigmoid, ζ = 1.1, γ = −0.1
    f(V) = mean of 1 − |2 · h(V) − 1| ^ β                 0 where every h is 0 or 1

V begins so that h is the fraction of w / s, so ŵ = w; β falls from 20 to 2 (``beta``), which pulls h to 0 or 1. At the
end h is rounded. The paper sums f; here it is the mean, see ``unit_reconstruction``.

QDrop (Wei et al., "QDrop: Randomly Dropping Quantization for Extremely Low-bit Post-Training Quantization", arXiv
2203.05740): while a unit is learned, each element of a rounded activation keeps its float value with a probability.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from qtoolkit.training.fake_quantizer import FakeQuantizer

__all__ = ["LearnedRounding", "beta", "dropped", "mixed"]

_ZETA, _GAMMA = 1.1, -0.1
_BETA_FIRST, _BETA_LAST = 20.0, 2.0
_WARMUP = 0.2


class LearnedRounding(nn.Module):
    """In the place of the fake quantizer of a weight: formula in the module's text.

    ``weight`` is the float weight; scales and grid are those that ``quantizer`` has now, and stay. The one parameter is
    ``v``, of the weight's shape. It takes the place of a weight transform, whose argument is left unread.
    """

    floor: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, quantizer: FakeQuantizer) -> None:
        super().__init__()
        params = quantizer.first
        shape = [1] * weight.dim()
        if params.axis is not None:
            shape[params.axis] = -1
        with torch.no_grad():
            scale = quantizer.scale.detach().clone().reshape(shape)
            steps = weight.detach().float() / scale
            floor = steps.floor()
            share = ((steps - floor) - _GAMMA) / (_ZETA - _GAMMA)
        self._limits = (float(params.grid.qmin), float(params.grid.qmax))
        self.register_buffer("scale", scale)
        self.register_buffer("floor", floor)
        self.v = nn.Parameter(torch.logit(share))

    def share_up(self) -> Tensor:
        """h(V), 0 … 1, of the weight's shape."""
        return (self.v.sigmoid() * (_ZETA - _GAMMA) + _GAMMA).clamp(0, 1)

    def forward(self, _: Tensor) -> Tensor:
        """The weight between its grid values: float32."""
        return (self.floor + self.share_up()).clamp(*self._limits) * self.scale

    def unevenness(self, exponent: float) -> Tensor:
        """f(V) of the module's text with β = ``exponent``: (), 0 … 1."""
        return (1 - (2 * self.share_up() - 1).abs().pow(exponent)).mean()

    @torch.no_grad()
    def hardened(self) -> Tensor:
        """The weight on its grid, each h of 0.5 or more as 1, the others as 0: float32."""
        up = (self.share_up() >= 0.5).float()
        # −0.0 must become 0.0, as it does on its way through an integer.
        return (self.floor + up).clamp(*self._limits).add(0.0) * self.scale


def beta(step: int, steps: int) -> float | None:
    """β at ``step`` of ``steps``: None during the first fifth, where nothing is pulled, then from 20 to 2 along a
    line."""
    done = (step / steps - _WARMUP) / (1 - _WARMUP)
    if done < 0:
        return None
    return _BETA_LAST + (_BETA_FIRST - _BETA_LAST) * (1 - done)


def dropped(quantizer: FakeQuantizer, probability: float, random: torch.Generator) -> Callable[..., Tensor]:
    """``quantizer``, each element left in float with ``probability``: 0 rounds all, 1 none."""

    def function(x: Tensor, *_: Tensor) -> Tensor:
        return mixed(quantizer(x), x, probability, random)

    return function


def mixed(rounded: Tensor, plain: Tensor, probability: float, random: torch.Generator) -> Tensor:
    """Elements of ``plain`` with ``probability``, the others of ``rounded``; both of one shape."""
    if probability <= 0:
        return rounded
    if probability >= 1:
        return plain
    keeps = torch.empty(rounded.shape, dtype=torch.bool).bernoulli_(probability, generator=random)
    return torch.where(keeps, plain, rounded)
