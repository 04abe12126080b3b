"""Learn how the weights of a quantized network are rounded, unit by unit, from photos without labels.

Units (``graph.units``) are learned in order, everything in front already rounded and fixed (BRECQ, arXiv 2102.05426).
In each, weights are rounded by AdaRound and activations by QDrop (``rounding``), its inputs a mixture of what the
quantized and the float network hand it; biases and scales of activations are learned along. Minimized is::

    Σ mean(a · (ŷ − y)²) / e₀ + pull · f(V)      over the unit's outputs, y in the float network, ŷ in the quantized
    a = 1 / mean(y²), or the channel's weight by ``output_fisher``
    e₀ = Σ mean(a · (ŷ − y)²)                    with weights rounded to nearest on float activations

Over e₀ and with the mean f, the two terms have the same proportion whatever the size of the unit and its values. A unit
that is learned no better than PTQ made it, on crops it was not learned on, stays as PTQ made it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qtoolkit.artifacts.plan import Precision
from qtoolkit.errors import ModelFileError
from qtoolkit.graph.layers import Structure
from qtoolkit.graph.placement import Placement
from qtoolkit.graph.units import find_units
from qtoolkit.training.output_fisher import channel_weights
from qtoolkit.training.photo_crops import photo_crops
from qtoolkit.training.quantized_pair import QuantizedPair
from qtoolkit.training.state_folder import StateFolder
from qtoolkit.training.unit_inputs import UnitInputs
from qtoolkit.training.unit_learning import RoundingOptions, UnitLearning, fixed_weight
from qtoolkit.training.unit_traffic import UnitTraffic, unit_traffic

__all__ = ["learn_rounding_"]

_ROUNDED = "rounded."
_FISHER_CROPS = 32


def learn_rounding_(
    pair: QuantizedPair,
    placement: Placement,
    photos: Sequence[Path],
    size_wh: tuple[int, int],
    options: RoundingOptions,
    state: StateFolder,
    plain_biases: Mapping[str, Tensor],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Tensor]:
    """Learn the rounding of the student of ``pair``; the weights of the learned layers, on their grids, by layer.

    Only layers that ``placement`` has at int8. ``plain_biases``: biases, by constant, that belong to weights that are
    not rounded, where the student has others. ``state`` keeps what each finished unit left, and a stopped run goes on
    behind it with the same result; files with the units' inputs lie beside it meanwhile. ``progress`` is called with
    (steps taken, total). Raises QtoolError where a loss is no number, DataSetError for a photo that cannot be read,
    ModelFileError where the network cannot be taken apart.
    """
    for parameter in pair.trained().values():
        parameter.requires_grad_(False)
    structure = Structure.of(pair.model)
    traffic = unit_traffic(structure, placement, find_units(structure))
    images, options = _images(pair, photos, size_wh, options)
    importance: dict[str, Tensor] = {}
    if options.fisher:
        ends = list(dict.fromkeys(tensor for each in traffic for tensor in each.outputs.values()))
        importance = channel_weights(pair, images[:_FISHER_CROPS], ends, options.seed)
    first, rounded, errors = _resume_(pair, state)
    total = len(traffic) * options.steps

    def report(unit: int) -> Callable[[int], None]:
        return lambda step: progress(unit * options.steps + step, total)

    with UnitInputs(pair, traffic, images, state.log.parent) as inputs:
        for number, each in enumerate(traffic):
            inputs.run_teacher(each)
            if number >= first:
                if layers := _learned_layers(pair, placement, each):
                    learning = UnitLearning(pair, each, layers, inputs, options, number, importance, plain_biases)
                    found = learning.learn(report(number))
                    rounded |= found.weights or {}
                    errors.append([number, found.before, found.learned])
                tensors = {name: tensor.detach() for name, tensor in pair.tensors().items()}
                tensors |= {_ROUNDED + name: weight for name, weight in rounded.items()}
                state.save_tuned(tensors, {"units": number + 1, "errors": errors})
            inputs.run_student(each)
    progress(total, total)
    return rounded


def _learned_layers(pair: QuantizedPair, placement: Placement, traffic: UnitTraffic) -> list[str]:
    layers = traffic.unit.layers if traffic.outputs else ()
    return [name for name in layers if placement.layers.get(name) is Precision.INT8 and name in pair.weights]


def _resume_(pair: QuantizedPair, state: StateFolder) -> tuple[int, dict[str, Tensor], list[list[float]]]:
    """The number of finished units, with what they left put into the student."""
    if state.tuned is None:
        return 0, {}, []
    rounded = {
        name.removeprefix(_ROUNDED): tensor for name, tensor in state.tuned.tensors.items() if name.startswith(_ROUNDED)
    }
    pair.load_(state.tuned.tensors)
    for name, weight in rounded.items():
        pair.student.set_weight_transform(name, fixed_weight(weight))
    return int(state.tuned.facts["units"]), rounded, list(state.tuned.facts["errors"])


def _images(
    pair: QuantizedPair, photos: Sequence[Path], size_wh: tuple[int, int], options: RoundingOptions
) -> tuple[Tensor, RoundingOptions]:
    """Crops (N, 3, h, w) and the batches to take of them; whole photos, as many times fewer as they are larger, where
    the network runs at no other size than its own."""
    random = np.random.default_rng([options.seed, 0, 0])
    w, h = (min(options.crop, side) for side in size_wh)
    try:
        with torch.no_grad():
            pair.teacher(torch.zeros(1, 3, h, w))
    # What torch raises where shapes do not fit each other, and what the graph's own constants do not allow.
    except (RuntimeError, ModelFileError):
        share = w * h / (size_wh[0] * size_wh[1])
        count, batch = max(8, round(options.crops * share)), max(1, round(options.batch * share))
        options = replace(options, crop=max(size_wh), crops=count, batch=batch)
    return photo_crops(photos, size_wh, options.crop, options.crops, random), options
