"""The quantization table: the main job on a ReLU network for each target, beside its SiLU original in float."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import qtoolkit
from qtoolkit.artifacts.plan import Precision
from qtoolkit.artifacts.quantization_table import PUBLISHED, PublishedRow, QuantizationTable, QuantizationTableRow
from qtoolkit.artifacts.scorecard import Scorecard, ScorecardRow
from qtoolkit.artifacts.table_recipe import TableRecipe
from qtoolkit.backends.targets import find_target
from qtoolkit.graph.default_network import default_network
from qtoolkit.pipeline import Progress, evaluate_stage, open_run, quantize
from qtoolkit.quantization.score import score_variants
from qtoolkit.recipe import Recipe

__all__ = ["make_table"]

_SHARED = (
    "data", "metric", "images", "calibration_images", "sensitivity_images", "input_size_wh", "head", "threads", "seed",
)  # fmt: skip


def make_table(recipe: TableRecipe, progress: Progress = lambda stage, done, total: None) -> QuantizationTable:
    """Every row of the table, each network in a folder of its own below ``recipe.out``; what is done is not done again.

    Raises UsageError for an unknown target, before any work.
    """
    for target in recipe.targets:
        find_target(target)
    silu = _float_alone(recipe, recipe.silu or default_network("silu"), progress)
    rows = [_row("float SiLU", "", silu.rows[0])]
    cards: list[Scorecard] = []
    for target in recipe.targets:
        card = quantize(_recipe(recipe, target), progress).scorecard
        if not cards:
            rows.append(_row("float ReLU", "", card.rows[0]))
        rows += [_row(row.variant, target, row) for row in card.rows[1:]]
        cards.append(card)
    notes = dict.fromkeys(note for card in cards for note in card.notes)
    table = QuantizationTable(
        qtoolkit=qtoolkit.__version__, silu=silu.model, relu=cards[0].model, data=cards[0].data, rows=tuple(rows),
        notes=tuple(notes),
    )  # fmt: skip
    table.write(recipe.out / "table.json")
    return table


def _row(name: str, target: str, figures: ScorecardRow) -> QuantizationTableRow:
    return QuantizationTableRow(
        name=name, target=target, figures=figures, published=PUBLISHED.get(name, PublishedRow())
    )


def _options(recipe: TableRecipe) -> dict[str, Any]:
    return {name: getattr(recipe, name) for name in _SHARED}


def _recipe(recipe: TableRecipe, target: str) -> Recipe:
    return Recipe(
        model=recipe.relu or default_network("relu"), out=recipe.out / target, target=target, mixed=recipe.mixed,
        runs=recipe.runs, qat=recipe.qat, qat_images=recipe.qat_images,
        unlabeled=recipe.unlabeled if recipe.qat else None, **_options(recipe),
    )  # fmt: skip


def _float_alone(recipe: TableRecipe, model: Path, progress: Progress) -> Scorecard:
    """The scorecard of the float network and nothing else."""
    run = open_run(Recipe(model=model, out=recipe.out / "silu", runs=0, **_options(recipe)), progress)
    people = {"float": evaluate_stage(run, "float")}
    return score_variants(run, {"float": run.uniform_plan(Precision.FP32)}, people, {})
