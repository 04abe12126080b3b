"""What may be kept at 16 bit: a share of the layers, multiply-adds, bytes or time, and what each layer takes of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from qtoolkit.artifacts.sensitivity import Sensitivity
from qtoolkit.errors import UsageError

__all__ = ["BUDGET_UNITS", "Budget", "BudgetUnit", "budget_costs"]

BudgetUnit = Literal["layers", "macs", "bops", "bytes", "latency"]
BUDGET_UNITS: tuple[BudgetUnit, ...] = ("layers", "macs", "bops", "bytes", "latency")


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
