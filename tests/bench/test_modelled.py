"""Modelled latencies as they stand in tables and scorecards: marked."""

from __future__ import annotations

import pytest

from qtoolkit.bench.jetson_devices import find_jetson
from qtoolkit.bench.modelled import model_conditions, model_networks, modelled_figures
from qtoolkit.bench.roofline import fitted_model
from qtoolkit.graph.load import prepare_network
from qtoolkit.reporting import cells


@pytest.fixture(scope="module")
def latencies(tiny_pose_model):
    model = prepare_network(tiny_pose_model("relu"))
    return model_networks({"net": model}, find_jetson("jetson"), ("as-written", "fp16", "int8"))


def test_one_row_a_precision(latencies):
    assert list(latencies) == ["net", "net (fp16)", "net (int8)"]
    assert [set(each.precisions) for each in latencies.values()] == [{"fp32"}, {"fp16"}, {"int8"}]
    times = [each.ms for each in latencies.values()]
    assert times == sorted(times, reverse=True)


def test_figures_are_marked_as_modelled(latencies):
    figures = modelled_figures(latencies["net (int8)"], latencies["net"])
    assert not figures.measured
    assert (figures.p90_ms, figures.p99_ms) == (None, None)
    assert figures.ratio == pytest.approx(latencies["net (int8)"].ms / latencies["net"].ms, abs=1e-4)
    assert figures.images_per_second == pytest.approx(1e3 / latencies["net (int8)"].ms, abs=1e-3)
    # Such a small network lies outside the range that was checked.
    assert figures.error_band_pct is None
    assert cells.p50(figures).startswith("~") and cells.p50(figures).endswith("±? modelled")
    assert (cells.p90(figures), cells.p99(figures)) == ("–", "–")


def test_the_model_says_how_wrong_it_was():
    model = fitted_model()
    assert f"off by {model.held_out_mean_pct:.1f} % in the mean" in model_conditions()
    assert f"on {model.held_out_points} others" in model_conditions()
