from __future__ import annotations

import shutil
from types import SimpleNamespace
from typing import Any, cast, get_args

import numpy as np
import pytest
from onnx import parser

from qtoolkit.artifacts.plan import Precision, PrecisionPlan, uniform_plan
from qtoolkit.artifacts.stages import StageStore
from qtoolkit.backends.targets import find_target
from qtoolkit.corrections import CORRECTIONS, Correction
from qtoolkit.data.calibration_set import calibration_set_of
from qtoolkit.data.sources import open_data_source
from qtoolkit.quantization import effort
from qtoolkit.quantization.effort import quantizer_of, with_plan_biases, without_biases
from qtoolkit.quantization.ptq import Quantizer
from qtoolkit.quantization.run import Run, chosen_corrections
from qtoolkit.recipe import Recipe


@pytest.fixture
def made(pose, calibrated):
    def make(effort: str, corrections: tuple[str, ...] | None = None) -> Quantizer:
        target, recipe = find_target("ort-cpu"), SimpleNamespace(ranges="mse", effort=effort, corrections=corrections)
        chosen = chosen_corrections(cast(Recipe, cast(Any, recipe)), target, pose)
        run = SimpleNamespace(model=pose, target=target, recipe=recipe, corrections=chosen)
        return quantizer_of(cast(Run, cast(Any, run)), calibrated(pose), {"x": np.zeros(3)})

    return make


def test_fast_is_what_there_was_before(made):
    quantizer = made("fast")
    assert (quantizer.pairs_silu, quantizer.tolerance) == (False, 1.0)
    assert list(quantizer.means) == ["x"]


def test_balanced_searches_pairs_and_counts_energetic_images(made):
    quantizer = made("balanced")
    assert (quantizer.pairs_silu, quantizer.tolerance) == (True, 4.0)


def test_stages_that_follow_tell_efforts_apart(made):
    assert made("fast").statistics.key != made("balanced").statistics.key


class TestCorrections:
    def test_named_ones_replace_those_of_the_effort(self, made):
        assert not made("balanced", ()).pairs_silu
        assert made("fast", ("silu-pairs",)).pairs_silu

    def test_stages_that_follow_tell_them_apart(self, made):
        assert made("balanced", ()).statistics.key != made("balanced", ("silu-pairs",)).statistics.key
        assert (
            made("balanced", ("silu-pairs", "bias")).statistics.key
            == made("balanced", ("bias", "silu-pairs")).statistics.key
        )

    def test_those_of_scales_and_outputs_are_told_apart_too(self, made):
        keys = {made("balanced", names).statistics.key for names in ((), ("split-scales",), ("output-ranges",))}
        assert len(keys) == 3
        assert made("balanced", ("split-scales",)).splits_scales and not made("balanced").splits_scales

    @pytest.mark.parametrize(("effort", "target", "expected"), [
        ("fast", "ort-cpu", set()),
        ("balanced", "ort-cpu", {"silu-pairs"}),
        ("balanced", "tidl", {"silu-pairs", "equalize", "bias"}),
        ("best", "ort-cpu", {"silu-pairs", "blocks"}),
    ])  # fmt: skip
    def test_defaults(self, effort, target, expected, relu_pose):
        recipe = cast(Recipe, cast(Any, SimpleNamespace(effort=effort, corrections=None)))
        assert chosen_corrections(recipe, find_target(target), relu_pose) == expected

    def test_a_default_that_the_network_does_not_allow_is_left_out(self, relu_pose):
        other = parser.parse_model(
            '<ir_version: 8, opset_import: ["" : 13]>\n'
            "net (float[1,2] x) => (float[1,2] y) <float[2,2] k = {1,2,3,4}> { y = MatMul(x, k) }"
        )
        recipe = cast(Recipe, cast(Any, SimpleNamespace(effort="fast", corrections=None)))
        target = find_target("tidl")
        assert chosen_corrections(recipe, target, relu_pose) == {"bias", "equalize"}
        assert chosen_corrections(recipe, target, other) == {"bias"}

    def test_each_says_what_it_does(self):
        assert set(CORRECTIONS) == set(get_args(Correction))


class TestBiasEmpirical:
    """Biases measured under a plan, once."""

    @pytest.fixture
    def run(self, relu_pose, photos, tmp_path):
        asked: list[int] = []

        def feeds(limit):
            asked.append(limit)
            return photos(2)

        store = StageStore(tmp_path)
        recipe = SimpleNamespace(ranges="mse", effort="balanced", threads=1)
        return SimpleNamespace(
            model=relu_pose, model_sha256="f", target=find_target("tidl"), recipe=recipe, store=store, asked=asked,
            corrections=frozenset({"bias-empirical"}), calibration_feeds=feeds,
            progress=lambda stage, done, total: None,
        )  # fmt: skip

    @pytest.fixture(autouse=True)
    def judged(self, monkeypatch):
        """What the judge says of networks with measured biases; the networks that it was asked of."""
        said = SimpleNamespace(no_worse=True, asked=[])
        monkeypatch.setattr(
            effort, "is_no_worse", lambda run, quantizer, plan, model: said.asked.append(model) or said.no_worse
        )
        return said

    def test_they_are_left_out_where_the_network_is_worse_with_them(self, run, calibrated, judged):
        judged.no_worse = False
        quantizer = quantizer_of(cast(Run, cast(Any, run)), calibrated(run.model, "tidl"), {})
        plan = uniform_plan([layer.name for layer in quantizer.layers], Precision.INT8)
        found = with_plan_biases(cast(Run, cast(Any, run)), quantizer, plan)
        assert found.biases == {} and found.quantize(plan).model == quantizer.quantize(plan).model
        assert judged.asked[0] != quantizer.quantize(plan).model
        wide = uniform_plan([layer.name for layer in quantizer.layers], Precision.INT16)
        plans = {"float": wide, "int8": plan, "int8-qat": plan}
        assert without_biases(cast(Run, cast(Any, run)), quantizer, plans) == ["int8"]
        assert len(judged.asked) == 1

    def test_it_is_kept_by_plan(self, run, calibrated):
        quantizer = quantizer_of(cast(Run, cast(Any, run)), calibrated(run.model, "tidl"), {})
        plan = uniform_plan([layer.name for layer in quantizer.layers], Precision.INT8)
        first = with_plan_biases(cast(Run, cast(Any, run)), quantizer, plan)
        passes = len(run.asked)
        again = with_plan_biases(cast(Run, cast(Any, run)), quantizer, plan)
        assert 0 < passes == len(run.asked)
        assert max(run.asked) <= 64
        assert list(again.biases) == list(first.biases) != []
        for name, bias in first.biases.items():
            np.testing.assert_array_equal(again.biases[name], bias)
        assert first.quantize(plan).model != quantizer.quantize(plan).model
        with_plan_biases(cast(Run, cast(Any, run)), quantizer, plan.with_layers({plan_layer(plan): Precision.INT16}))
        assert len(run.asked) > passes

    def test_without_it_the_quantizer_is_as_it_was(self, run, calibrated):
        run.corrections = frozenset()
        quantizer = quantizer_of(cast(Run, cast(Any, run)), calibrated(run.model, "tidl"), {})
        plan = uniform_plan([layer.name for layer in quantizer.layers], Precision.INT8)
        assert with_plan_biases(cast(Run, cast(Any, run)), quantizer, plan) is quantizer
        assert run.asked == []


def plan_layer(plan: PrecisionPlan) -> str:
    return next(iter(plan.layers))


class TestBest:
    """It learns from photos that the judge does not see, where the data set has any."""

    @pytest.fixture
    def photos_of(self, pose, calibrated, make_data_set, tmp_path):
        def find(unlabeled: bool):
            root = make_data_set(tmp_path / f"people {unlabeled}")
            if unlabeled:
                shutil.copytree(root / "val", root / "more")
                (root / "more" / "1.png").write_bytes((root / "calib" / "11.png").read_bytes())
                with (root / "dataset.yaml").open("a") as stream:
                    stream.write("unlabeled: {images: more}\n")
            source = open_data_source(root)
            recipe = SimpleNamespace(ranges="mse", effort="best", data=root, unlabeled=None)
            run = SimpleNamespace(
                model=pose, target=find_target("ort-cpu"), recipe=recipe, samples=source.evaluation_samples(),
                calibration=calibration_set_of(source),
                corrections=frozenset({"silu-pairs", "blocks"}),
            )  # fmt: skip
            return effort._photos(cast(Run, cast(Any, run))), quantizer_of(
                cast(Run, cast(Any, run)), calibrated(pose), {}
            )

        return find

    def test_the_part_unlabeled_without_what_is_evaluated_on(self, photos_of):
        assert [image.name for image in photos_of(True)[0].images] == ["1.png"]

    def test_the_photos_calibrated_on_where_there_are_no_others(self, photos_of):
        assert [image.name for image in photos_of(False)[0].images] == ["11.png", "12.png", "13.png"]

    def test_stages_that_follow_tell_the_photos_apart(self, photos_of):
        assert photos_of(True)[1].statistics.key != photos_of(False)[1].statistics.key
