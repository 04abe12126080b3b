"""``--frontier`` and ``--min-ap-retention``, on the default network and rendered people."""

from __future__ import annotations

import json
import re

import pytest

from qtoolkit.artifacts.frontier import Frontier
from qtoolkit.artifacts.plan import PrecisionPlan
from qtoolkit.data.rendered_sets import write_set
from qtoolkit.graph import default_network

_QUICK = ("--metric", "sqnr", "--sensitivity-images", "2")


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rendered") / "people"
    write_set(folder, 2, seed=5, size=320, calib=10)
    return folder


def test_the_cheapest_plan_that_keeps_enough(people, tmp_path, qtool):
    network, out = default_network.default_network(), tmp_path / "out"
    arguments = ("sensitivity", network, "--data", people, "--out", out, "--mixed-by", "macs", *_QUICK)
    result = qtool(*arguments, "--frontier", "--json")
    assert result.exit_code == 0, result.stderr
    points = json.loads(result.stdout)["frontier"]["points"]
    assert [point["share"] for point in points] == sorted(point["share"] for point in points)
    assert points[0]["layers_16bit"] == 0
    assert points[-1]["kept"] == pytest.approx(1.0, abs=0.02)
    frontier = Frontier.read(out / "frontier.json")
    assert (frontier.photos, frontier.photos_part, frontier.measured, frontier.unit) == (10, "calib", "ap", "macs")
    assert frontier.points[0].on_front

    wanted = 0.5 * (points[0]["kept"] + 1.0)
    result = qtool(*arguments, "--min-ap-retention", f"{wanted:.4f}")
    assert result.exit_code == 0, result.stderr
    plan = PrecisionPlan.read(out / "plan.yaml")
    assert 0 < len(plan.layers_16bit) < len(plan.layers)
    kept = re.search(r"on 10 photos of calib \(it keeps ([\d.]+)\)", plan.made_by)
    assert kept is not None and float(kept[1]) >= wanted - 1e-3

    result = qtool(*arguments, "--frontier", "--top", "3")
    assert "Frontier" in result.stdout
    assert "AP of the float network's, on 10 photos of calib, none of them of val" in result.stdout


def test_more_than_there_is(people, tmp_path, qtool, monkeypatch):
    monkeypatch.setattr("qtoolkit.quantization.plan_judge.PlanJudge.kept", lambda self, plan: 0.5)
    result = qtool(
        "sensitivity", default_network.default_network(), "--data", people, "--out", tmp_path / "out", "--mixed-by",
        "macs", *_QUICK, "--min-ap-retention", "0.99",
    )  # fmt: skip
    assert result.exit_code == 1
    assert "no plan keeps as much of the float network as was asked for" in result.stderr
    assert not (tmp_path / "out" / "plan.yaml").exists()


def test_time_on_a_target_that_does_not_run_here(people, tmp_path, qtool):
    result = qtool(
        "sensitivity", default_network.default_network(), "--data", people, "--out", tmp_path / "out", "--target",
        "tensorrt", "--mixed-by", "latency", "--mixed", "0.3",
    )  # fmt: skip
    assert result.exit_code == 2
    assert "the time of single layers cannot be measured for target tensorrt" in result.stderr
