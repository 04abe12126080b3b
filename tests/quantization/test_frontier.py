from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtoolkit.artifacts.frontier import Frontier
from qtoolkit.artifacts.plan import Precision, PrecisionPlan
from qtoolkit.artifacts.sensitivity import LayerSensitivity, Sensitivity
from qtoolkit.errors import GateFailed, InputFileError
from qtoolkit.quantization.frontier import cheapest_that_keeps, measure_frontier, plans_by_cost

LOSSES = {"a": 0.4, "b": 0.3, "c": 0.2, "d": 0.1}


def plan_of(share: float) -> PrecisionPlan:
    """The first layers at 16 bit, as many as the share allows."""
    wide = int(share * len(LOSSES) + 1e-9)
    return PrecisionPlan(layers={n: Precision.FP16 if i < wide else Precision.INT8 for i, n in enumerate(LOSSES)})


def kept(plan: PrecisionPlan) -> float:
    return 0.9 + 0.025 * len(plan.layers_16bit)


def plans(costs: dict[str, float] | None = None, steps: int = 8):
    return plans_by_cost(plan_of, costs or dict.fromkeys(LOSSES, 1.0), steps)


def ranking() -> Sensitivity:
    rows = [LayerSensitivity(layer=n, loss=x, macs=10, macs_share=0.25) for n, x in LOSSES.items()]
    return Sensitivity(
        metric="oks", precision=Precision.INT8, target="ort-cpu", model_sha256="", calibration_sha256="", images=1,
        people=1, seconds=0.0, layers=tuple(rows),
    )  # fmt: skip


class TestPlansByCost:
    def test_each_plan_once_at_the_smallest_budget_that_gives_it(self):
        found = plans()
        assert [(share, cost) for share, cost, _ in found] == [(0, 0), (0.25, 0.25), (0.5, 0.5), (0.75, 0.75), (1, 1)]
        assert found[2][2].layers_16bit == ("a", "b")

    def test_a_layer_that_is_faster_at_16_bit_makes_a_plan_cheaper_than_8_bit(self):
        found = plans({"a": -1.0, "b": 1.0, "c": 1.0, "d": 2.0})
        assert [plan.layers_16bit for _, _, plan in found][:2] == [("a",), ()]
        assert found[0][1] == -0.25


class TestFrontier:
    def test_by_hand(self):
        jumps = {0: 0.95, 1: 0.97, 2: 0.96, 3: 0.97, 4: 1.0}
        points = measure_frontier(plans(), lambda plan: jumps[len(plan.layers_16bit)], ranking())
        assert [point.on_front for point in points] == [True, True, False, False, True]
        assert [point.predicted_loss for point in points] == pytest.approx([1.0, 0.6, 0.3, 0.1, 0.0])
        assert [point.macs_16bit_share for point in points] == [0.0, 0.25, 0.5, 0.75, 1.0]

    def test_written_and_read(self, tmp_path):
        points = measure_frontier(plans(), kept, ranking())
        frontier = Frontier(
            unit="layers", metric="oks", target="ort-cpu", model_sha256="", photos=3, photos_part="calib",
            photos_sha256="", measured="ap", points=points,
        )  # fmt: skip
        frontier.write(tmp_path / "frontier.json")
        assert Frontier.read(tmp_path / "frontier.json") == frontier
        (tmp_path / "frontier.json").write_text("{}")
        with pytest.raises(InputFileError, match="cannot be read"):
            Frontier.read(tmp_path / "frontier.json")


class TestCheapestThatKeeps:
    @pytest.mark.parametrize(
        ("wanted", "layers"), [(0.5, 0), (0.9, 0), (0.901, 1), (0.925, 1), (0.94, 2), (0.99, 4), (1.0, 4)]
    )
    def test_by_hand(self, wanted, layers):
        plan, figure = cheapest_that_keeps(plans(), kept, wanted)
        assert len(plan.layers_16bit) == layers
        assert figure == kept(plan) >= wanted

    def test_nothing_keeps_enough(self):
        with pytest.raises(GateFailed, match="no plan keeps as much") as caught:
            cheapest_that_keeps(plans(), lambda plan: 0.5, 0.99)
        assert caught.value.found == "0.5 with 4 of 4 layers at 16 bit"

    @given(st.lists(st.floats(0.5, 1.0), min_size=5, max_size=5), st.floats(0.5, 1.0))
    def test_what_it_answers_was_measured_to_keep_enough(self, figures, wanted):
        measured: list[int] = []

        def noisy(plan: PrecisionPlan) -> float:
            measured.append(len(plan.layers_16bit))
            return figures[len(plan.layers_16bit)]

        if max(figures[0], figures[4]) < wanted:
            with pytest.raises(GateFailed):
                cheapest_that_keeps(plans(), noisy, wanted)
            return
        plan, figure = cheapest_that_keeps(plans(), noisy, wanted)
        assert len(plan.layers_16bit) in measured
        assert figure == figures[len(plan.layers_16bit)] >= wanted
