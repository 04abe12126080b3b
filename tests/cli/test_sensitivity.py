from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from qtoolkit.artifacts.plan import PrecisionPlan
from qtoolkit.artifacts.sensitivity import Sensitivity
from qtoolkit.graph import default_network

_QUICK = ("--metric", "sqnr", "--threads", "1", "--sensitivity-images", "2")


@pytest.fixture
def out(finished, tmp_path):
    """An output folder in which calibration and ranking are done."""
    shutil.copytree(finished[1], tmp_path / "out")
    (tmp_path / "out" / "plan.yaml").unlink()
    return tmp_path / "out"


@pytest.fixture
def shy_network(tiny_pose_model, tmp_path):
    """A network that is sure of nobody: every score is next to 0."""
    model = tiny_pose_model(activation="relu")
    for tensor in model.graph.initializer:
        if tensor.name.startswith("head.score.") and tensor.name.endswith(".1.bias"):
            tensor.CopyFrom(numpy_helper.from_array(np.full(1, -50, np.float32), tensor.name))
    onnx.save(model, tmp_path / "shy.onnx")
    return tmp_path / "shy.onnx"


def test_ranking_alone(network, finished, out, qtool):
    result = qtool("sensitivity", network, "--data", finished[0], "--out", out, "--top", "3", *_QUICK)
    assert result.exit_code == 0
    first = Sensitivity.read(out / "sensitivity.json").ranking
    positions = [result.stdout.find(f" {row.layer} ") for row in first[:3]]
    assert all(place > 0 for place in positions)
    assert positions == sorted(positions)
    assert f"3 of {len(first)} layers" in result.stdout
    assert "plan: none; give --mixed 0.3" in result.stdout
    assert not (out / "plan.yaml").exists()


def test_with_mixed_it_writes_the_plan_that_quantize_makes(network, finished, out, qtool):
    result = qtool("sensitivity", network, "--data", finished[0], "--out", out, "--mixed", "0.3", *_QUICK)
    assert result.exit_code == 0
    plan = PrecisionPlan.read(out / "plan.yaml")
    assert plan == PrecisionPlan.read(finished[1] / "plan.yaml")
    assert f"plan: {len(plan.layers_16bit)} of {len(plan.layers)} layers at 16 bit" in result.stdout
    assert "precision" in result.stdout


def test_json(network, finished, out, qtool):
    result = qtool("sensitivity", network, "--data", finished[0], "--out", out, "--mixed", "0.3", "--json", *_QUICK)
    document = json.loads(result.stdout)
    assert set(document) == {"out", "sensitivity", "plan", "frontier", "skipped"}
    assert document["sensitivity"] == json.loads((out / "sensitivity.json").read_text())
    assert set(document["plan"]["layers"].values()) == {"fp16", "int8"}


def test_oks_where_the_network_finds_nobody(shy_network, people, tmp_path, qtool):
    result = qtool("sensitivity", shy_network, "--data", people, "--out", tmp_path / "out", "--threads", "1")
    assert result.exit_code == 2
    assert "sensitivity by poses needs people on the calibration photos" in result.stderr
    assert "found: nobody on 3 images" in result.stderr
    assert "use --metric sqnr" in result.stderr


def test_without_a_network_it_is_the_default_one(network, people, tmp_path, qtool, monkeypatch):
    monkeypatch.setattr(default_network, "_FOLDER", tmp_path)
    shutil.copy(network, tmp_path / "yolopose_n6_relu_320.onnx")
    result = qtool("sensitivity", "--data", people, "--out", tmp_path / "out", "--json", *_QUICK)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["out"] == str(tmp_path / "out")
    assert (tmp_path / "out" / "sensitivity.json").is_file()


def test_a_network_without_data(network, qtool):
    result = qtool("sensitivity", network)
    assert result.exit_code == 2
    assert f"found: {network}, and no --data" in result.stderr
