"""The yardstick of ``benchmarks/tensorrt_plain.py``, on the stand-in: it runs, agrees, and writes a scorecard."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from qtoolkit.artifacts.scorecard import Scorecard
from qtoolkit.data.sources import open_data_source
from qtoolkit.pipeline import quantize
from qtoolkit.recipe import Recipe

PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "tensorrt_plain.py"


@pytest.fixture
def plain():
    spec = importlib.util.spec_from_file_location("tensorrt_plain", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def finished(tiny_pose_model, make_data_set, tmp_path_factory):
    import onnx

    root = tmp_path_factory.mktemp("run")
    onnx.save(tiny_pose_model("relu"), root / "tiny.onnx")
    data, out = make_data_set(root / "people"), root / "out"
    recipe = Recipe(
        model=root / "tiny.onnx", data=data, out=out, target="tensorrt", mixed=0.3, metric="sqnr", runs=0, threads=1,
        sensitivity_images=2,
    )  # fmt: skip
    quantize(recipe)
    return data, out


@pytest.mark.parametrize(("version", "target"), [("8.5", "tensorrt"), ("11.4", "tensorrt-strong")])
def test_one_command_measures_every_variant(version, target, plain, finished, install_tensorrt, monkeypatch, tmp_path):
    log = install_tensorrt(version)
    monkeypatch.setattr(plain, "open_cuda", lambda: log["cuda"])
    monkeypatch.setattr(plain, "WARM_UP", 1)
    data, out = finished
    built, make = [], plain.build
    samples, path = open_data_source(data).evaluation_samples(None), tmp_path / "card.json"
    plain.measure(out, samples, target, 10, path, "Stand-in GPU")
    card = Scorecard.read(tmp_path / "card.json")
    assert [row.variant for row in card.rows] == ["float", "16bit", "int8", "mixed"]
    for row in card.rows:
        assert row.latency is not None and row.latency.measured and row.latency.device == "Stand-in GPU"
        assert row.latency.conditions["count"] == 10 and row.latency.conditions["over_plain"] > 0
        assert row.accuracy_on.startswith("tensorrt ")
    assert card.rows[0].latency.conditions["parity_db"] > 60
    assert not log["memory"]

    # One that was stopped behind the second variant.
    Scorecard.read(path).model_copy(update={"rows": card.rows[:2]}).write(path)
    monkeypatch.setattr(plain, "build", lambda options: built.append(options.model.name) or make(options))
    plain.measure(out, samples, target, 10, path, "Stand-in GPU")
    assert built == ["model.int8.onnx", "model.mixed.onnx"]
    assert [row.variant for row in Scorecard.read(path).rows] == ["float", "16bit", "int8", "mixed"]
    plain.measure(out, samples, target, 10, path, "Stand-in GPU")
    assert len(built) == 2
    plain.measure(out, samples, target, 10, path, "Another GPU")
    assert len(built) == 6


def test_turns_alternate(plain, monkeypatch):
    monkeypatch.setattr(plain, "WARM_UP", 0)
    order = []
    times = plain.in_turns([lambda: order.append("a"), lambda: order.append("b")], runs=4, block=2)
    assert "".join(order) == "aabbaabb" and all(len(each) == 4 for each in times) and np.all(times[0] >= 0)
