"""Learning rates and momentum at each step, and the order in which images come: what a run of a recipe does when."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qtoolkit.training.dataset import TrainingSet
from qtoolkit.training.recipe import TrainRecipe

__all__ = ["BatchTask", "Rates", "Schedule"]

_WARMUP_EPOCHS, _WARMUP_SHARE = 3, 0.1
_WARMUP_BIAS_LR, _WARMUP_MOMENTUM = 0.1, 0.8


class Rates(NamedTuple):
    """Learning rate of weights and of biases, and momentum, at one step."""

    weights: float
    biases: float
    momentum: float


class BatchTask(NamedTuple):
    """One batch to prepare: ``indices`` as seen from position ``first`` of ``epoch`` on, at ``size`` pixels."""

    indices: NDArray[np.int64]
    epoch: int
    first: int
    size: int
    mosaic: bool


@dataclass(frozen=True)
class Schedule:
    """The steps of a run over ``set_images`` photos by ``processes`` processes. One step is one update of the weights.

    An epoch is as many steps as the photos fill, at least one; the photos left over differ from epoch to epoch. In a
    set smaller than a step, photos come several times, changed differently.
    """

    recipe: TrainRecipe
    set_images: int
    processes: int

    @property
    def step_images(self) -> int:
        """Images per step, of all processes."""
        return self.processes * self.recipe.batch * self.recipe.accumulate

    @property
    def epoch_steps(self) -> int:
        """Steps per epoch."""
        return max(1, self.set_images // self.step_images)

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        if self.recipe.epochs is not None:
            return self.recipe.epochs * self.epoch_steps
        return math.ceil((self.recipe.images or 1) / self.step_images)

    @property
    def warmup_steps(self) -> int:
        """Steps over which the rates rise."""
        if self.recipe.warmup_images is not None:
            return round(self.recipe.warmup_images / self.step_images)
        return min(_WARMUP_EPOCHS * self.epoch_steps, round(_WARMUP_SHARE * self.steps))

    def rates(self, step: int) -> Rates:
        """Rates of step 0, 1, …: a cosine from lr to lr · lr_final, which the warm-up approaches along a line.

        In the warm-up weights start at 0, biases at 0.1 and momentum at 0.8 (adamw, muon: all at 0, momentum as it is).
        Source: edgeai-yolov5, ``train.py``.
        """
        final = self.recipe.lr_final
        cosine = (1 - math.cos(math.pi * step / self.steps)) / 2
        lr = self.recipe.base_lr * (1 + (final - 1) * cosine)
        momentum = self.recipe.momentum
        if step >= self.warmup_steps:
            return Rates(lr, lr, momentum)
        share = step / self.warmup_steps
        if self.recipe.optimizer != "sgd":
            return Rates(lr * share, lr * share, momentum)
        start = min(_WARMUP_MOMENTUM, momentum)
        return Rates(lr * share, _WARMUP_BIAS_LR + (lr - _WARMUP_BIAS_LR) * share, start + (momentum - start) * share)

    def size_at(self, step: int) -> int:
        """Image size of a step, pixels."""
        return self.recipe.size_at(step / self.steps)

    def widths_at(self, step: int) -> tuple[float, ...]:
        """Sigmas of the OKS loss at a step, as multiples of the published ones; the loss is the mean over these."""
        done = min(step / (self.steps * self.recipe.widening_share), 1.0)
        widest = float(self.recipe.widening ** (1 - done))
        if self.recipe.widening_kind == "shrink":
            return (widest,)
        return (*(2.0**rung for rung in range(math.ceil(math.log2(widest)))), widest)

    def mosaic_at(self, step: int) -> bool:
        """Whether the images of a step may be mosaics."""
        return step < self.steps * (1 - self.recipe.close_mosaic) - 1e-9

    def batches(self, images: TrainingSet, rank: int, start: int = 0) -> Iterator[BatchTask]:
        """The batches of process ``rank`` from step ``start`` to the end, ``accumulate`` of them per step.

        The processes together take the photos that one process of the whole batch would, in the same order.
        """
        batch, accumulate = self.recipe.batch, self.recipe.accumulate
        order, order_epoch = images.order(0), 0
        for step in range(start, self.steps):
            epoch, step_of_epoch = divmod(step, self.epoch_steps)
            if epoch != order_epoch:
                order, order_epoch = images.order(epoch), epoch
            for part in range(accumulate):
                first = ((step_of_epoch * accumulate + part) * self.processes + rank) * batch
                indices = order[np.arange(first, first + batch) % len(order)]
                yield BatchTask(indices, epoch, first, self.size_at(step), self.mosaic_at(step))
