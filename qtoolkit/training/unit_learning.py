"""Learn how the weights of one unit of a quantized network are rounded (``unit_reconstruction``)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from qtoolkit.errors import QtoolError
from qtoolkit.training.fake_quantizer import FakeQuantizer
from qtoolkit.training.onnx_module import Transform
from qtoolkit.training.quantized_pair import QuantizedPair
from qtoolkit.training.rounding import LearnedRounding, beta, dropped, mixed
from qtoolkit.training.unit_inputs import UnitInputs
from qtoolkit.training.unit_traffic import UnitTraffic

__all__ = ["LearnedUnit", "RoundingOptions", "UnitLearning", "fixed_weight"]

_HELD_OUT = 8
_FINAL = 0.02
# The usual memory of 1000 steps is longer than the learning of a unit: the pull of f would come too late.
_ADAM_BETAS = (0.9, 0.95)


@dataclass(frozen=True)
class RoundingOptions:
    """``steps`` of Adam for each unit on batches of ``batch`` of ``crops`` crops of ``crop`` pixels, at the rate ``lr``
    for the variables of rounding, ``grid_lr`` for the logarithms of scales of activations (0: not learned) and
    ``bias_lr`` times their root mean square for biases; ``drop``: probability that an activation stays float; ``pull``:
    weight of f; ``fisher``: weigh channels by the Fisher information; ``seed`` of what is drawn."""

    steps: int = 300
    batch: int = 4
    crops: int = 128
    crop: int = 320
    lr: float = 5e-2
    grid_lr: float = 2e-3
    bias_lr: float = 3e-3
    drop: float = 0.5
    pull: float = 30.0
    fisher: bool = False
    seed: int = 0


@dataclass(frozen=True)
class LearnedUnit:
    """``weights`` of the unit's layers on their grids, None where it stays as it was; its error Σ mean(a · (ŷ − y)²) on
    crops that it was not learned on, ``before`` and with what was ``learned``."""

    weights: dict[str, Tensor] | None
    before: float
    learned: float


class UnitLearning:
    """One unit: the integer layers ``layers`` of ``traffic``, number ``number`` of the network.

    ``importance``: a by tensor of the float network; where it is missing, 1 over the tensor's mean square.
    ``plain_biases``: what a bias begins with, by name of the constant, where that is not what the student has.
    """

    def __init__(
        self,
        pair: QuantizedPair,
        traffic: UnitTraffic,
        layers: Sequence[str],
        inputs: UnitInputs,
        options: RoundingOptions,
        number: int,
        importance: Mapping[str, Tensor],
        plain_biases: Mapping[str, Tensor],
    ) -> None:
        self._pair, self._traffic, self._inputs, self._options = pair, traffic, inputs, options
        self._importance, self._plain_biases = dict(importance), plain_biases
        self._random = np.random.default_rng([options.seed, number])
        self._noise = torch.Generator().manual_seed(int(self._random.integers(1 << 62)))
        # The last images are not learned from.
        self._learned_on = inputs.count - max(1, inputs.count // _HELD_OUT)
        constants = pair.student.parameters_by_name()
        self._roundings = {
            name: LearnedRounding(constants[pair.layers[name].weight], pair.weights[name]) for name in layers
        }
        self._biases = {
            name: constants[name]
            for name in (pair.layers[layer].bias for layer in layers)
            if name and _alone(pair, name)
        }
        made = set(traffic.unit.tensors)
        self._pairs = {key: each for key, each in pair.activations.items() if key[0] in made and key[1] == 8}
        self._ratios = _ratios_inside(pair, self._pairs) if options.grid_lr > 0 else {}

    def learn(self, progress: Callable[[int], None]) -> LearnedUnit:
        """Learn, and leave the student with what was learned or, where that is no better, with what it had.

        ``progress`` is called with the steps taken. Raises QtoolError where a loss is no number.
        """
        first, held_out = range(min(self._learned_on, self._options.batch)), range(self._learned_on, self._inputs.count)
        self._weigh(first)
        before = self._error(held_out)
        kept = {each: each.detach().clone() for each in (*self._biases.values(), *self._ratios.values())}
        self._begin_()
        self._optimize(self._rounding_error(first), progress)
        for each in kept:
            each.requires_grad_(False)
        weights = {name: rounding.hardened() for name, rounding in self._roundings.items()}
        self._round_with({name: fixed_weight(weight) for name, weight in weights.items()})
        learned = self._error(held_out)
        if learned < before:
            return LearnedUnit(weights, before, learned)
        with torch.no_grad():
            for each, value in kept.items():
                each.copy_(value)
        self._round_with(self._pair.weights)
        return LearnedUnit(None, before, learned)

    def _optimize(self, unit: float, progress: Callable[[int], None]) -> None:
        groups = self._groups()
        optimizer = torch.optim.Adam([{"params": each, "lr": rate} for each, rate in groups], betas=_ADAM_BETAS)
        self._drop_(self._options.drop)
        for step in range(self._options.steps):
            for group, (_, rate) in zip(optimizer.param_groups[1:], groups[1:], strict=True):
                group["lr"] = rate * (_FINAL + (1 - _FINAL) * (1 + math.cos(math.pi * step / self._options.steps)) / 2)
            self._step(step, unit, optimizer)
            progress(step + 1)
        self._drop_(0.0)

    def _round_with(self, transforms: Mapping[str, Transform]) -> None:
        for name in self._roundings:
            self._pair.student.set_weight_transform(name, transforms[name])

    def _begin_(self) -> None:
        with torch.no_grad():
            for name, bias in self._biases.items():
                bias.copy_(self._plain_biases.get(name, bias))
        for each in (*self._biases.values(), *self._ratios.values()):
            each.requires_grad_(True)
        self._round_with(self._roundings)

    def _groups(self) -> list[tuple[list[nn.Parameter], float]]:
        """What is learned, and how fast: the variables of rounding first."""
        groups = [([each.v for each in self._roundings.values()], self._options.lr)]
        groups.append((list(self._ratios.values()), self._options.grid_lr))
        groups += [
            ([bias], self._options.bias_lr * float(bias.detach().square().mean().sqrt().clamp(min=1e-3)))
            for bias in self._biases.values()
        ]
        return [(parameters, rate) for parameters, rate in groups if parameters]

    def _step(self, step: int, unit: float, optimizer: torch.optim.Optimizer) -> None:
        size = min(self._options.batch, self._learned_on)
        indices = self._random.choice(self._learned_on, size, replace=False).tolist()
        loss = self._distance(indices, self._run(indices, self._options.drop)) / unit
        if (exponent := beta(step, self._options.steps)) is not None:
            sizes = {each: each.v.numel() for each in self._roundings.values()}
            uneven = sum(each.unevenness(exponent) * size for each, size in sizes.items())
            loss = loss + self._options.pull * uneven / sum(sizes.values())
        if not math.isfinite(loss.item()):
            raise QtoolError(
                "the learned rounding of a unit went astray",
                expected="a loss that is a number",
                found=f"{loss.item()} at {', '.join(self._traffic.unit.layers)}",
                do="leave the correction rounding out",
            )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    def _run(self, indices: Sequence[int], drop: float) -> dict[str, Tensor]:
        """The unit's ends, its inputs float with the probability ``drop``."""
        names = self._traffic.inputs
        plain = self._inputs.teacher(list(names.values()), indices) if drop > 0 else {}
        feeds = self._inputs.student(list(names), indices) if drop < 1 else {}
        for name, tensor in names.items() if plain else ():
            feeds[name] = mixed(feeds.get(name, plain[tensor]), plain[tensor], drop, self._noise)
        ends: dict[str, Tensor] = self._pair.student(feeds, outputs=list(self._traffic.outputs))
        return ends

    def _distance(self, indices: Sequence[int], ends: Mapping[str, Tensor]) -> Tensor:
        wanted = self._inputs.teacher(list(self._traffic.outputs.values()), indices)
        return self._between(ends, {name: wanted[tensor] for name, tensor in self._traffic.outputs.items()})

    def _between(self, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Tensor:
        total = torch.zeros(())
        for name, tensor in self._traffic.outputs.items():
            total = total + (self._importance[tensor] * (given[name] - wanted[name]).square()).mean()
        return total

    def _weigh(self, indices: Sequence[int]) -> None:
        for name in set(self._traffic.outputs.values()) - self._importance.keys():
            (values,) = self._inputs.teacher([name], indices).values()
            self._importance[name] = 1 / values.square().mean().clamp(min=1e-12)

    @torch.no_grad()
    def _rounding_error(self, indices: Sequence[int]) -> float:
        """e₀: what rounding the weights to nearest alone does, on float activations."""
        self._drop_(1.0)
        exact = self._run(indices, 1.0)
        self._round_with({name: fixed_weight(each.hardened()) for name, each in self._roundings.items()})
        rounded = self._run(indices, 1.0)
        self._round_with(self._roundings)
        self._drop_(0.0)
        error = float(self._between(rounded, exact))
        # Where every weight lies on its grid there is nothing to gain, and nothing to divide by.
        return error if error > 0 else 1.0

    @torch.no_grad()
    def _error(self, indices: Sequence[int]) -> float:
        size = self._options.batch
        parts = [indices[start : start + size] for start in range(0, len(indices), size)]
        return sum(float(self._distance(part, self._run(part, 0.0))) * len(part) for part in parts) / len(indices)

    def _drop_(self, probability: float) -> None:
        for (tensor, bits), quantizer in self._pairs.items():
            function = dropped(quantizer, probability, self._noise) if probability > 0 else quantizer
            self._pair.student.set_node_function(f"{tensor}/QuantizeLinear{bits}", function)


def fixed_weight(weight: Tensor) -> Transform:
    """A weight transform that gives ``weight``, whatever it is called with."""
    return lambda _: weight


def _alone(pair: QuantizedPair, bias: str) -> bool:
    return sum(layer.bias == bias for layer in pair.layers.values()) == 1


def _ratios_inside(
    pair: QuantizedPair, pairs: Mapping[tuple[str, int], FakeQuantizer]
) -> dict[tuple[str, int], nn.Parameter]:
    """Learned scales of ``pairs``, each once, that no tensor elsewhere shares: those would change behind its back."""
    outside = {id(each) for key, each in pair.activations.items() if key not in pairs}
    unique = {id(each): (key, each.log2_ratio) for key, each in pairs.items() if id(each) not in outside}
    return {key: ratio for key, ratio in unique.values() if isinstance(ratio, nn.Parameter)}
