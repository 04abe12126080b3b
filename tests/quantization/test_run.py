from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from qtoolkit.artifacts.files import sha256_file
from qtoolkit.artifacts.plan import Precision, PrecisionPlan
from qtoolkit.artifacts.stages import StageStore
from qtoolkit.artifacts.target import Target
from qtoolkit.backends.targets import find_target
from qtoolkit.errors import DataSetError, HeadError, ModelFileError, PlanFileError, UsageError
from qtoolkit.graph.layers import find_layers
from qtoolkit.graph.load import prepare_network
from qtoolkit.quantization import run as run_module
from qtoolkit.quantization.run import Run, open_run
from qtoolkit.recipe import Recipe

FP16, INT16, INT8 = Precision.FP16, Precision.INT16, Precision.INT8


@pytest.fixture(scope="module")
def network(tmp_path_factory, tiny_pose_model) -> Path:
    path = tmp_path_factory.mktemp("network") / "tiny.onnx"
    onnx.save(tiny_pose_model("relu"), path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory, make_data_set) -> Path:
    """Photos 1 to 4 with labels; 11 to 13 to calibrate on."""
    return make_data_set(tmp_path_factory.mktemp("run") / "people")


@pytest.fixture
def recipe(network, data, tmp_path) -> Recipe:
    return Recipe(model=network, data=data, out=tmp_path / "out")


def changed(recipe: Recipe, **fields) -> Recipe:
    return Recipe.model_validate(recipe.model_dump() | fields)


class TestOpenRun:
    def test_everything_a_stage_needs(self, recipe, network):
        run = open_run(recipe)
        assert (run.target.name, run.wide, run.runs_here) == ("ort-cpu", FP16, True)
        assert run.head.kind == "yolov8-pose"
        assert (run.input.name, run.input.input_size_wh) == ("images", (64, 64))
        assert run.layers == find_layers(run.model)
        assert (run.samples.image_ids, len(run.calibration), run.data_name) == ((1, 2, 3, 4), 3, "tiny")
        assert run.skipped == ()
        assert (run.out, run.network("int8")) == (recipe.out, recipe.out / "model.int8.onnx")

    def test_the_prepared_network_is_written_and_hashed(self, recipe, network):
        run = open_run(recipe)
        assert onnx.load(run.network("float")) == run.model == prepare_network(onnx.load(network))
        assert run.model_sha256 == sha256_file(run.network("float"))
        assert open_run(recipe).model_sha256 == run.model_sha256

    def test_equalized_it_is_another_network_with_the_same_layers_for_the_same_file(self, recipe, network, tmp_path):
        plain, run = open_run(recipe), open_run(changed(recipe, corrections=("equalize",), out=tmp_path / "other"))
        assert onnx.load(run.network("float")) == plain.model != run.model
        assert run.model_sha256 == plain.model_sha256
        assert [layer.name for layer in run.layers] == [layer.name for layer in plain.layers]
        assert run.layers == find_layers(run.model)

    def test_numbers_of_photos(self, recipe):
        run = open_run(changed(recipe, images=2, calibration_images=1))
        assert (run.samples.image_ids, len(run.calibration)) == ((1, 2), 1)

    def test_unusable_photos_of_both_parts_are_listed(self, recipe, make_data_set, tmp_path):
        data = make_data_set(tmp_path / "damaged")
        (data / "val" / "2.png").write_bytes(b"")
        (data / "calib" / "12.png").write_text("no photo")
        run = open_run(changed(recipe, data=data))
        assert [each.path.name for each in run.skipped] == ["2.png", "12.png"]
        assert (run.samples.image_ids, len(run.calibration)) == ((1, 3, 4), 2)

    def test_progress_tells_of_the_photos(self, recipe):
        seen = []
        open_run(recipe, lambda *each: seen.append(each))
        assert seen == [("reading photos", done, 4) for done in (1, 2, 3, 4)]

    def test_the_16_bit_precision_named(self, recipe):
        assert open_run(changed(recipe, wide="int16")).wide is INT16
        with pytest.raises(UsageError, match="target tensorrt has no such 16-bit precision"):
            open_run(changed(recipe, wide="int16", target="tensorrt"))

    @pytest.mark.parametrize(
        ("fields", "error", "message"),
        [
            pytest.param({"target": "abacus"}, UsageError, "the target is not known", id="target"),
            pytest.param({"model": Path("no.onnx")}, ModelFileError, "no.onnx", id="network"),
            pytest.param({"head": "heatmap"}, HeadError, "heatmap", id="head"),
            pytest.param({"data": Path("nowhere")}, DataSetError, "nowhere", id="data"),
            pytest.param({"plan": Path("no.yaml")}, PlanFileError, "no.yaml cannot be read", id="plan"),
        ],
    )
    def test_a_wrong_input_is_refused_before_anything_is_written(self, recipe, fields, error, message):
        with pytest.raises(error, match=message):
            open_run(changed(recipe, **fields))
        assert not recipe.out.exists()

    @pytest.mark.parametrize(
        ("precision", "target", "found"),
        [
            pytest.param(INT16, "tensorrt", "cannot be int16 on target tensorrt", id="not on this target"),
            pytest.param(Precision.INT16W16, "tensorrt", "cannot be int16w16 on target tensorrt", id="nor this"),
        ],
    )
    def test_a_plan_the_target_cannot_run_is_refused_before_calibration(
        self, recipe, tmp_path, precision, target, found
    ):
        layers = find_layers(prepare_network(onnx.load(recipe.model)))
        PrecisionPlan(layers={layer.name: precision for layer in layers}).write(tmp_path / "mine.yaml")
        with pytest.raises(PlanFileError, match=found):
            open_run(changed(recipe, plan=tmp_path / "mine.yaml", target=target))
        assert not recipe.out.exists()

    def test_photos_of_calibration_are_not_evaluated(self, recipe, make_data_set, tmp_path):
        data = make_data_set(tmp_path / "overlap")
        (data / "val" / "3.png").write_bytes((data / "calib" / "11.png").read_bytes())
        with pytest.raises(DataSetError, match="1 of the 3 calibration images are evaluation images too"):
            open_run(changed(recipe, data=data))


class TestEditedPlan:
    """A plan.yaml in the output folder that is not as a run left it."""

    @pytest.fixture
    def mine(self, recipe) -> Path:
        layers = find_layers(prepare_network(onnx.load(recipe.model)))
        recipe.out.mkdir()
        path = recipe.out / "plan.yaml"
        PrecisionPlan(layers={layer.name: INT8 for layer in layers}).write(path)
        path.write_text("# mine\n" + path.read_text())
        return path

    def test_a_run_that_would_replace_it_is_refused(self, recipe, mine, tmp_path):
        before = mine.read_bytes()
        other = tmp_path / "other.yaml"
        other.write_bytes(before)
        for fields in ({"mixed": 0.3}, {"plan": other}):
            with pytest.raises(UsageError) as caught:
                open_run(changed(recipe, **fields))
            assert caught.value.what == f"{mine} was written or edited by hand, and this run would replace it"
            assert caught.value.expected == "a plan.yaml as an earlier run left it, or none"
            assert caught.value.do == f"apply it with --plan {mine}, move it away, or give another --out"
            assert mine.read_bytes() == before
            assert not (recipe.out / "model.float.onnx").exists()

    def test_a_run_that_makes_no_plan_does_not_mind(self, recipe, mine):
        before = mine.read_bytes()
        open_run(recipe)
        assert mine.read_bytes() == before

    def test_applied_itself_it_is_accepted_under_any_name_of_it(self, recipe, mine):
        for path in (mine, mine.parent / ".." / mine.parent.name / mine.name, Path(os.path.relpath(mine))):
            open_run(changed(recipe, plan=path))

    def test_a_plan_of_an_earlier_run_may_be_replaced(self, recipe, mine):
        mine.unlink()
        StageStore(recipe.out).run("select", 1, [mine], lambda: mine.write_text("version: 1\n") and None)
        open_run(changed(recipe, mixed=0.3))
        mine.write_text(mine.read_text() + "# mine\n")
        with pytest.raises(UsageError, match="was written or edited by hand"):
            open_run(changed(recipe, mixed=0.3))


class TestRun:
    def test_calibration_photos_are_spread_evenly(self, recipe, monkeypatch):
        run = open_run(recipe)
        names = [f"{i}.png" for i in range(10)]
        images = tuple(run.calibration.images[0]._replace(name=name) for name in names)
        run = replace(run, calibration=replace(run.calibration, images=images))
        monkeypatch.setattr(run_module, "image_feeds", lambda paths, _: iter([path.name for path in paths]))
        assert list(run.calibration_feeds(4)) == ["0.png", "3.png", "6.png", "9.png"]
        assert list(run.calibration_feeds(1)) == ["0.png"]
        for limit in (None, 10, 11):
            assert list(run.calibration_feeds(limit)) == names

    def test_feeds_are_those_of_the_network(self, recipe):
        (feed,) = open_run(recipe).calibration_feeds(1)
        assert feed["images"].shape == (1, 3, 64, 64)
        assert 0 <= feed["images"].min() <= feed["images"].max() <= 1
        assert feed["images"].dtype == np.float32

    def test_a_target_without_its_runtime_does_not_run_here(self, recipe):
        assert open_run(changed(recipe, target="tensorrt")).runs_here is False

    def test_a_uniform_plan_says_what_it_is_for(self, recipe):
        run = open_run(recipe)
        plan = run.uniform_plan(INT8)
        assert set(plan.layers.values()) == {INT8}
        assert tuple(plan.layers) == tuple(layer.name for layer in run.layers)
        assert (plan.model_sha256, plan.target) == (run.model_sha256, "ort-cpu")
        assert plan.made_by == "all layers int8"

    @pytest.mark.parametrize(
        ("target", "wide", "at"),
        [
            pytest.param("ort-cpu", FP16, FP16, id="default"),
            # Who asks for int16 wants no fp16 in the 8-bit network either.
            pytest.param("ort-cpu", INT16, INT16, id="the one asked for"),
            pytest.param("tensorrt", FP16, INT8, id="a target that can"),
        ],
    )
    def test_a_layer_that_cannot_be_int8_takes_the_16_bit_of_the_run(
        self, recipe, mixed_layers_model, target, wide, at
    ):
        model = prepare_network(mixed_layers_model())
        chosen: Target = find_target(target)
        run: Run = replace(open_run(recipe), model=model, layers=find_layers(model), target=chosen, wide=wide)
        precisions = run.uniform_plan(INT8).layers
        assert precisions.pop("up.out.node") is at
        assert set(precisions.values()) == {INT8}
        assert set(run.uniform_plan(wide).layers.values()) == {wide}
