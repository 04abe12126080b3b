"""Plans over all budgets: the whole frontier, or the cheapest plan that keeps enough."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from qtoolkit.artifacts.frontier import FrontierPoint
from qtoolkit.artifacts.plan import PrecisionPlan
from qtoolkit.artifacts.sensitivity import Sensitivity
from qtoolkit.errors import GateFailed

__all__ = ["cheapest_that_keeps", "measure_frontier", "plans_by_cost"]

PlanOf = Callable[[float], PrecisionPlan]
Kept = Callable[[PrecisionPlan], float]


def plans_by_cost(
    plan_of: PlanOf,
    costs: Mapping[str, float],
    steps: int,
    conversions: Callable[[PrecisionPlan], float] = lambda plan: 0.0,
) -> list[tuple[float, float, PrecisionPlan]]:
    """(share, cost, plan) of ``steps`` + 1 evenly spaced budgets, each plan once, by rising cost.

    ``costs``: of each layer at 16 bit, in the budget's unit, negative where 16 bit is the faster one. ``cost`` is what
    the plan's 16-bit layers and its ``conversions`` take, as a share of the sum of all positive costs.
    """
    total = sum(max(cost, 0.0) for cost in costs.values()) or 1.0
    found: dict[tuple[str, ...], tuple[float, float, PrecisionPlan]] = {}
    for step in range(steps + 1):
        plan = plan_of(step / steps)
        cost = (sum(costs.get(layer, 0.0) for layer in plan.layers_16bit) + conversions(plan)) / total
        found.setdefault(plan.layers_16bit, (step / steps, cost, plan))
    return sorted(found.values(), key=lambda each: each[1])


def measure_frontier(
    plans: Sequence[tuple[float, float, PrecisionPlan]],
    kept: Kept,
    sensitivity: Sensitivity,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[FrontierPoint, ...]:
    """Every plan of ``plans_by_cost`` measured by ``kept``; those that no cheaper plan equals are ``on_front``."""
    losses = {row.layer: max(row.loss, 0.0) for row in sensitivity.layers}
    macs = {row.layer: row.macs_share for row in sensitivity.layers}
    points, best = [], -1.0
    for done, (share, cost, plan) in enumerate(plans, start=1):
        figure, wide = kept(plan), set(plan.layers_16bit)
        points.append(
            FrontierPoint(
                share=share, cost=cost, layers_16bit=len(wide),
                macs_16bit_share=sum(macs.get(layer, 0.0) for layer in wide),
                predicted_loss=sum(loss for layer, loss in losses.items() if layer not in wide),
                kept=figure, on_front=figure > best, plan=plan,
            )
        )  # fmt: skip
        best = max(best, figure)
        progress(done, len(plans))
    return tuple(points)


def cheapest_that_keeps(
    plans: Sequence[tuple[float, float, PrecisionPlan]], kept: Kept, wanted: float
) -> tuple[PrecisionPlan, float]:
    """The cheapest plan of ``plans_by_cost`` that keeps at least ``wanted`` (1 is all), and what it keeps.

    The cheapest is tried first, then the others by halving, as if what is kept rose with the cost; it nearly does. The
    answer was measured to keep enough, but where the figures jump a cheaper plan might do as well. Raises GateFailed
    where even the costliest keeps less.
    """
    first = kept(plans[0][2])
    if first >= wanted:
        return plans[0][2], first
    last = kept(plans[-1][2])
    if last < wanted:
        raise GateFailed(
            "no plan keeps as much of the float network as was asked for",
            expected=f"at least {wanted:.4g} of it",
            found=f"{last:.4g} with {len(plans[-1][2].layers_16bit)} of {len(plans[-1][2].layers)} layers at 16 bit",
            do="ask for less, or give another --wide",
        )
    low, high = 0, len(plans) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if kept(plans[middle][2]) >= wanted else (middle, high)
    return plans[high][2], kept(plans[high][2])
