"""Frontier and search of a run: its ranking, its budget unit, its photos."""

from __future__ import annotations

from qtoolkit.artifacts.frontier import Frontier
from qtoolkit.artifacts.plan import PrecisionPlan
from qtoolkit.artifacts.sensitivity import Sensitivity
from qtoolkit.quantization.budget_plan import PlanMaker
from qtoolkit.quantization.frontier import cheapest_that_keeps, measure_frontier, plans_by_cost
from qtoolkit.quantization.plan_judge import judge_of
from qtoolkit.quantization.ptq import Quantizer
from qtoolkit.quantization.run import Run

__all__ = ["frontier_of", "search_plan"]

_FRONTIER_STEPS, _SEARCH_STEPS = 20, 50


def frontier_of(run: Run, quantizer: Quantizer, sensitivity: Sensitivity) -> Frontier:
    """At most 21 plans, measured on the photos of ``plan_judge.judge_of``."""
    maker = PlanMaker(run, sensitivity)
    judge, photos, part = judge_of(run, quantizer)
    points = measure_frontier(
        plans_by_cost(maker.plan, maker.costs, _FRONTIER_STEPS, maker.conversions), judge.kept, sensitivity,
        lambda done, total: run.progress("measuring plans", done, total),
    )  # fmt: skip
    return Frontier(
        unit=run.unit, metric=sensitivity.metric, target=run.target.name, model_sha256=run.model_sha256,
        photos=len(photos), photos_part=part, photos_sha256=photos.sha256, measured=judge.measured, points=points,
    )  # fmt: skip


def search_plan(run: Run, quantizer: Quantizer, sensitivity: Sensitivity, wanted: float) -> PrecisionPlan:
    """The cheapest of 51 budgets' plans that keeps ``wanted`` (0–1) of the float network's AP on the judge's photos.

    Raises GateFailed where none does.
    """
    maker = PlanMaker(run, sensitivity)
    judge, photos, part = judge_of(run, quantizer)
    plan, kept = cheapest_that_keeps(
        plans_by_cost(maker.plan, maker.costs, _SEARCH_STEPS, maker.conversions), judge.kept, wanted
    )
    figure = "AP" if judge.measured == "ap" else "agreement"
    made_by = (
        f"{sensitivity.metric} sensitivity on {sensitivity.images} photos; the cheapest in {run.unit} that keeps "
        f"{wanted:.4g} of the float {figure} on {len(photos)} photos of {part} (it keeps {kept:.4f})"
    )
    return plan.model_copy(update={"made_by": made_by})
