from __future__ import annotations

import pytest

from qtoolkit.reporting.plots import accuracy_latency_figure, figure_html, plotly_library, sensitivity_figure


def test_points_are_the_figures_of_the_scorecard(card):
    (trace,) = accuracy_latency_figure(card()).data
    # By latency, so that neighbours' labels stand above and below in turns.
    assert list(trace.text) == ["int8", "mixed", "float"]
    assert list(trace.x) == [28.91, 33.14, 45.21]
    assert list(trace.y) == [52.7, 53.281, 53.874]
    assert trace.marker.symbol == "circle"
    assert trace.error_x.array is None
    assert trace.name == "measured: Test CPU @ 2.10GHz · onnxruntime 1.32.0 · 2 threads · batch 1"


def test_modelled_points_are_hollow_and_carry_their_band(card, row, modelled):
    rows = (row("float"), row("int8", latency=modelled(20.0)), row("mixed", latency=modelled(30.0)))
    measured, marked = accuracy_latency_figure(card(rows)).data
    assert measured.marker.symbol == "circle"
    assert marked.marker.symbol == "diamond-open"
    assert marked.marker.color != measured.marker.color
    assert list(marked.error_x.array) == pytest.approx([1.2, 1.8])
    assert list(marked.text) == ["int8 (modelled)", "mixed (modelled)"]
    assert marked.name.startswith("latency modelled, not measured (±6 %)")


def test_rows_without_a_figure_are_left_out(card, row):
    rows = (row("float"), row("int8", latency=None), row("mixed", ap=None))
    (trace,) = accuracy_latency_figure(card(rows)).data
    assert list(trace.text) == ["float"]


def test_agreement_stands_in_where_there_are_no_labels(card, row):
    figure = accuracy_latency_figure(card((row("int8", ap=None),)))
    assert list(figure.data[0].y) == [92.316]
    assert figure.layout.yaxis.title.text.startswith("agreement")


def test_nothing_to_draw(card, row, sensitivity):
    assert accuracy_latency_figure(card((row(latency=None), row(ap=None, agreement=None)))) is None
    assert sensitivity_figure(sensitivity.model_copy(update={"layers": ()})) is None


def test_bars_by_rank_coloured_by_precision(sensitivity, plan):
    figure = sensitivity_figure(sensitivity, plan)
    found = {trace.name: (list(trace.y), list(trace.x)) for trace in figure.data}
    assert found == {"int16": ([1], [0.03]), "int8": ([2], [0.002]), "not in the plan": ([3], [0.0001])}
    assert len({trace.marker.color for trace in figure.data}) == 3
    assert list(figure.layout.yaxis.ticktext) == ["/head/Conv", "/stem/Conv", "/neck/Conv"]
    # The most sensitive one at the top.
    assert figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1]


def test_bars_without_a_plan_have_one_colour_and_no_legend(sensitivity):
    figure = sensitivity_figure(sensitivity, top=2)
    (trace,) = figure.data
    assert list(trace.x) == [0.03, 0.002]
    assert not figure.layout.showlegend


def test_long_names_that_shorten_alike_stay_two_bars(sensitivity):
    layers = [sensitivity.layers[0].model_copy(update={"layer": f"{'a' * 30}{i}{'b' * 30}"}) for i in range(2)]
    figure = sensitivity_figure(sensitivity.model_copy(update={"layers": tuple(layers)}))
    names = list(figure.layout.yaxis.ticktext)
    assert names[0] == names[1]
    assert len(names[0]) <= 44
    assert list(figure.data[0].y) == [1, 2]


def test_fragment_is_the_same_each_time_and_loads_nothing(card):
    fragment = figure_html(accuracy_latency_figure(card()), "points")
    assert fragment == figure_html(accuracy_latency_figure(card()), "points")
    assert 'id="points"' in fragment
    assert "<script src" not in fragment


def test_hostile_names_stay_in_their_script(card, row, hostile):
    fragment = figure_html(accuracy_latency_figure(card((row(hostile),))), "points")
    assert "<script>alert" not in fragment
    assert fragment.count("</script>") == fragment.count("<script")


def test_library_is_the_whole_of_plotly():
    assert len(plotly_library()) > 1_000_000
