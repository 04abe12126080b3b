from __future__ import annotations

import math
from itertools import chain, combinations
from time import perf_counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtoolkit.artifacts.plan import Precision
from qtoolkit.artifacts.sensitivity import LayerSensitivity, Sensitivity
from qtoolkit.errors import UsageError
from qtoolkit.quantization.budget import BUDGET_UNITS, Budget, budget_costs
from qtoolkit.quantization.selection import Conversion, conversion_cost, plan_from_selection, select_layers


def ranking(losses, macs=None, added_ms=None):
    names = list(losses)
    macs = macs or dict.fromkeys(names, 10)
    rows = [
        LayerSensitivity(
            layer=name,
            loss=losses[name],
            macs=macs[name],
            macs_share=macs[name] / sum(macs.values()),
            added_ms=None if added_ms is None else added_ms[name],
        )
        for name in names
    ]
    return Sensitivity(
        metric="oks",
        precision=Precision.INT8,
        target="ort-cpu",
        model_sha256="ab",
        calibration_sha256="cd",
        images=16,
        people=20,
        seconds=1.0,
        layers=tuple(rows),
    )


def total(values, chosen):
    return math.fsum(values[name] for name in chosen)


def allowed(chosen, costs, limit, implications, required, over=0.0):
    """Whether a choice keeps all rules; ``over``: by how much of the largest cost it may exceed the limit."""
    return (
        set(required) <= set(chosen)
        and all(b in chosen for a, b in implications if a in chosen)
        and total(costs, chosen) <= limit + over * max(map(abs, costs.values()))
    )


def brute_force(losses, costs, limit, implications, required, over=0.0):
    """The best of all subsets: most loss saved, and the cheaper one where two save the same; None where none fits."""
    subsets = chain.from_iterable(combinations(losses, size) for size in range(len(losses) + 1))
    fitting = [set(s) for s in subsets if allowed(s, costs, limit, implications, required, over)]
    return max(fitting, key=lambda s: (total(losses, s), -total(costs, s)), default=None)


def greedy(losses, costs, limit):
    """Layers by loss per cost, as long as they fit."""
    chosen, left = [], limit
    for name in sorted(losses, key=lambda name: -losses[name] / max(costs[name], 1e-12)):
        if costs[name] <= left:
            chosen.append(name)
            left -= costs[name]
    return chosen


@st.composite
def problems(draw, negative=True):
    """Layers with losses and costs of any size, ties and zeros among them, a limit, implications, required layers."""
    count = draw(st.integers(1, 10))
    names = [f"l{i}" for i in range(count)]
    # Layers of one network differ by 10⁵ at most.
    number = st.one_of(st.integers(0, 4).map(float), st.floats(1e-2, 1.0), st.floats(1.0, 1e4))
    losses = {name: draw(st.one_of(st.integers(0, 3).map(float), st.floats(1e-6, 1.0))) for name in names}
    sign = st.sampled_from([1.0, 1.0, -1.0]) if negative else st.just(1.0)
    costs = {name: draw(number) * draw(sign) for name in names}
    limit = draw(st.floats(-0.2, 1.0)) * sum(max(cost, 0.0) for cost in costs.values())
    pairs = st.tuples(st.sampled_from(names), st.sampled_from(names)).filter(lambda pair: pair[0] != pair[1])
    implications = draw(st.lists(pairs, max_size=4)) if count > 1 else []
    required = draw(st.lists(st.sampled_from(names), max_size=2, unique=True))
    return losses, costs, limit, implications, required


# Sums of floats are as good as equal to the limit up to here.
EQUAL = 2e-9


@settings(deadline=None, max_examples=150)
@given(problem=problems())
def test_the_best_of_all_subsets_is_found(problem):
    losses, costs, limit, implications, required = problem
    if brute_force(*problem, over=EQUAL) is None:
        with pytest.raises(UsageError, match="no selection of 16-bit layers fits the budget"):
            select_layers(losses, costs, limit, implications=implications, required=required)
        return
    best = brute_force(*problem, over=-EQUAL)
    if best is None:
        return
    chosen = select_layers(losses, costs, limit, implications=implications, required=required)
    assert list(chosen) == [name for name in losses if name in chosen]
    assert allowed(chosen, costs, limit, implications, required, over=EQUAL)
    # What the tie-break may give up: a billionth of the largest loss per layer.
    assert total(losses, chosen) >= total(losses, best) - 1e-8 * max(losses.values())
    if total(losses, chosen) <= total(losses, best):
        assert total(costs, chosen) <= total(costs, best) + 1e-3 * max(map(abs, costs.values()))


@settings(deadline=None, max_examples=100)
@given(problem=problems(), data=st.data())
def test_the_cheapest_of_those_nearly_as_good_is_found(problem, data):
    losses, costs, limit, implications, required = problem
    tolerance = data.draw(st.sampled_from([0.01, 0.1, 0.5]))
    other = {name: data.draw(st.integers(0, 50).map(float)) for name in losses}
    tie_costs = data.draw(st.sampled_from([None, other]))
    best = brute_force(*problem, over=-EQUAL)
    if best is None:
        return
    rules = {"implications": implications, "required": required}
    chosen = select_layers(losses, costs, limit, **rules, tolerance=tolerance, tie_costs=tie_costs)
    assert allowed(chosen, costs, limit, implications, required, over=EQUAL)
    top = select_layers(losses, costs, limit, **rules)
    left = (1 + tolerance) * total(losses, losses.keys() - set(top))
    # Up to here sums of losses count as equal.
    slack = 1e-8 * max(losses.values())
    assert total(losses, losses.keys() - set(chosen)) <= left + slack
    subsets = chain.from_iterable(combinations(losses, size) for size in range(len(losses) + 1))
    good = [
        set(s)
        for s in subsets
        if allowed(s, costs, limit, implications, required, over=-EQUAL)
        and total(losses, losses.keys() - set(s)) <= left - slack
    ]
    price = costs if tie_costs is None else tie_costs
    if good:
        least = min(total(price, s) for s in good)
        assert total(price, chosen) <= least + 1e-6 * (max(map(abs, price.values())) or 1.0)


@settings(deadline=None, max_examples=50)
@given(problem=problems(negative=False))
def test_never_worse_than_by_loss_per_cost(problem):
    losses, costs, limit, _, _ = problem
    limit = max(limit, 0.0)
    chosen = select_layers(losses, costs, limit)
    assert total(losses, chosen) >= total(losses, greedy(losses, costs, limit)) - 1e-8 * max(losses.values())


def test_where_greed_is_wrong():
    # Best by loss per cost is a, which leaves no room for b and c.
    losses, costs = {"a": 6.0, "b": 5.0, "c": 5.0}, {"a": 5.0, "b": 4.5, "c": 4.5}
    assert greedy(losses, costs, 9.0) == ["a"]
    assert select_layers(losses, costs, 9.0) == ("b", "c")


def test_three_hundred_layers_take_no_time():
    random = np.random.default_rng(0)
    names = [f"l{i}" for i in range(300)]
    losses = dict(zip(names, random.lognormal(0, 2, 300).tolist(), strict=True))
    costs = dict(zip(names, random.integers(1, 10**8, 300).astype(float).tolist(), strict=True))
    implications = [(f"l{i}", f"l{i - 1}") for i in range(1, 300, 3)]
    limit = 0.3 * sum(costs.values())
    started = perf_counter()
    chosen = select_layers(losses, costs, limit, implications=implications, required=["l7"])
    assert perf_counter() - started < 10
    assert allowed(chosen, costs, limit, implications, ["l7"], over=EQUAL)
    assert total(losses, chosen) > 0.5 * sum(losses.values())


def test_among_equals_the_cheaper_one_wins():
    assert select_layers({"a": 1.0, "b": 1.0}, {"a": 2.0, "b": 1.0}, 2.0) == ("b",)
    assert select_layers({"a": 0.0, "b": 0.0}, {"a": 2.0, "b": 1.0}, 5.0) == ()


def test_a_layer_that_is_faster_at_16_bit_is_chosen_and_pays_for_others():
    losses = {"a": 0.0, "b": 1.0, "c": 0.5}
    costs = {"a": -2.0, "b": 3.0, "c": 1.0}
    assert select_layers(losses, costs, 0.0) == ("a", "c")
    assert select_layers(losses, costs, 1.0) == ("a", "b")
    assert select_layers(losses, costs, 2.0) == ("a", "b", "c")


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e12])
def test_the_unit_of_losses_and_costs_changes_nothing(scale):
    losses = {"a": 3.0 * scale, "b": 2.0 * scale, "c": 2.0 * scale}
    costs = {"a": 3.0 / scale, "b": 2.0 / scale, "c": 2.0 / scale}
    assert select_layers(losses, costs, 4.0 / scale) == ("b", "c")


def test_an_implied_layer_comes_along_or_its_cause_does_not():
    losses, costs = {"a": 1.0, "b": 0.0, "c": 0.4}, dict.fromkeys("abc", 1.0)
    pairs = [("a", "b")]
    assert select_layers(losses, costs, 2.0, implications=pairs) == ("a", "b")
    assert select_layers(losses, costs, 1.0, implications=pairs) == ("c",)


def test_a_required_layer_brings_what_it_implies():
    losses, costs = {"a": 0.0, "b": 0.0, "c": 9.0}, dict.fromkeys("abc", 1.0)
    assert select_layers(losses, costs, 2.0, implications=[("a", "b")], required=["a"]) == ("a", "b")
    with pytest.raises(UsageError) as caught:
        select_layers(losses, costs, 1.0, implications=[("a", "b")], required=["a"])
    assert caught.value.expected == "a budget of at least 2 for the layers that must be at 16 bit"
    assert (caught.value.found, caught.value.do) == ("1", "raise --mixed")


def test_no_layers_give_no_choice():
    assert select_layers({}, {}, 1.0) == ()


@pytest.mark.parametrize(
    ("losses", "costs"),
    [
        ({"a": 1.0}, {}),
        ({"a": 1.0}, {"a": 1.0, "b": 1.0}),
        ({"a": math.nan}, {"a": 1.0}),
        ({"a": 1.0}, {"a": math.inf}),
    ],
    ids=["no cost", "no loss", "loss is NaN", "infinite cost"],
)
def test_losses_and_costs_must_be_there_and_finite(losses, costs):
    with pytest.raises(UsageError, match="one finite loss and cost for each layer"):
        select_layers(losses, costs, 1.0)


@pytest.mark.parametrize("more", [{"required": ["z"]}, {"implications": [("a", "z")]}], ids=["required", "implied"])
def test_layers_outside_the_ranking_cannot_be_asked_for(more):
    with pytest.raises(UsageError, match="layers cannot be selected") as caught:
        select_layers({"a": 1.0}, {"a": 1.0}, 1.0, **more)
    assert caught.value.found == "none for z"


@pytest.mark.parametrize("share", [1.5, -0.1, math.nan, math.inf, 30.0])
def test_a_budget_is_a_share(share):
    with pytest.raises(UsageError, match="share of the network to keep at 16 bit cannot be used") as caught:
        Budget(share)
    assert caught.value.found == str(share)
    assert "not a percentage" in caught.value.do
    assert caught.value.exit_code == 2


def test_a_budget_has_a_known_unit():
    assert [Budget(0.3, unit).unit for unit in BUDGET_UNITS] == ["layers", "macs", "bops", "bytes", "latency"]
    with pytest.raises(UsageError, match="unit is not known") as caught:
        Budget(0.3, "watts")
    assert caught.value.expected == "layers or macs or bops or bytes or latency"


@pytest.mark.parametrize(
    ("share", "count", "limit"),
    [(0.3, 73, 21), (0.3, 10, 3), (0.1, 10, 1), (0.7, 10, 7), (0.0, 10, 0), (1.0, 10, 10), (0.29, 10, 2)],
)
def test_layers_are_counted_and_rounded_down(share, count, limit):
    costs, found = budget_costs(ranking({f"l{i}": 0.1 for i in range(count)}), Budget(share))
    assert set(costs.values()) == {1.0} and len(costs) == count
    assert found == limit


def test_macs_and_added_time_are_the_other_units():
    losses, macs = {"a": 0.1, "b": 0.2, "c": 0.3}, {"a": 100, "b": 300, "c": 600}
    costs, limit = budget_costs(ranking(losses, macs), Budget(0.3, "macs"))
    assert (costs, limit) == ({"a": 100.0, "b": 300.0, "c": 600.0}, pytest.approx(300.0))
    added = {"a": -1.0, "b": 4.0, "c": 6.0}
    costs, limit = budget_costs(ranking(losses, added_ms=added), Budget(0.5, "latency"))
    # A layer that gets faster does not make the budget smaller.
    assert (costs, limit) == (added, pytest.approx(5.0))


def test_layers_that_are_always_at_16_bit_come_off_the_budget():
    ranked = ranking({f"l{i}": 0.1 for i in range(8)}, macs={f"l{i}": 100 for i in range(8)})
    fixed = {"up1": 50, "up2": 150}
    assert budget_costs(ranked, Budget(0.5), fixed)[1] == 3.0  # half of 10 layers, less 2
    assert budget_costs(ranked, Budget(0.5, "macs"), fixed)[1] == pytest.approx(300.0)  # half of 1000, less 200
    assert budget_costs(ranked, Budget(0.1), fixed)[1] == budget_costs(ranked, Budget(0.1, "macs"), fixed)[1] == 0.0
    plan = plan_from_selection(ranked, Budget(0.5), Precision.FP16, always_wide=fixed)
    assert len(plan.layers_16bit) == 3


def test_bit_operations_are_a_share_of_multiply_adds():
    found = ranking({"a": 0.1, "b": 0.2}, macs={"a": 30, "b": 10})
    assert budget_costs(found, Budget(0.5, "bops")) == budget_costs(found, Budget(0.5, "macs"))


def test_a_budget_in_bytes_counts_weights():
    found = ranking({"a": 0.1, "b": 0.2}, macs={"a": 30, "b": 10})
    rows = tuple(row.model_copy(update={"weights": n}) for row, n in zip(found.layers, (6, 4), strict=True))
    weighed = found.model_copy(update={"layers": rows})
    assert budget_costs(weighed, Budget(0.5, "bytes"), {"wide": 2}) == ({"a": 6.0, "b": 4.0}, 4.0)
    with pytest.raises(UsageError, match="a bytes budget needs the weights of each layer"):
        budget_costs(found, Budget(0.5, "bytes"))


def test_a_latency_budget_needs_times():
    with pytest.raises(UsageError, match="needs the time of each layer") as caught:
        budget_costs(ranking({"a": 0.1}), Budget(0.5, "latency"))
    assert "--mixed-by latency" in caught.value.do


def test_the_plan_keeps_the_chosen_layers_at_16_bit():
    plan = plan_from_selection(ranking({"a": 0.1, "b": 0.5, "c": 0.3, "d": 0.2}), Budget(0.5), Precision.FP16)
    expected = {"a": Precision.INT8, "b": Precision.FP16, "c": Precision.FP16, "d": Precision.INT8}
    assert plan.layers == expected and list(plan.layers) == list(expected)
    assert (plan.model_sha256, plan.target) == ("ab", "ort-cpu")
    assert plan.made_by == "oks sensitivity on 16 photos; at most 0.5 of the layers at 16 bit; integer program"


def test_nothing_and_everything():
    losses = {"a": 0.1, "b": 0.5}
    nothing = plan_from_selection(ranking(losses), Budget(0.0), Precision.INT16)
    everything = plan_from_selection(ranking(losses), Budget(1.0), Precision.INT16)
    assert nothing.layers_16bit == ()
    assert everything.layers == {"a": Precision.INT16, "b": Precision.INT16}


def test_a_layer_that_loses_nothing_stays_at_8_bit_however_large_the_budget():
    # Below 0 is noise of the measurement: it counts as nothing.
    plan = plan_from_selection(ranking({"a": 0.0, "b": -0.01, "c": 0.1}), Budget(1.0), Precision.FP16)
    assert plan.layers_16bit == ("c",)


def test_a_layer_that_hardly_loses_more_does_not_cost_a_hundred_times_as_much():
    # Two layers may be wide. The plan of b leaves 0.40, that of c 0.41 and a hundredth of the multiply-adds.
    losses, macs = {"a": 5.0, "b": 0.21, "c": 0.2, "d": 0.2}, {"a": 1000, "b": 1000, "c": 10, "d": 20}
    assert plan_from_selection(ranking(losses, macs), Budget(0.5), Precision.FP16).layers_16bit == ("a", "c")
    # More than one part in twenty of what is left counts, however small beside what is gone.
    more = losses | {"b": 0.23}
    assert plan_from_selection(ranking(more, macs), Budget(0.5), Precision.FP16).layers_16bit == ("a", "b")
    # With all to spend nothing is left, and nothing saved.
    assert len(plan_from_selection(ranking(losses, macs), Budget(1.0), Precision.FP16).layers_16bit) == 4


def test_of_two_plans_as_good_the_faster_one_is_taken_under_a_budget_in_time():
    losses, added = {"a": 0.21, "b": 0.2, "c": 3.0}, {"a": 3.0, "b": 1.0, "c": 6.0}
    plan = plan_from_selection(ranking(losses, added_ms=added), Budget(0.3, "latency"), Precision.FP16)
    assert plan.layers_16bit == ("b",)


def test_required_layers_and_neighbours_go_into_the_plan():
    sensitivity = ranking({"a": 0.0, "b": 0.5, "c": 0.3, "d": 0.1})
    plan = plan_from_selection(sensitivity, Budget(0.5), Precision.FP16, implications=[("b", "c")], required=["a"])
    # a is there by force, so b has no room for c: the best single layer that implies nothing is c itself.
    assert plan.layers_16bit == ("a", "c")


class TestConversions:
    """A layer's output that is wanted at 8 and at 16 bit costs something, once."""

    CHAIN = (Conversion("a", ("b", "c"), 1.0), Conversion("b", ("c",), 5.0))

    @pytest.mark.parametrize(
        ("wide", "cost"),
        [("", 0.0), ("a", 1.0), ("b", 6.0), ("c", 1.0), ("ab", 6.0), ("bc", 0.0), ("ac", 1.0), ("abc", 0.0)],
    )
    def test_by_hand(self, wide, cost):
        """a is read by b and c, b by c. Wide b: a is read in both widths, and b is wide in front of c."""
        assert conversion_cost(self.CHAIN, set(wide), "abc") == cost

    @pytest.mark.parametrize(
        ("wide", "cost"),
        [("", 0.0), ("a", 1.0), ("b", 10.0), ("c", 10.0), ("ab", 1.0), ("bc", 10.0), ("ac", 1.0), ("abc", 0.0)],
    )
    def test_one_direction_alone(self, wide, cost):
        """a at 16 bit with a reader at 8 costs 1, a at 8 with a reader at 16 costs 10."""
        chain = (Conversion("a", ("b", "c"), 1.0, "narrowed"), Conversion("a", ("b", "c"), 10.0, "widened"))
        assert conversion_cost(chain, set(wide), "abc") == cost

    def test_a_layer_that_is_not_known_asks_for_nothing(self):
        assert Conversion("x", ("b",), 1.0).pairs({"b"}) == []
        assert Conversion("a", ("x",), 1.0, "widened").pairs({"a"}) == []

    def test_a_dear_conversion_keeps_neighbours_together(self):
        """b alone would fit a budget of 2, but not with the conversions around it; b and c together cost none."""
        losses, costs = {"a": 0.1, "b": 1.0, "c": 0.2}, dict.fromkeys("abc", 1.0)
        assert select_layers(losses, costs, 2.0) == ("b", "c")
        assert select_layers({**losses, "a": 0.3}, costs, 2.0) == ("a", "b")
        assert select_layers({**losses, "a": 0.3}, costs, 2.0, conversions=self.CHAIN) == ("b", "c")

    @settings(max_examples=40, deadline=None)
    @given(
        st.lists(st.tuples(st.integers(0, 50), st.integers(-5, 20)), min_size=3, max_size=6),
        st.lists(
            st.tuples(
                st.integers(0, 4),
                st.integers(0, 4),
                st.integers(0, 12),
                st.sampled_from(["both", "narrowed", "widened"]),
            ),
            max_size=4,
        ),
        st.floats(0.0, 1.0),
    )
    def test_as_good_as_trying_every_choice(self, layers, pairs, share):
        names = [f"l{i}" for i in range(len(layers))]
        losses = {name: float(loss) for name, (loss, _) in zip(names, layers, strict=True)}
        costs = {name: float(cost) for name, (_, cost) in zip(names, layers, strict=True)}
        conversions = [
            Conversion(f"l{a}", tuple(names[b:][:2]), float(cost), when)
            for a, b, cost, when in pairs
            if a < b < len(names)
        ]
        limit = share * sum(max(cost, 0.0) for cost in costs.values())
        best = max(
            sum(losses[name] for name in chosen)
            for size in range(len(names) + 1)
            for chosen in combinations(names, size)
            if sum(costs[name] for name in chosen) + conversion_cost(conversions, chosen, names) <= limit + 1e-9
        )
        chosen = select_layers(losses, costs, limit, conversions=conversions)
        assert sum(losses[name] for name in chosen) == pytest.approx(best)
        assert sum(costs[name] for name in chosen) + conversion_cost(conversions, chosen, names) <= limit + 1e-6
