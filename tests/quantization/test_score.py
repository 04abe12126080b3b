from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import qtoolkit
from qtoolkit.artifacts.files import sha256_file
from qtoolkit.artifacts.plan import Precision, PrecisionPlan
from qtoolkit.artifacts.scorecard import LatencyFigures, Scorecard
from qtoolkit.bench.cost import network_cost
from qtoolkit.bench.environment import capture_environment
from qtoolkit.data.people import People
from qtoolkit.data.samples import SkippedImage
from qtoolkit.quantization.run import Run, open_run
from qtoolkit.quantization.score import score_variants
from qtoolkit.recipe import Recipe
from qtoolkit.training.dataset import LabelledImages

LATENCY = LatencyFigures(
    target="ort-cpu", measured=True, device="a processor", runtime="onnxruntime", version="1", p50_ms=2.0, p90_ms=2.5,
    p99_ms=3.0, images_per_second=480.0, ratio=0.5,
)  # fmt: skip
TAIL_NOTE = (
    "Outputs of the last layers and everything behind them (the decode arithmetic) are in float in every network."
)


@pytest.fixture(scope="module")
def opened(tmp_path_factory, tiny_pose_model, make_data_set) -> Run:
    """A run on four photos whose int8 network is the float one: only what is written into the scorecard counts here."""
    root = tmp_path_factory.mktemp("score")
    onnx.save(tiny_pose_model("relu"), root / "tiny.onnx")
    data = make_data_set(root / "people")
    run = open_run(Recipe(model=root / "tiny.onnx", data=data, out=root / "out", mixed=0.25, runs=0, seed=3))
    shutil.copy(run.network("float"), run.network("int8"))
    return run


@pytest.fixture(scope="module")
def plans(opened) -> dict[str, PrecisionPlan]:
    precisions = {"float": Precision.FP32, "int8": Precision.INT8}
    return {variant: opened.uniform_plan(precision) for variant, precision in precisions.items()}


@pytest.fixture
def people(opened) -> dict[str, dict[int, People]]:
    """The labelled person, found by float on every photo and by int8 on the first two."""
    keypoints = np.array([[(12 + 2 * k, 14 + k, 0.9) for k in range(17)]])
    found = People(np.array([[10, 10, 50, 50]]), np.array([0.9]), keypoints)
    ids = opened.samples.image_ids
    return {
        "float": dict.fromkeys(ids, found),
        "int8": dict.fromkeys(ids[:2], found) | dict.fromkeys(ids[2:], People.empty(17)),
    }


def test_a_row_for_each_variant_against_the_float_network(opened, plans, people):
    scorecard = score_variants(opened, plans, people, {})
    floating, int8 = scorecard.rows
    assert (floating.variant, int8.variant) == ("float", "int8")
    assert (floating.ap, floating.retention, floating.agreement) == (100.0, 1.0, 100.0)
    # Half of the people: 51 of 101 recall places.
    assert int8.ap == int8.agreement == pytest.approx(100 * 51 / 101, abs=5e-4)
    assert int8.retention == pytest.approx(51 / 101, abs=5e-6)
    assert (floating.latency, int8.latency) == (None, None)
    for row, bits in ((floating, 32), (int8, 8)):
        assert row.precisions == {{32: "fp32", 8: "int8"}[bits]: len(opened.layers)}
        assert (row.weights_bits, row.activation_bits) == (bits, bits)
        assert row.bops_g == pytest.approx(sum(layer.macs for layer in opened.layers) * bits**2 / 1e9)
        assert row.size_mb == opened.network(row.variant).stat().st_size / 1e6
        assert row.sha256 == sha256_file(opened.network(row.variant))


def test_the_conditions_are_those_of_the_run(opened, plans, people):
    scorecard = score_variants(opened, plans, people, {})
    cost = network_cost(opened.model)
    assert scorecard.model.model_dump() == {
        "name": "tiny.onnx",
        "sha256": sha256_file(opened.recipe.model),
        "input_size_wh": (64, 64),
        "gmacs": cost.gmacs,
        "params_m": cost.params_m,
    }
    assert scorecard.data.model_dump() == {
        "name": "tiny",
        "images": 4,
        "sha256": opened.samples.sha256,
        "skipped": 0,
        "calibration_images": 3,
        "calibration_sha256": opened.calibration.sha256,
    }
    assert (scorecard.qtoolkit, scorecard.target) == (qtoolkit.__version__, "ort-cpu")
    now = capture_environment().model_dump(mode="json") | {"load_average_1m": None}
    assert scorecard.environment | {"load_average_1m": None} == now


def test_with_qat_its_settings_are_there_and_a_note_on_its_photos(opened, plans, people, tmp_path):
    recipe = opened.recipe.model_copy(update={"qat": True, "unlabeled": tmp_path / "photos"})
    scorecard = score_variants(replace(opened, recipe=recipe, learning=opened.calibration), plans, people, {})
    assert scorecard.settings["qat_images"] == 2000
    assert scorecard.settings["unlabeled"] == "photos"
    assert any("without labels on 3 photos, seeing 2000 changed views" in note for note in scorecard.notes)
    recipe = opened.recipe.model_copy(update={"qat": True, "labelled": tmp_path / "people"})
    labelled = LabelledImages(opened.samples.samples, (), (), "0" * 64)
    scorecard = score_variants(replace(opened, recipe=recipe, learning=labelled), plans, people, {})
    assert scorecard.settings["labelled"] == "people"
    assert any("with labels on 4 photos, seeing 2000 changed views" in note for note in scorecard.notes)


def test_settings_are_every_option_but_paths(opened, plans, people):
    settings = score_variants(opened, plans, people, {}).settings
    of_qat = {"qat", "qat_images", "qat_lr", "qat_device", "unlabeled", "labelled"}
    assert set(settings) == set(Recipe.model_fields) - {"version", "model", "data", "out"} - of_qat
    assert (settings["mixed"], settings["seed"], settings["runs"], settings["plan"]) == (0.25, 3, 0, None)
    assert settings["corrections"] == ["silu-pairs"]


def test_no_correction_is_said_so(opened, plans, people):
    uncorrected = replace(opened, corrections=frozenset())
    assert score_variants(uncorrected, plans, people, {}).settings["corrections"] == "none"


def test_latency_goes_to_its_row_and_brings_the_note_on_16_bit(opened, plans, people):
    scorecard = score_variants(opened, plans, people, {"int8": LATENCY})
    assert [row.latency for row in scorecard.rows] == [None, LATENCY]
    assert scorecard.notes == (
        TAIL_NOTE,
        "ONNX Runtime has no 16-bit convolution on x86: fp16 layers cost float time there, int16 layers more.",
    )


@pytest.mark.parametrize(("wide_ms", "noted"), [(8.0, True), (12.0, False)])
def test_it_is_said_where_16_bit_is_the_faster_one(opened, plans, people, wide_ms, noted):
    shutil.copy(opened.network("float"), opened.network("16bit"))
    latencies = {
        variant: LATENCY.model_copy(update={"p50_ms": ms}) for variant, ms in (("16bit", wide_ms), ("int8", 10.0))
    }
    both = {**plans, "16bit": opened.uniform_plan(Precision.FP16)}
    notes = score_variants(opened, both, {**people, "16bit": people["float"]}, latencies).notes
    assert any("16 bit was faster than 8 bit here" in note for note in notes) == noted


def test_without_latency_there_is_nothing_to_note_of_it(opened, plans, people):
    assert score_variants(opened, plans, people, {}).notes == (TAIL_NOTE,)


def test_a_target_that_does_not_run_here_is_said_to_be_simulated(opened, plans, people):
    elsewhere = replace(opened, target=opened.target.model_copy(update={"name": "board", "backend": "board"}))
    scorecard = score_variants(elsewhere, plans, people, {})
    assert {row.accuracy_on for row in scorecard.rows} == {"ort-cpu (simulating the target)"}
    assert scorecard.target == "board"
    assert scorecard.notes == (
        TAIL_NOTE,
        "Target board does not run here: AP is that of its Q/DQ network in ONNX Runtime; no latency.",
    )


def test_skipped_photos_are_counted_and_noted(opened, plans, people):
    skipped = (SkippedImage(Path("a.png"), "empty"), SkippedImage(Path("b.png"), "no image"))
    scorecard = score_variants(replace(opened, skipped=skipped), plans, people, {})
    assert scorecard.data.skipped == 2
    assert scorecard.notes == (TAIL_NOTE, "2 photos could not be used.")


def test_a_photo_that_no_network_saw_is_not_counted(opened, plans, people):
    seen = {variant: {1: found[1], 2: found[2]} for variant, found in people.items()}
    scorecard = score_variants(opened, plans, seen, {})
    assert scorecard.data.images == 2
    assert [row.ap for row in scorecard.rows] == [100.0, 100.0]


def test_progress_and_the_way_through_a_file(opened, plans, people, tmp_path):
    seen = []
    run = replace(opened, progress=lambda *each: seen.append(each))
    scorecard = score_variants(run, plans, people, {"float": LATENCY})
    assert seen == [("scoring", 1, 2), ("scoring", 2, 2)]
    scorecard.write(tmp_path / "scorecard.json")
    assert Scorecard.read(tmp_path / "scorecard.json") == scorecard
