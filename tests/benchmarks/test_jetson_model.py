"""The latency model is what its fit gives, and as good as it says."""

from __future__ import annotations

from collections import Counter
from dataclasses import astuple

import jetson_model_page
import numpy as np
import pytest
from fit_jetson_model import PAGE_FILE, errors_pct, fit, fit_document, read_points
from published_networks import NETWORKS, published_network

from qtoolkit.artifacts.plan import Precision
from qtoolkit.bench.jetson_devices import read_table
from qtoolkit.bench.network_work import network_work
from qtoolkit.bench.roofline import fitted_model
from qtoolkit.graph.load import load_network

_PUBLISHED = {(row["model"], row["resolution"]): row for row in read_table("jetson_points.csv")}


@pytest.fixture(scope="module")
def in_range():
    return [each for each in read_points()[0] if each.is_in_range]


@pytest.mark.parametrize(("name", "resolution"), [each for each in _PUBLISHED if each[0] in NETWORKS])
def test_layer_lists_have_the_published_size(name, resolution):
    layers, row = published_network(name, int(resolution)), _PUBLISHED[name, resolution]
    assert sum(each.macs for each in layers) / 1e9 == pytest.approx(float(row["gmacs"]), rel=0.02)
    assert sum(each.weights for each in layers) / 1e6 == pytest.approx(float(row["params_m"]), rel=0.02)


def test_the_fit_set_is_fixed_by_rule(in_range):
    fitted = [each for each in in_range if each.is_fitted]
    assert len(fitted) == 30
    assert {each.row["model"][:-1] for each in fitted} == {"YOLO26"}
    assert {each.row["device"] for each in fitted} == {"jetson-orin-nano-8gb-super", "jetson-agx-orin-64gb"}


def test_fitting_again_gives_the_shipped_coefficients(in_range):
    again = fit([each for each in in_range if each.is_fitted])
    shipped = fitted_model().coefficients
    for name in ("memory_efficiency", "launch", "decode", "narrow"):
        assert getattr(again, name) == pytest.approx(getattr(shipped, name), rel=2e-3), name
    for precision in (Precision.FP32, Precision.FP16, Precision.INT8):
        assert again.efficiency[precision] == pytest.approx(shipped.efficiency[precision], rel=2e-3)


def test_the_stated_errors_are_those_of_the_points_held_out(in_range):
    model = fitted_model()
    held_out = [each for each in in_range if not each.is_fitted]
    size = np.abs(errors_pct(held_out, model.coefficients))
    assert size.size == model.held_out_points >= 65
    assert size.mean() == pytest.approx(model.held_out_mean_pct, abs=0.01)
    assert np.median(size) == pytest.approx(model.held_out_median_pct, abs=0.01)
    assert np.quantile(size, 0.9) == pytest.approx(model.error_band_pct, abs=0.051)
    assert size.max() == pytest.approx(model.held_out_worst_pct, abs=0.01)
    assert size.mean() <= 6.0


def test_efficiencies_are_shares():
    coefficients = fitted_model().coefficients
    assert all(0 < each < 1 for each in (*coefficients.efficiency.values(), coefficients.memory_efficiency))
    # A launch takes microseconds; a layer of a few hundred channels is not narrow.
    assert 0.001 < coefficients.launch < 0.02
    assert coefficients.narrow < 128


def test_the_page_is_what_the_command_writes(monkeypatch):
    """But for the cross-validation, which takes half a minute: `python benchmarks/fit_jetson_model.py --check`."""
    monkeypatch.setattr(jetson_model_page, "cross_validation", lambda points, group: {})
    there, made = (
        text.split("## Cross-validation")[0] + "## Outside" + text.split("## Outside")[1]
        for text in (PAGE_FILE.read_text(encoding="utf-8"), jetson_model_page.model_page(fit_document()))
    )
    assert there == made


@pytest.mark.real
def test_a_network_read_from_onnx_is_the_list_of_its_description(real_data):
    read = network_work(load_network(real_data / "models" / "yolov8n-pose.onnx")).kernels
    built = published_network("YOLOv8n-pose", 640)
    assert Counter(astuple(each)[1:] for each in read) == Counter(astuple(each)[1:] for each in built)
