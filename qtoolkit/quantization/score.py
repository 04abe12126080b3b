"""The scorecard of a run: one row per variant, and the conditions all of them hold under."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import qtoolkit
from qtoolkit.artifacts.files import sha256_file
from qtoolkit.artifacts.plan import PrecisionPlan
from qtoolkit.artifacts.scorecard import DataFacts, LatencyFigures, ModelFacts, Scorecard
from qtoolkit.bench.cost import network_cost
from qtoolkit.bench.environment import capture_environment
from qtoolkit.data.calibration_set import CalibrationSet
from qtoolkit.data.people import People
from qtoolkit.graph.layers import Structure
from qtoolkit.graph.placement import place_qdq
from qtoolkit.quantization.assess import accuracy_figures, variant_row
from qtoolkit.quantization.latency_notes import latency_notes
from qtoolkit.quantization.run import Run
from qtoolkit.recipe import Recipe

__all__ = ["score_variants"]

_OF_QAT = ("qat", "qat_images", "qat_lr", "qat_device", "unlabeled", "labelled")


def score_variants(
    run: Run,
    plans: Mapping[str, PrecisionPlan],
    people: Mapping[str, Mapping[int, People]],
    latencies: Mapping[str, LatencyFigures],
    without_biases: Sequence[str] = (),
) -> Scorecard:
    """The scorecard: one row per variant, and the conditions all of them hold under.

    ``without_biases``: variants in which biases were to be corrected by measurement, and are not.
    """
    cost = network_cost(run.model)
    runtime = run.target.backend if run.runs_here else "ort-cpu (simulating the target)"
    rows, structure, floating = [], Structure.of(run.model), dict[str, int]()
    for done, (variant, plan) in enumerate(plans.items(), start=1):
        accuracy = accuracy_figures(people[variant], people["float"], run.samples, runtime)
        path = run.network(variant)
        reading_float = place_qdq(run.model, plan.layers, run.target, structure).layers_reading_float(structure)
        floating |= {variant: len(reading_float)} if reading_float else {}
        rows.append(
            variant_row(variant, path, plan, run.layers, cost.gmacs, accuracy, latencies.get(variant), reading_float)
        )
        run.progress("scoring", done, len(plans))
    return Scorecard(
        qtoolkit=qtoolkit.__version__,
        target=run.target.name,
        model=ModelFacts(
            name=run.recipe.model.name, sha256=sha256_file(run.recipe.model), input_size_wh=run.input.input_size_wh,
            gmacs=cost.gmacs, params_m=cost.params_m,
        ),
        data=DataFacts(
            name=run.data_name, images=len(people["float"]), sha256=run.samples.sha256, skipped=len(run.skipped),
            calibration_images=len(run.calibration), calibration_sha256=run.calibration.sha256,
        ),
        environment=capture_environment().model_dump(mode="json"),
        settings=_settings(run.recipe) | {"corrections": sorted(run.corrections) or "none"},
        rows=tuple(rows),
        notes=_notes(run, latencies, floating, without_biases),
    )  # fmt: skip


def _settings(recipe: Recipe) -> dict[str, Any]:
    """The options that shaped the figures; of a plan the name, and no paths, which are this machine's."""
    settings = recipe.model_dump(mode="json", exclude={"model", "data", "out", "version"})
    if not recipe.qat:
        settings = {name: value for name, value in settings.items() if name not in _OF_QAT}
    else:
        photos = {name: getattr(recipe, name) for name in ("unlabeled", "labelled")}
        settings |= {name: path.name for name, path in photos.items() if path is not None}
    return settings | {"plan": recipe.plan.name if recipe.plan else None}


def _notes(
    run: Run,
    latencies: Mapping[str, LatencyFigures],
    reading_float: Mapping[str, int],
    without_biases: Sequence[str],
) -> tuple[str, ...]:
    notes = [
        "Outputs of the last layers and everything behind them (the decode arithmetic) are in float in every network."
    ]
    if reading_float:
        notes.append(
            "Last layers with 8-bit weights that read float, because "
            f"{run.target.name} computes them in float in any case: "
            + ", ".join(f"{count} in {variant}" for variant, count in reading_float.items())
            + "."
        )
    if without_biases:
        notes.append(
            f"Measured biases (bias-empirical) are not in {', '.join(without_biases)}: there were none to correct, or "
            "the network was worse with them on photos that nothing is reported on."
        )
    if run.target.wide_is_slower_note and latencies:
        notes.append(run.target.wide_is_slower_note + ".")
    notes += latency_notes(latencies)
    if not run.runs_here:
        notes.append(
            f"Target {run.target.name} does not run here: AP is that of its Q/DQ network in ONNX Runtime"
            + ("." if latencies else "; no latency.")
        )
    if run.learning is not None:
        plain = isinstance(run.learning, CalibrationSet)
        notes.append(
            f"The -qat networks were fine-tuned {'without' if plain else 'with'} labels on {len(run.learning)} photos, "
            f"seeing {run.recipe.qat_images} changed views of them."
        )
        notes += [
            f"Fine-tuning did not help {variant}: its -qat network is that of PTQ."
            for variant in ("int8", "mixed")
            if _same_file(run.network(variant), run.network(f"{variant}-qat"))
        ]
    if run.skipped:
        notes.append(f"{len(run.skipped)} photos could not be used.")
    return tuple(notes)


def _same_file(first: Path, second: Path) -> bool:
    return first.is_file() and second.is_file() and sha256_file(first) == sha256_file(second)
