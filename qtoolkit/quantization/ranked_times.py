"""What 16 bit costs each layer of a ranking in time: measured on the target's own runtime, or modelled."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial

import onnx

from qtoolkit.artifacts.plan import Precision
from qtoolkit.artifacts.sensitivity import Sensitivity
from qtoolkit.quantization.border_times import border_times
from qtoolkit.quantization.layer_times import added_ms
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
        times = modelled_added_ms(run.model, run.recipe.device)
    else:
        wide_model, int8_model = (
            quantizer.quantize(run.uniform_plan(each)).model for each in (run.wide, Precision.INT8)
        )
        feed = next(iter(run.calibration_feeds()))
        measure = None
        if run.target.needs_engine:
            folder = run.store.path("engines", "x").parent
            measure = partial(engine_times, target=run.target, feeds=feed, folder=folder)
        names = frozenset(layer.name for layer in run.layers)
        times = added_ms(wide_model, int8_model, names, feed, run.recipe.threads, measure)
    rows = tuple(row.model_copy(update={"added_ms": times[row.layer]}) for row in ranking.layers)
    ranking = ranking.model_copy(update={"layers": rows})
    return _with_borders(run, quantizer, ranking) if run.recipe.device is None else ranking


def _with_borders(run: Run, quantizer: Quantizer, ranking: Sensitivity) -> Sensitivity:
    """``ranking`` with the times at the borders of 8 and 16 bit, where ONNX Runtime's profile tells them."""
    if run.target.backend != "ort-cpu":
        return ranking
    narrow = run.uniform_plan(Precision.INT8)

    def network_with(wide: Collection[str]) -> onnx.ModelProto:
        return quantizer.quantize(narrow.with_layers(dict.fromkeys(wide, run.wide))).model

    found = border_times(run.model, network_with, next(iter(run.calibration_feeds())), run.recipe.threads)
    rows = [
        row.model_copy(
            update={"narrowing_ms": found.narrowing.get(row.layer), "widening_ms": found.widening.get(row.layer)}
        )
        for row in ranking.layers
    ]
    return ranking.model_copy(update={"layers": tuple(rows)})
