"""Which layers stay at 16 bit: an integer program over the sensitivities.

::

    minimise    Σ loss[i] · (1 − x[i])            what the layers left at 8 bit cost
    subject to  Σ cost[i] · x[i] ≤ budget         x[i] ∈ {0, 1}: layer i is at 16 bit
                x[a] ≤ x[b]                       for each implication (a, b) of the target
                x[i] = 1                          for layers the target cannot run at 8 bit
                y[i] ≥ x[a] − x[b]                where conversions cost something: for each pair of layers a at 16
                                                  bit and b at 8 that ask for conversion i (``Conversion``); its
                                                  cost, times y[i], is added to the budget's sum

Losses of single layers are added as if they did not interact. Among equally good choices the cheaper one wins; with a
``tolerance`` those that leave hardly more loss than the best one count as equally good, and a second program finds the
cheapest of them::

    minimise    Σ tie_cost[i] · x[i]
    subject to  Σ loss[i] · (1 − x[i]) ≤ (1 + tolerance) · Σ loss[i] · (1 − best[i])         and all of the above
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType
from typing import Any, Literal

import highspy
import numpy as np
from numpy.typing import NDArray

from qtoolkit.artifacts.plan import Precision, PrecisionPlan
from qtoolkit.artifacts.sensitivity import Sensitivity
from qtoolkit.errors import UsageError
from qtoolkit.quantization.budget import Budget, budget_costs

__all__ = ["Conversion", "conversion_cost", "plan_from_selection", "select_layers"]

_AS_GOOD = 0.05
"""Plans that leave so much more loss, as a share of what the best one leaves, are as good: rankings know no better."""

# The solver's tolerances are absolute: the smallest it takes, and an objective beside which they are small.
_TOLERANCE = 1e-10
_OBJECTIVE = 1e4
_TIE_BREAK = 1e-9
# Some versions of highspy carry types, others do not.
_HIGHS: Any = highspy.Highs


class _QuietHighs(_HIGHS):  # type: ignore[misc]
    """Says nothing: highspy 1.16 writes a line to stdout while it is made, in a call that comes before any option."""

    def enableCallbacks(self) -> None:  # noqa: N802 - the name is highspy's
        self.setOptionValue("output_flag", False)
        super().enableCallbacks()


@dataclass(frozen=True)
class Conversion:
    """What is added, in the budget's unit, where the output of ``layer`` is converted for one of ``readers``.

    ``when``: ``both``, one reader is at 8 bit and ``layer`` or another reader at 16, so the output exists in both
    widths; ``narrowed``, ``layer`` is at 16 bit and a reader at 8; ``widened``, it is at 8 and a reader at 16.
    """

    layer: str
    readers: tuple[str, ...]
    cost: float
    when: Literal["both", "narrowed", "widened"] = "both"

    def pairs(self, known: Collection[str]) -> list[tuple[str, str]]:
        """Each pair of layers of ``known`` that asks for it where the first is at 16 bit and the second at 8."""
        readers = [name for name in self.readers if name in known]
        if self.layer not in known:
            return []
        if self.when == "narrowed":
            return [(self.layer, reader) for reader in readers]
        if self.when == "widened":
            return [(reader, self.layer) for reader in readers]
        return [(wide, narrow) for wide, narrow in product((self.layer, *readers), readers) if wide != narrow]


def conversion_cost(conversions: Sequence[Conversion], wide: Collection[str], known: Collection[str]) -> float:
    """Sum of the conversions in a plan with the layers ``wide`` at 16 bit and the others of ``known`` at 8."""
    at_16 = set(wide)
    return sum(each.cost for each in conversions if any(a in at_16 and b not in at_16 for a, b in each.pairs(known)))


def select_layers(
    losses: Mapping[str, float],
    costs: Mapping[str, float],
    limit: float,
    *,
    implications: Sequence[tuple[str, str]] = (),
    required: Collection[str] = (),
    conversions: Sequence[Conversion] = (),
    tolerance: float = 0.0,
    tie_costs: Mapping[str, float] | None = None,
) -> tuple[str, ...]:
    """Names of the layers at 16 bit, in the order of ``losses``; the integer program above, solved to optimality.

    ``costs`` are non-negative or, for a layer that is faster at 16 bit than at 8, negative. ``tolerance``: a choice
    that leaves this share more loss than the best one is as good, and the one with the least ``tie_costs`` wins (by
    default ``costs``, conversions included). Raises UsageError where even the required layers exceed ``limit``,
    where losses or costs are missing or not finite, and where ``implications`` or ``required`` name a layer that has
    none.
    """
    _check_inputs(losses, costs, {*required, *(name for pair in implications for name in pair)})
    names = list(losses)
    if not names:
        return ()
    gain = _scaled(list(losses.values()))
    model, price = _program(names, gain, costs, limit, implications, set(required), conversions)
    best = _solution(model, names)
    if best is None:
        needed = sum(costs[name] for name in _closure(required, implications))
        raise UsageError(
            "no selection of 16-bit layers fits the budget",
            expected=f"a budget of at least {needed:.6g} for the layers that must be at 16 bit",
            found=f"{limit:.6g}",
            do="raise --mixed",
        )
    if tolerance > 0.0:
        tie = price if tie_costs is None else _scaled([tie_costs[name] for name in names])
        _ask_for_the_cheapest(model, gain, tie, float(gain.sum() - (1.0 + tolerance) * gain[~best].sum()))
        cheapest = _solution(model, names)
        best = best if cheapest is None else cheapest
    return tuple(name for name, wide in zip(names, best, strict=True) if wide)


def _solution(model: Any, names: Sequence[str]) -> NDArray[np.bool_] | None:
    """Which layers are at 16 bit in the best choice; None where there is no choice."""
    model.run()
    if model.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        return None
    return np.asarray(np.array(model.getSolution().col_value)[: len(names)] > 0.5)


def _ask_for_the_cheapest(model: Any, gain: NDArray[np.float64], cost: NDArray[np.float64], enough: float) -> None:
    """From now on ``model`` asks for the least ``cost`` of a choice that gains ``enough``, the most where that ties."""
    model.addRow(enough - 1e-9, highspy.kHighsInf, gain.size, np.arange(gain.size, dtype=np.int32), gain)
    for column, price in enumerate(cost):
        gained = gain[column] if column < gain.size else 0.0
        model.changeColCost(column, _OBJECTIVE * (float(price) - _TIE_BREAK * float(gained)))


def _check_inputs(losses: Mapping[str, float], costs: Mapping[str, float], named: set[str]) -> None:
    if set(costs) != set(losses) or not all(map(math.isfinite, (*losses.values(), *costs.values()))):
        raise UsageError(
            "layers cannot be selected",
            expected="one finite loss and cost for each layer",
            found=f"{len(losses)} losses, {len(costs)} costs",
        )
    if unknown := named - set(losses):
        raise UsageError(
            "layers cannot be selected",
            expected="a loss and a cost for each layer that is required or implied",
            found=f"none for {', '.join(sorted(unknown)[:5])}",
            do="rank all layers of the network",
        )


def _program(
    names: Sequence[str],
    gain: NDArray[np.float64],
    costs: Mapping[str, float],
    limit: float,
    implications: Sequence[tuple[str, str]],
    required: set[str],
    conversions: Sequence[Conversion],
) -> tuple[Any, NDArray[np.float64]]:
    """The program, and the costs of its columns as it counts them: of the layers, then of conversions."""
    index = {name: i for i, name in enumerate(names)}
    paid = [each for each in conversions if each.pairs(index)]
    largest = _largest(costs.values())
    price = np.array([*(costs[name] for name in names), *(each.cost for each in paid)], np.float64) / largest
    model = _quiet_solver()
    for i, name in enumerate(names):
        model.addVar(1.0 if name in required else 0.0, 1.0)
        model.changeColIntegrality(i, highspy.HighsVarType.kInteger)
        model.changeColCost(i, _OBJECTIVE * (_TIE_BREAK * float(price[i]) - float(gain[i])))
    for column, each in enumerate(paid, start=len(names)):
        model.addVar(0.0, 1.0)
        model.changeColCost(column, _OBJECTIVE * _TIE_BREAK * float(price[column]))
        for wide, narrow in each.pairs(index):
            triple = np.array([index[wide], index[narrow], column], np.int32)
            model.addRow(-highspy.kHighsInf, 0.0, 3, triple, np.array([1.0, -1.0, -1.0]))
    columns = np.arange(price.size, dtype=np.int32)
    model.addRow(-highspy.kHighsInf, limit / largest + 1e-9, price.size, columns, price)
    for a, b in implications:
        pair = np.array([index[a], index[b]], np.int32)
        model.addRow(-highspy.kHighsInf, 0.0, 2, pair, np.array([1.0, -1.0]))
    return model, price


def _quiet_solver() -> Any:
    """HiGHS without output, on one thread, that stops at the best choice only."""
    model = _QuietHighs()
    model.setOptionValue("output_flag", False)
    model.setOptionValue("threads", 1)
    model.setOptionValue("mip_rel_gap", 0.0)
    model.setOptionValue("mip_abs_gap", 0.0)
    for tolerance in ("primal_feasibility_tolerance", "dual_feasibility_tolerance", "mip_feasibility_tolerance"):
        model.setOptionValue(tolerance, _TOLERANCE)
    return model


def _largest(values: Iterable[float]) -> float:
    return max(map(abs, values)) or 1.0


def _scaled(values: Sequence[float]) -> NDArray[np.float64]:
    return np.asarray(values, np.float64) / _largest(values)


def _closure(required: Collection[str], implications: Sequence[tuple[str, str]]) -> set[str]:
    closed, pending = set(required), list(required)
    while pending:
        name = pending.pop()
        for a, b in implications:
            if a == name and b not in closed:
                closed.add(b)
                pending.append(b)
    return closed


def plan_from_selection(
    sensitivity: Sensitivity,
    budget: Budget,
    wide: Precision,
    *,
    implications: Sequence[tuple[str, str]] = (),
    required: Collection[str] = (),
    always_wide: Mapping[str, int] = MappingProxyType({}),
    conversions: Sequence[Conversion] = (),
) -> PrecisionPlan:
    """The mixed plan of the ranked layers: those chosen by the integer program at ``wide``, the others at 8 bit.

    Of the plans that leave at most 5 % more loss than the best one, the cheapest: fewest multiply-adds where the budget
    is in layers, else least of the budget. ``always_wide``: see ``budget_costs``. ``conversions`` count for a budget in
    time only.
    """
    costs, limit = budget_costs(sensitivity, budget, always_wide)
    losses = {row.layer: max(row.loss, 0.0) for row in sensitivity.layers}
    chosen = select_layers(
        losses, costs, limit, implications=implications, required=required, conversions=conversions,
        tolerance=_AS_GOOD,
        tie_costs={row.layer: float(row.macs) for row in sensitivity.layers} if budget.unit == "layers" else None,
    )  # fmt: skip
    made_by = (
        f"{sensitivity.metric} sensitivity on {sensitivity.images} photos; "
        f"at most {budget.share:.4g} of the {budget.unit} at 16 bit; integer program"
    )
    return PrecisionPlan(
        model_sha256=sensitivity.model_sha256,
        target=sensitivity.target,
        made_by=made_by,
        layers={row.layer: wide if row.layer in chosen else sensitivity.precision for row in sensitivity.layers},
    )
