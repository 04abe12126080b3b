"""Which layers stay at 16 bit: an integer program over the sensitivities.

::

    minimise    Σ loss[i] · (1 − x[i])            what the layers left at 8 bit cost
    subject to  Σ cost[i] · x[i] ≤ budget         x[i] ∈ {0, 1}: layer i is at 16 bit
                x[a] ≤ x[b]                       for each implication (a, b) of the target
                x[i] = 1                          for layers the target cannot run at 8 bit
                y[i] ≥ x[a] − x[b]                where conversions cost something: for each pair of layers a at 16
                                                  bit and b at 8 that ask for conversion i (``Conversion``); its
                                                  cost, times y[i], is added to the budget's sum

Losses of single layers are added as if they did not interact. Among equally good choices the cheaper one wins.
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

__all__ = [
    "BUDGET_UNITS",
    "Budget",
    "BudgetUnit",
    "Conversion",
    "budget_costs",
    "conversion_cost",
    "plan_from_selection",
    "select_layers",
]

BudgetUnit = Literal["layers", "macs", "bops", "bytes", "latency"]
BUDGET_UNITS: tuple[BudgetUnit, ...] = ("layers", "macs", "bops", "bytes", "latency")
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
class Budget:
    """The share (0–1) of the network that may be at 16 bit, and of what.

    ``layers`` counts layers (rounded down), ``macs`` multiply-adds; ``bops`` bit operations, ``bytes`` of weights and
    ``latency`` are those that all layers at 16 bit would add to the 8-bit network. As one wide precision serves all
    layers, a share of added bit operations is a share of multiply-adds.
    """

    share: float
    unit: BudgetUnit = "layers"

    def __post_init__(self) -> None:
        if self.unit not in BUDGET_UNITS:
            raise UsageError(
                "the budget's unit is not known", expected=" or ".join(BUDGET_UNITS), found=repr(self.unit)
            )
        if not (math.isfinite(self.share) and 0.0 <= self.share <= 1.0):
            raise UsageError(
                "the share of the network to keep at 16 bit cannot be used",
                expected="a number from 0 to 1, such as --mixed 0.3 for 30 %",
                found=str(self.share),
                do="give --mixed a share, not a percentage",
            )


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
) -> tuple[str, ...]:
    """Names of the layers at 16 bit, in the order of ``losses``; the integer program above, solved to optimality.

    ``costs`` are non-negative or, for a layer that is faster at 16 bit than at 8, negative. Raises UsageError where
    even the required layers exceed ``limit``, where losses or costs are missing or not finite, and where
    ``implications`` or ``required`` name a layer that has none.
    """
    _check_inputs(losses, costs, {*required, *(name for pair in implications for name in pair)})
    names = list(losses)
    if not names:
        return ()
    model = _program(losses, costs, limit, implications=implications, required=set(required), conversions=conversions)
    model.run()
    if model.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        needed = sum(costs[name] for name in _closure(required, implications))
        raise UsageError(
            "no selection of 16-bit layers fits the budget",
            expected=f"a budget of at least {needed:.6g} for the layers that must be at 16 bit",
            found=f"{limit:.6g}",
            do="raise --mixed",
        )
    solution = np.array(model.getSolution().col_value)[: len(names)]
    return tuple(name for name, value in zip(names, solution, strict=True) if value > 0.5)


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
    losses: Mapping[str, float],
    costs: Mapping[str, float],
    limit: float,
    *,
    implications: Sequence[tuple[str, str]],
    required: set[str],
    conversions: Sequence[Conversion] = (),
) -> Any:
    names = list(losses)
    index = {name: i for i, name in enumerate(names)}
    # Scaled, because losses may be as small as the solver's tolerances.
    gain = _OBJECTIVE * _scaled([losses[name] for name in names])
    price = _scaled([costs[name] for name in names])
    model = _QuietHighs()
    model.setOptionValue("output_flag", False)
    model.setOptionValue("threads", 1)
    model.setOptionValue("mip_rel_gap", 0.0)
    model.setOptionValue("mip_abs_gap", 0.0)
    for tolerance in ("primal_feasibility_tolerance", "dual_feasibility_tolerance", "mip_feasibility_tolerance"):
        model.setOptionValue(tolerance, _TOLERANCE)
    for i, name in enumerate(names):
        model.addVar(1.0 if name in required else 0.0, 1.0)
        model.changeColIntegrality(i, highspy.HighsVarType.kInteger)
        model.changeColCost(i, _OBJECTIVE * _TIE_BREAK * float(price[i]) - float(gain[i]))
    largest = _largest(costs.values())
    bound = limit / largest
    paid = [each for each in conversions if each.pairs(index)]
    price = np.concatenate([price, [each.cost / largest for each in paid]])
    for column, each in enumerate(paid, start=len(names)):
        model.addVar(0.0, 1.0)
        model.changeColCost(column, _OBJECTIVE * _TIE_BREAK * float(price[column]))
        for wide, narrow in each.pairs(index):
            triple = np.array([index[wide], index[narrow], column], np.int32)
            model.addRow(-highspy.kHighsInf, 0.0, 3, triple, np.array([1.0, -1.0, -1.0]))
    model.addRow(-highspy.kHighsInf, bound + 1e-9, price.size, np.arange(price.size, dtype=np.int32), price)
    for a, b in implications:
        pair = np.array([index[a], index[b]], np.int32)
        model.addRow(-highspy.kHighsInf, 0.0, 2, pair, np.array([1.0, -1.0]))
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


def budget_costs(
    sensitivity: Sensitivity, budget: Budget, always_wide: Mapping[str, int] = MappingProxyType({})
) -> tuple[dict[str, float], float]:
    """Cost of keeping each ranked layer at 16 bit in the budget's unit, and the limit.

    ``always_wide``: layers (name → MACs, or weights for a budget in bytes) that are not ranked because the target runs
    them at 16 bit only. They are part of the network and come off the budget first; where they exceed it, nothing is
    left. They add no time. Raises UsageError for a budget in time or bytes where the ranking does not hold them.
    """
    rows = sensitivity.layers
    if budget.unit == "layers":
        allowed = math.floor(budget.share * (len(rows) + len(always_wide)) + 1e-9) - len(always_wide)
        return {row.layer: 1.0 for row in rows}, float(max(allowed, 0))
    if budget.unit == "latency":
        times = _known({row.layer: row.added_ms for row in rows}, "the time", "latency")
        return times, budget.share * sum(max(time, 0.0) for time in times.values())
    in_bytes = budget.unit == "bytes"
    amounts = _known({row.layer: row.weights if in_bytes else row.macs for row in rows}, "the weights", "bytes")
    spent = sum(always_wide.values())
    left = budget.share * (sum(amounts.values()) + spent) - spent
    return amounts, max(left, 0.0)


def _known(amounts: Mapping[str, float | None], what: str, unit: str) -> dict[str, float]:
    if any(amount is None for amount in amounts.values()):
        raise UsageError(
            f"a {unit} budget needs {what} of each layer",
            expected=f"a sensitivity ranking with {what}",
            found="a ranking without",
            do=f"run qtool sensitivity with --mixed-by {unit}",
        )
    return {name: float(amount or 0.0) for name, amount in amounts.items()}


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

    ``always_wide``: see ``budget_costs``. ``conversions`` count for a budget in time only.
    """
    costs, limit = budget_costs(sensitivity, budget, always_wide)
    losses = {row.layer: max(row.loss, 0.0) for row in sensitivity.layers}
    chosen = set(
        select_layers(losses, costs, limit, implications=implications, required=required, conversions=conversions)
    )
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
