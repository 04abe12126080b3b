"""The average of the weights over the training, which is what is evaluated and kept."""

from __future__ import annotations

import copy
import math
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

__all__ = ["AveragedModel"]

ModelT = TypeVar("ModelT", bound=nn.Module)


class AveragedModel(Generic[ModelT]):
    """A copy of a model that follows it: average = d · average + (1 − d) · weight after every step.

    d = decay · (1 − exp(−updates / warmup_steps)) grows, so that the average of a short run is not its random start
    (edgeai-yolov5, ``ModelEMA``). Running statistics are averaged like weights; counters are copied.
    """

    def __init__(self, model: ModelT, decay: float, warmup_steps: int) -> None:
        self.model: ModelT = copy.deepcopy(model).eval().requires_grad_(False)
        self.updates = 0
        self._decay = decay
        self._warmup_steps = warmup_steps
        self._followed: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights of ``model``, the same at every call, after a step."""
        self.updates += 1
        if not self._followed:
            # Looked up once: state_dict takes as long as a small network's forward pass.
            current = model.state_dict()
            self._followed = [(average, current[name]) for name, average in self.model.state_dict().items()]
        decay = self._decay * (1 - math.exp(-self.updates / self._warmup_steps))
        floats = [(average, now) for average, now in self._followed if average.dtype.is_floating_point]
        averages, values = [average for average, _ in floats], [now.to(average.dtype) for average, now in floats]
        torch._foreach_lerp_(averages, values, 1 - decay)
        for average, now in self._followed:
            if not average.dtype.is_floating_point:
                average.copy_(now)
