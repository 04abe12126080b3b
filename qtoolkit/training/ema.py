"""The average of the weights over the training, which is what is evaluated and kept."""

from __future__ import annotations

import copy
import math
from typing import Generic, TypeVar

import torch
from torch import nn

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

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights of ``model`` after a step."""
        self.updates += 1
        decay = self._decay * (1 - math.exp(-self.updates / self._warmup_steps))
        current = model.state_dict()
        for name, average in self.model.state_dict().items():
            if average.dtype.is_floating_point:
                average.lerp_(current[name].detach().to(average.dtype), 1 - decay)
            else:
                average.copy_(current[name])
