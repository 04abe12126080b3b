"""The plan that a run makes of its ranking for a budget, under the rules of the run's target."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from qtoolkit.artifacts.plan import PrecisionPlan
from qtoolkit.artifacts.sensitivity import Sensitivity
from qtoolkit.graph.neighbours import wide_implications
from qtoolkit.quantization.border_times import BorderTimes
from qtoolkit.quantization.budget import Budget, budget_costs
from qtoolkit.quantization.modelled_times import modelled_conversions
from qtoolkit.quantization.run import Run
from qtoolkit.quantization.selection import Conversion, conversion_cost, plan_from_selection

__all__ = ["PlanMaker"]


class PlanMaker:
    """Makes plans of any budget from one ranking; the target's rules are found once."""

    def __init__(self, run: Run, sensitivity: Sensitivity) -> None:
        self._run, self._sensitivity = run, sensitivity
        rules = wide_implications(run.model, run.target)
        fixed = {layer.name: layer for layer in run.layers if layer.op_type not in run.target.int8_layers}
        self._implications = [pair for pair in rules if not fixed.keys() & set(pair)]
        self._required = [forced for by, forced in rules if by in fixed and forced not in fixed]
        in_bytes = run.unit == "bytes"
        self._always_wide = {n: prod(each.weight_shape) if in_bytes else each.macs for n, each in fixed.items()}

        self._conversions = self._found_conversions() if run.unit == "latency" else ()

    @property
    def costs(self) -> Mapping[str, float]:
        """Cost of each ranked layer at 16 bit, in the unit of the run's budget."""
        return budget_costs(self._sensitivity, Budget(1.0, self._run.unit), self._always_wide)[0]

    def conversions(self, plan: PrecisionPlan) -> float:
        """Cost of the changes of precision in ``plan``, in the unit of the run's budget; 0 where none is known."""
        return conversion_cost(self._conversions, plan.layers_16bit, plan.layers)

    def _found_conversions(self) -> tuple[Conversion, ...]:
        """Modelled for the run's device, else as the ranking measured them; none where it did not."""
        run, rows = self._run, self._sensitivity.layers
        if run.recipe.device is not None:
            return modelled_conversions(run.model, run.recipe.device)
        narrowing = {row.layer: row.narrowing_ms for row in rows if row.narrowing_ms is not None}
        widening = {row.layer: row.widening_ms for row in rows if row.widening_ms is not None}
        return BorderTimes(narrowing, widening).conversions(run.model)

    def plan(self, share: float) -> PrecisionPlan:
        """The best plan that takes at most ``share`` (0–1) of the unit of the run's budget."""
        run = self._run
        chosen = plan_from_selection(
            self._sensitivity, Budget(share, run.unit), run.wide,
            implications=self._implications, required=self._required, always_wide=self._always_wide,
            conversions=self._conversions,
        )  # fmt: skip
        precisions = {layer.name: chosen.layers.get(layer.name, run.wide) for layer in run.layers}
        return chosen.model_copy(update={"layers": precisions})
