"""What 16 bit costs each layer of a ranking in time: measured on the target's own runtime, or modelled."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import onnx
from numpy.typing import NDArray

from qtoolkit.artifacts.plan import Precision
from qtoolkit.artifacts.sensitivity import Sensitivity
from qtoolkit.quantization.border_times import border_times
from qtoolkit.quantization.layer_times import UniformTimes, uniform_times
from qtoolkit.quantization.modelled_times import modelled_added_ms
from qtoolkit.quantization.ptq import Quantizer
from qtoolkit.quantization.run import Run

__all__ = ["with_times"]


def with_times(
    run: Run, quantizer: Quantizer, ranking: Sensitivity, engine_times: Callable[..., Mapping[str, float]]
) -> Sensitivity:
    """``ranking`` with the milliseconds that each layer takes longer at the 16 bit of ``run`` than at 8.

    Of the device that the recipe names, modelled; else profiled here, in an engine where the target needs one: by
    ``engine_times(model, target=…, feeds=…, folder=…)``, milliseconds of each node.
    """
    if run.recipe.device is not None:
        return _with_added(ranking, modelled_added_ms(run.model, run.recipe.device))
    feed = next(iter(run.calibration_feeds()))
    measure = None
    if run.target.needs_engine:
        folder = run.store.path("engines", "x").parent
        measure = partial(engine_times, target=run.target, feeds=feed, folder=folder)
    wide_model, int8_model = (quantizer.quantize(run.uniform_plan(each)).model for each in (run.wide, Precision.INT8))
    names = frozenset(layer.name for layer in run.layers)
    uniform = uniform_times(wide_model, int8_model, names, feed, run.recipe.threads, measure)
    ranking = _with_added(ranking, uniform.added_ms)
    # Only ONNX Runtime's profile tells those at the borders.
    return _with_borders(run, quantizer, ranking, uniform, feed) if run.target.backend == "ort-cpu" else ranking


def _with_added(ranking: Sensitivity, times: Mapping[str, float]) -> Sensitivity:
    rows = tuple(row.model_copy(update={"added_ms": times[row.layer]}) for row in ranking.layers)
    return ranking.model_copy(update={"layers": rows})


def _with_borders(
    run: Run, quantizer: Quantizer, ranking: Sensitivity, uniform: UniformTimes, feed: Mapping[str, NDArray[Any]]
) -> Sensitivity:
    """``ranking`` with the times at the borders of 8 and 16 bit."""
    narrow = run.uniform_plan(Precision.INT8)

    def network_with(wide: Collection[str]) -> onnx.ModelProto:
        return quantizer.quantize(narrow.with_layers(dict.fromkeys(wide, run.wide))).model

    found = border_times(run.model, network_with, uniform, feed, run.recipe.threads)
    rows = [
        row.model_copy(
            update={"narrowing_ms": found.narrowing.get(row.layer), "widening_ms": found.widening.get(row.layer)}
        )
        for row in ranking.layers
    ]
    return ranking.model_copy(update={"layers": tuple(rows)})
