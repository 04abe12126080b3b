from __future__ import annotations

import json
import platform
import re
import shutil
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from onnx import numpy_helper

from qtoolkit import pipeline
from qtoolkit.artifacts.plan import Precision, PrecisionPlan
from qtoolkit.artifacts.scorecard import Scorecard
from qtoolkit.artifacts.sensitivity import Sensitivity
from qtoolkit.errors import DataSetError, UsageError
from qtoolkit.graph.layers import find_layers
from qtoolkit.graph.view import GraphView
from qtoolkit.pipeline import QuantizeResult, calibrate_stage, open_run, quantize, rank_stage
from qtoolkit.quantization import ranked_times
from qtoolkit.quantization.border_times import BorderTimes
from qtoolkit.quantization.budget_plan import PlanMaker
from qtoolkit.quantization.layer_times import UniformTimes
from qtoolkit.recipe import Recipe

STAGES = ("calibrate", "analyse_sensitivity", "uniform_times", "predict_set", "measure_latency")
VARIANTS = ["float", "16bit", "int8", "mixed"]
BITS = {"fp32": (32, 32), "fp16": (16, 16), "int16": (8, 16), "int16w16": (16, 16), "int8": (8, 8)}


@pytest.fixture(scope="module")
def network(tmp_path_factory, confident_network) -> Path:
    path = tmp_path_factory.mktemp("network") / "tiny.onnx"
    onnx.save(confident_network, path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory, make_data_set) -> Path:
    """Photos 1 to 4 with labels; 11 to 13 to calibrate on."""
    return make_data_set(tmp_path_factory.mktemp("pipeline") / "people")


@pytest.fixture
def labelled_calibration(tmp_path, data, make_labels) -> Path:
    """A copy of ``data`` with labels of the calibration photos too."""
    root = tmp_path / "labelled"
    shutil.copytree(data, root)
    document = make_labels(3)
    for image in document["images"]:
        image["file_name"] = f"{10 + image['id']}.png"
    (root / "calib.json").write_text(json.dumps(document))
    described = (
        (root / "dataset.yaml").read_text().replace("{images: calib}", "{images: calib, annotations: calib.json}")
    )
    (root / "dataset.yaml").write_text(described)
    return root


@pytest.fixture(scope="module")
def finished(tmp_path_factory, network, data) -> tuple[Recipe, QuantizeResult]:
    """A whole run with mixed 0.3, with latency. Copy its folder before changing it."""
    out = tmp_path_factory.mktemp("finished") / "out"
    recipe = Recipe(model=network, data=data, out=out, mixed=0.3, threads=1, runs=10, sensitivity_images=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "measure_latency", partial(pipeline.measure_latency, warmup_s=0.02))
        return recipe, quantize(recipe)


@pytest.fixture
def again(finished, tmp_path) -> Recipe:
    """The recipe of the finished run, without latency, in a copy of its folder."""
    recipe, _ = finished
    shutil.copytree(recipe.out, tmp_path / "out")
    return changed(recipe, out=tmp_path / "out", runs=0)


@pytest.fixture
def calls(monkeypatch) -> Counter[str]:
    """How often the pipeline does each piece of work, from here on."""
    counted: Counter[str] = Counter()

    def watch(name: str) -> None:
        module = ranked_times if name == "uniform_times" else pipeline
        work = getattr(module, name)

        def counting(*arguments, **options):
            counted[name] += 1
            return work(*arguments, **options)

        monkeypatch.setattr(module, name, counting)

    for name in STAGES:
        watch(name)
    return counted


@pytest.fixture(scope="module")
def plans(finished) -> dict[str, dict[str, str]]:
    """Variant → layer → precision of the finished run, as they must be."""
    recipe, result = finished
    names = [layer.name for layer in find_layers(onnx.load(recipe.out / "model.float.onnx"))]
    uniform = {"float": "fp32", "16bit": "fp16", "int8": "int8"}
    uniform_plans = {variant: dict.fromkeys(names, precision) for variant, precision in uniform.items()}
    return uniform_plans | {"mixed": {name: precision.value for name, precision in result.plan.layers.items()}}


def changed(recipe: Recipe, **fields) -> Recipe:
    return Recipe.model_validate(recipe.model_dump() | fields)


def rank(recipe: Recipe) -> Sensitivity:
    """The stages up to the ranking."""
    run = open_run(recipe)
    return rank_stage(run, calibrate_stage(run))


class TestScorecard:
    def test_it_is_what_lies_in_the_folder(self, finished):
        recipe, result = finished
        assert Scorecard.read(recipe.out / "scorecard.json") == result.scorecard
        assert result.out == recipe.out
        assert [row.variant for row in result.scorecard.rows] == VARIANTS

    def test_precisions_and_shares_by_hand(self, finished, plans):
        recipe, result = finished
        macs = {layer.name: layer.macs for layer in find_layers(onnx.load(recipe.out / "model.float.onnx"))}
        for row in result.scorecard.rows:
            plan = plans[row.variant]
            wide = [name for name, precision in plan.items() if precision == "fp16"]
            assert row.precisions == Counter(plan.values())
            assert sum(row.precisions.values()) == row.layers_total == len(macs) == len(plan)
            assert row.layers_16bit == len(wide)
            assert row.macs_16bit_share == pytest.approx(sum(macs[name] for name in wide) / sum(macs.values()))
            assert row.weights_bits == min(BITS[precision][0] for precision in plan.values())
            assert row.activation_bits == min(BITS[precision][1] for precision in plan.values())
            bops = sum(macs[name] * BITS[precision][0] * BITS[precision][1] for name, precision in plan.items())
            assert row.bops_g == pytest.approx(bops / 1e9)
            # The decode tail multiplies too: a little more than the layers alone.
            assert 1 <= row.gmacs * 1e9 / sum(macs.values()) < 1.1

    def test_the_mixed_plan_spends_its_budget_and_no_more(self, finished):
        _, result = finished
        row = result.scorecard.row("mixed")
        assert row.layers_16bit == int(0.3 * row.layers_total)
        assert set(row.precisions) == {"fp16", "int8"}

    def test_what_is_said_of_a_file_is_so(self, finished, plans):
        recipe, result = finished
        for row in result.scorecard.rows:
            model = onnx.load(recipe.out / row.file)
            view = GraphView(model)
            assert row.size_mb == (recipe.out / row.file).stat().st_size / 1e6
            weights = {n.name.split("/")[0]: view.elem_type(n.input[1]) for n in view.nodes if n.name in plans["float"]}
            for name, precision in plans[row.variant].items():
                expected = {"fp16": onnx.TensorProto.FLOAT16}.get(precision, onnx.TensorProto.FLOAT)
                assert weights[name] in (expected, onnx.TensorProto.UNDEFINED)
                stored = view.initializer(f"{name}/{name}.weight/quantized")
                assert (stored is not None) == (precision == "int8")

    def test_retention_and_agreement_are_against_float(self, finished):
        _, result = finished
        floating = result.scorecard.row("float")
        assert floating.agreement == 100.0
        for row in result.scorecard.rows:
            assert 0 < row.agreement <= 100
            if floating.ap:
                assert row.retention == pytest.approx(row.ap / floating.ap, abs=1e-3)
            else:
                assert row.retention is None
            assert row.accuracy_on == "ort-cpu"
        assert result.scorecard.row("16bit").agreement > result.scorecard.row("int8").agreement

    def test_latency_is_measured_on_what_is_scored(self, finished):
        _, result = finished
        latencies = [row.latency for row in result.scorecard.rows]
        assert all(each.measured and each.target == "ort-cpu" and each.p50_ms > 0 for each in latencies)
        assert [each.ratio for each in latencies] == pytest.approx(
            [each.p50_ms / latencies[0].p50_ms for each in latencies], rel=0.02
        )
        for each in latencies:
            assert each.conditions["threads"] == each.conditions["batch"] == 1
            assert each.conditions["inputs"] == "file"
            assert each.conditions["input_shapes"] == {"images": [1, 3, 64, 64]}
        assert any("fp16 layers cost float time" in note for note in result.scorecard.notes)

    def test_nothing_in_it_names_this_machine_or_its_folders(self, finished):
        recipe, _ = finished
        for name in ("scorecard.json", "sensitivity.json", "plan.yaml", ".stages/latency.json"):
            text = (recipe.out / name).read_text()
            for private in (recipe.out, recipe.model.parent, recipe.data, Path.home(), Path.cwd()):
                assert str(private) not in text
            assert not re.search(r'"(/|~|[A-Za-z]:\\\\)[^"]*"', text)
            assert not platform.node() or not re.search(rf"\b{re.escape(platform.node())}\b", text)

    def test_without_confident_people_there_is_no_agreement(self, tmp_path, tiny_pose_model, data):
        model = tiny_pose_model("relu")
        for tensor in model.graph.initializer:
            if re.fullmatch(r"head\.score\.\d\.1\.bias", tensor.name):
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) - 10, tensor.name))
        onnx.save(model, tmp_path / "unsure.onnx")
        result = quantize(Recipe(model=tmp_path / "unsure.onnx", data=data, out=tmp_path / "out", runs=0))
        assert [row.agreement for row in result.scorecard.rows] == [None] * 3
        assert all(row.ap is not None for row in result.scorecard.rows)

    def test_runs_0_gives_no_latency_and_no_note_on_it(self, again, calls):
        scorecard = quantize(again).scorecard
        assert [row.latency for row in scorecard.rows] == [None] * 4
        assert not any("fp16 layers cost float time" in note for note in scorecard.notes)
        assert calls == {}

    def test_a_target_that_is_not_here_has_no_latency_but_a_note(self, again, calls):
        scorecard = quantize(changed(again, target="tensorrt", runs=10)).scorecard
        assert [row.latency for row in scorecard.rows] == [None] * 4
        assert {row.accuracy_on for row in scorecard.rows} == {"ort-cpu (simulating the target)"}
        assert "Target tensorrt does not run here" in " ".join(scorecard.notes)
        assert calls["measure_latency"] == 0
        # Simulated, ONNX Runtime runs without integer kernels: none of the figures are those of ort-cpu.
        assert calls["predict_set"] == 4


class TestReuse:
    def test_everything(self, again, calls, finished):
        result = quantize(again)
        assert calls == {}
        without = {"latency"}
        rows = [row.model_dump(exclude=without) for row in result.scorecard.rows]
        assert rows == [row.model_dump(exclude=without) for row in finished[1].scorecard.rows]

    @pytest.mark.parametrize("fields", [{"mixed": 0.6}, {"mixed_by": "macs"}, {"mixed": 0.0}], ids=str)
    def test_another_budget_reuses_calibration_and_ranking(self, again, calls, fields, finished):
        result = quantize(changed(again, **fields))
        assert result.plan.layers != finished[1].plan.layers
        assert calls == {"predict_set": 1}
        assert PrecisionPlan.read(again.out / "plan.yaml") == result.plan
        row = result.scorecard.row("mixed")
        spent = row.macs_16bit_share if "mixed_by" in fields else row.layers_16bit / row.layers_total
        assert spent <= fields.get("mixed", 0.3)

    def test_other_ranges_reuse_the_statistics(self, again, calls):
        before = (again.out / "model.int8.onnx").read_bytes()
        quantize(changed(again, ranges="min-max"))
        assert calls["calibrate"] == 0
        assert calls["analyse_sensitivity"] == 1
        assert calls["predict_set"] >= 1
        assert (again.out / "model.int8.onnx").read_bytes() != before

    def test_another_metric_ranks_again_and_calibrates_not(self, again, calls):
        assert rank(changed(again, metric="sqnr")).metric == "sqnr"
        assert (calls["calibrate"], calls["analyse_sensitivity"]) == (0, 1)

    def test_ap_needs_labels_that_are_not_those_of_val(self, again, calls):
        with pytest.raises(UsageError, match="the metric ap needs labelled photos"):
            rank(changed(again, metric="ap"))
        assert not calls

    def test_ap_ranks_on_the_labelled_calibration_photos_and_again_with_other_labels(
        self, again, calls, labelled_calibration
    ):
        recipe = changed(again, metric="ap", data=labelled_calibration)
        first, _ = rank(recipe), rank(recipe)
        assert (first.metric, first.part, first.images, calls["analyse_sensitivity"]) == ("ap", "calib", 2, 1)
        path = labelled_calibration / "calib.json"
        path.write_text(path.read_text().replace('"area": 1200.0', '"area": 1300.0'))
        rank(recipe)
        assert calls["analyse_sensitivity"] == 2

    def test_fisher_ranks_the_layers_for_the_plan(self, again, calls):
        pytest.importorskip("torch")
        result = quantize(changed(again, metric="fisher"))
        assert result.sensitivity.metric == "fisher"
        assert result.plan.made_by.startswith("fisher sensitivity on 2 photos")
        assert (calls["calibrate"], calls["analyse_sensitivity"]) == (0, 1)

    def test_fewer_photos_to_rank_on_rank_again(self, again, calls):
        assert rank(changed(again, sensitivity_images=1)).images == 1
        assert (calls["calibrate"], calls["analyse_sensitivity"]) == (0, 1)

    def test_more_photos_to_rank_on_than_there_are_are_all_of_them(self, again, calls):
        for count in (3, 99):
            assert rank(changed(again, sensitivity_images=count)).images == 3
        assert calls["analyse_sensitivity"] == 1

    def test_other_calibration_photos_calibrate_again_and_back_again_does_not(self, again, calls):
        rank(changed(again, calibration_images=2))
        assert (calls["calibrate"], calls["analyse_sensitivity"]) == (1, 1)
        assert len(list((again.out / "calib").glob("*.npz"))) == 2
        calibrate_stage(open_run(again))
        assert calls["calibrate"] == 1

    def test_damaged_statistics_are_made_again(self, again, calls):
        (statistics,) = (again.out / "calib").glob("*.npz")
        content = statistics.read_bytes()
        statistics.write_bytes(content[: len(content) // 2])
        quantize(again)
        assert calls == {"calibrate": 1}

    def test_fewer_photos_to_measure_on_are_measured_again(self, again, calls):
        assert quantize(changed(again, images=2)).scorecard.data.images == 2
        assert calls == {"predict_set": 4}

    def test_another_release_of_the_runtime_evaluates_again(self, again, calls, monkeypatch):
        here = pipeline.capture_environment()
        newer = here.model_copy(update={"packages": here.packages | {"onnxruntime": "99.0.0"}})
        monkeypatch.setattr(pipeline, "capture_environment", lambda: newer)
        quantize(again)
        assert calls == {"predict_set": 4}

    def test_latency_is_measured_anew_for_other_runs_threads_and_networks_alone(self, again, calls, monkeypatch):
        figures = pipeline.LatencyFigures.model_validate_json(
            '{"target": "ort-cpu", "measured": true, "device": "d", "runtime": "r", "version": "v", '
            '"p50_ms": 1, "p90_ms": 1, "p99_ms": 1, "images_per_second": 1}'
        )
        measured = []

        def measure(networks, **options):
            measured.append((list(networks), options["runs"], options["threads"], np.load(options["feeds_path"]).shape))
            return dict.fromkeys(networks)

        monkeypatch.setattr(pipeline, "measure_latency", measure)
        monkeypatch.setattr(pipeline, "latency_figures", lambda _: figures)
        # With 10 runs it was measured when the run was finished.
        assert quantize(changed(again, runs=10)).scorecard.row("mixed").latency != figures
        assert measured == []
        for fields in ({"runs": 20}, {"runs": 20, "mixed": 0.6}, {"runs": 20, "mixed": None}):
            assert quantize(changed(again, **fields)).scorecard.row("int8").latency == figures
        shape = (3, 3, 64, 64)
        assert measured == [(VARIANTS, 20, 1, shape)] * 2 + [(VARIANTS[:3], 20, 1, shape)]


class TestPlan:
    def edit(self, recipe: Recipe) -> str:
        """Move the first layer of plan.yaml to fp32 by hand, with a comment."""
        path = recipe.out / "plan.yaml"
        document = yaml.safe_load(path.read_text())
        document["layers"][next(iter(document["layers"]))] = "fp32"
        text = "# mine: the stem stays in float\n" + yaml.safe_dump(document, sort_keys=False)
        path.write_text(text)
        return text

    @pytest.mark.parametrize("fields", [{"mixed": 0.3}, {"mixed": 0.5}], ids=["same budget", "another"])
    def test_an_edited_one_is_never_overwritten(self, again, calls, fields):
        text = self.edit(again)
        scorecard = (again.out / "scorecard.json").read_bytes()
        with pytest.raises(UsageError, match="was written or edited by hand, and this run would replace it"):
            quantize(changed(again, **fields))
        assert (again.out / "plan.yaml").read_text() == text
        assert (again.out / "scorecard.json").read_bytes() == scorecard
        assert calls == {}

    def test_an_edited_one_is_applied_and_its_text_untouched(self, again, calls):
        text = self.edit(again)
        plan_file = again.out / "plan.yaml"
        for _ in range(2):
            result = quantize(changed(again, mixed=None, plan=plan_file))
            assert plan_file.read_text() == text
        assert result.scorecard.row("mixed").precisions["fp32"] == 1
        assert result.sensitivity is None
        assert calls == {"predict_set": 1}
        # It is still the user's own.
        with pytest.raises(UsageError, match="edited by hand"):
            quantize(again)

    def test_one_from_elsewhere_is_copied_and_may_be_replaced_later(self, again, tmp_path):
        text = self.edit(again)
        elsewhere = tmp_path / "mine.yaml"
        (again.out / "plan.yaml").replace(elsewhere)
        result = quantize(changed(again, mixed=None, plan=elsewhere))
        assert PrecisionPlan.read(again.out / "plan.yaml") == PrecisionPlan.read(elsewhere) == result.plan
        assert elsewhere.read_text() == text
        assert quantize(again).scorecard.row("mixed").precisions.get("fp32") is None

    def test_without_a_budget_the_old_plan_stays_and_no_mixed_network_is_scored(self, again, calls):
        before = (again.out / "plan.yaml").read_bytes()
        result = quantize(changed(again, mixed=None))
        assert (result.plan, result.sensitivity) == (None, None)
        assert [row.variant for row in result.scorecard.rows] == VARIANTS[:3]
        assert (again.out / "plan.yaml").read_bytes() == before
        assert calls == {}


class TestByLatency:
    def test_layers_are_timed_and_the_budget_is_one_of_time(self, again, calls, monkeypatch):
        times = {}

        def timed(wide_model, int8_model, layers, feed, threads, node_times=None):
            types = [{tensor.data_type for tensor in model.graph.initializer} for model in (wide_model, int8_model)]
            assert onnx.TensorProto.FLOAT16 in types[0] - types[1]
            assert onnx.TensorProto.INT8 in types[1] - types[0]
            times.update({name: float(place) for place, name in enumerate(sorted(layers), start=1)})
            calls["uniform_times"] += 1
            return UniformTimes(times, dict.fromkeys(layers, 0.0))

        monkeypatch.setattr(ranked_times, "uniform_times", timed)
        result = quantize(changed(again, mixed_by="latency"))
        assert {row.layer: row.added_ms for row in result.sensitivity.layers} == times
        spent = sum(times[name] for name in result.plan.layers_16bit)
        assert 0 < spent <= 0.3 * sum(times.values())
        assert "at most 0.3 of the latency at 16 bit" in result.plan.made_by
        # Another share of the time asks for no new measurement, another number of threads does.
        rank(changed(again, mixed_by="latency", mixed=0.5))
        assert calls["uniform_times"] == 1
        rank(changed(again, mixed_by="latency", threads=2))
        assert calls["uniform_times"] == 2

    def test_with_real_times(self, again, calls):
        result = quantize(changed(again, mixed_by="latency"))
        rows = Sensitivity.read(again.out / "sensitivity.json").layers
        assert all(row.added_ms is not None and np.isfinite(row.added_ms) for row in rows)
        added = {row.layer: row.added_ms for row in rows}
        limit = 0.3 * sum(max(ms, 0.0) for ms in added.values())
        wide = result.plan.layers_16bit
        conversions = PlanMaker(open_run(changed(again, mixed_by="latency")), result.sensitivity).conversions(
            result.plan
        )
        assert sum(added[name] for name in wide) + conversions <= limit + 1e-9
        assert calls["uniform_times"] == 1

    def test_borders_between_precisions_are_timed_and_count(self, again, monkeypatch):
        def timed(model, network_with, uniform, feed, threads):
            types = {tensor.data_type for tensor in network_with(names[:1]).graph.initializer}
            assert {onnx.TensorProto.INT8, onnx.TensorProto.FLOAT16} <= types
            return BorderTimes(dict.fromkeys(names, 1000000.0), dict.fromkeys(names, 1000000.0))

        names = [layer.name for layer in find_layers(onnx.load(again.out / "model.float.onnx"))]
        monkeypatch.setattr(ranked_times, "border_times", timed)
        result = quantize(changed(again, mixed_by="latency"))
        assert {(row.narrowing_ms, row.widening_ms) for row in result.sensitivity.layers} == {(1e6, 1e6)}
        # No border can be paid for: all at 8 bit, or what is not connected to anything at 8.
        assert PlanMaker(open_run(changed(again, mixed_by="latency")), result.sensitivity).conversions(result.plan) == 0

    def test_a_photo_that_is_gone_is_passed_over(self, again, data, monkeypatch, tmp_path):
        copy = tmp_path / "people"
        shutil.copytree(data, copy)
        seen = []

        def timed(wide_model, int8_model, layers, feed, threads, node_times=None):
            seen.append(feed["images"].shape)
            return UniformTimes(*(dict.fromkeys(layers, each) for each in (2.0, 1.0)))

        def vanish(*arguments, **options):
            (copy / "calib" / "11.png").unlink()
            return original(*arguments, **options)

        original = pipeline.analyse_sensitivity
        monkeypatch.setattr(pipeline, "analyse_sensitivity", vanish)
        monkeypatch.setattr(ranked_times, "uniform_times", timed)
        rank(changed(again, data=copy, mixed_by="latency"))
        assert seen == [(1, 3, 64, 64)]


def test_16_bit_integers_as_the_wide_kind(again):
    result = quantize(changed(again, wide="int16"))
    rows = {row.variant: row for row in result.scorecard.rows}
    assert set(rows["16bit"].precisions) == {Precision.INT16.value}
    assert set(rows["mixed"].precisions) == {"int16", "int8"}
    assert (rows["16bit"].weights_bits, rows["16bit"].activation_bits) == (8, 16)


def test_progress_tells_every_stage_in_order(again, tmp_path):
    seen = []
    quantize(changed(again, out=tmp_path / "fresh"), lambda *each: seen.append(each))
    stages = list(dict.fromkeys(stage for stage, _, _ in seen))
    assert stages == [
        "reading photos", "calibrating", "ranking layers", "quantizing", *(f"evaluating {v}" for v in VARIANTS),
        "scoring",
    ]  # fmt: skip
    for stage in stages:
        steps = [(done, total) for name, done, total in seen if name == stage]
        assert [done for done, _ in steps] == sorted({done for done, _ in steps})
        assert len({total for _, total in steps}) == 1
        assert steps[-1][0] == steps[-1][1]


def test_photos_that_look_whole_and_cannot_be_decoded_are_listed(network, make_data_set, tmp_path):
    data = make_data_set(tmp_path / "people")
    photo = data / "val" / "2.png"
    content = bytearray(photo.read_bytes())
    content[16:24] = b"\xff" * 8  # a size that no decoder takes, between a right signature and a right end
    photo.write_bytes(content)
    result = quantize(Recipe(model=network, data=data, out=tmp_path / "out", runs=0, threads=1))
    assert [skipped.path.name for skipped in result.skipped] == ["2.png"]
    assert (result.scorecard.data.images, result.scorecard.data.skipped) == (3, 1)


class TestFineTuning:
    FIELDS = {"qat": True, "qat_images": 8, "qat_lr": 1e-4, "threads": 1}  # noqa: RUF012

    @pytest.fixture
    def finetunings(self, monkeypatch) -> list[str]:
        """Folders of the fine-tunings that are made, from here on."""
        pytest.importorskip("torch")
        from qtoolkit.quantization import qat

        made, work = [], qat.finetune_quantized

        def counting(*arguments):
            made.append(arguments[5].name.partition("-qat")[0])
            return work(*arguments)

        def nothing_to_judge_by(run, quantizer):
            raise UsageError("plans cannot be compared on these photos")

        monkeypatch.setattr(qat, "finetune_quantized", counting)
        monkeypatch.setattr("qtoolkit.quantization.plan_judge.judge_of", nothing_to_judge_by)
        return made

    def test_both_8_bit_networks_get_a_row_and_a_file_of_the_same_build(self, again, finetunings, calls):
        result = quantize(changed(again, **self.FIELDS))
        assert finetunings == ["int8", "mixed"]
        assert calls == {"predict_set": 2}
        rows = {row.variant: row for row in result.scorecard.rows}
        assert list(rows) == [*VARIANTS, "int8-qat", "mixed-qat"]
        for variant in ("int8", "mixed"):
            before, after = rows[variant], rows[f"{variant}-qat"]
            assert after.file == f"model.{variant}-qat.onnx"
            assert after.sha256 != before.sha256
            assert (after.precisions, after.bops_g) == (before.precisions, before.bops_g)
            assert after.size_mb == pytest.approx(before.size_mb, rel=1e-3)
            networks = [onnx.load(again.out / row.file).graph for row in (before, after)]
            names = [[(node.op_type, node.name) for node in network.node] for network in networks]
            assert names[0] == names[1]
        assert "fine-tuned without labels on 3 photos, seeing 8 changed views" in " ".join(result.scorecard.notes)
        assert result.scorecard.settings["qat_images"] == 8

    @pytest.mark.parametrize("better", [False, True])
    def test_what_is_not_better_than_ptq_is_not_handed_out(self, again, finetunings, monkeypatch, better):
        class Judge:
            def prefers(self, model, other, by_labels):
                assert model != other and not by_labels
                return better

        monkeypatch.setattr(
            "qtoolkit.quantization.plan_judge.judge_of", lambda run, quantizer: (Judge(), None, "calib")
        )
        result = quantize(changed(again, **self.FIELDS))
        rows = {row.variant: row for row in result.scorecard.rows}
        assert finetunings == ["int8", "mixed"]
        stays = not better
        notes = " ".join(result.scorecard.notes)
        for variant in ("int8", "mixed"):
            assert (rows[f"{variant}-qat"].sha256 == rows[variant].sha256) == stays
            assert (f"Fine-tuning did not help {variant}: its -qat network is that of PTQ." in notes) == stays

    def test_it_is_not_made_twice_and_other_options_make_it_anew(self, again, finetunings):
        first = quantize(changed(again, **self.FIELDS)).scorecard
        assert quantize(changed(again, **self.FIELDS)).scorecard.rows == first.rows
        assert len(finetunings) == 2
        quantize(changed(again, **self.FIELDS, seed=3))
        quantize(changed(again, **(self.FIELDS | {"qat_lr": 1e-3})))
        assert len(finetunings) == 6

    def test_a_stopped_one_goes_on(self, again, finetunings, monkeypatch):
        from qtoolkit.training import fine_tuning

        fields = self.FIELDS | {"qat_images": 24}
        whole = quantize(changed(again, **fields))
        expected = (again.out / "model.int8-qat.onnx").read_bytes()
        for path in (again.out / ".stages").glob("finetune-*.json"):
            path.unlink()
        shutil.rmtree(again.out / ".stages" / "qat")
        (again.out / "model.int8-qat.onnx").unlink()
        starts: list[int] = []
        run = fine_tuning.FineTuning.run

        def watched(self, settle):
            starts.append(self._step)
            self._options = self._options.model_copy(update={"save_every_minutes": 1e-9})
            return run(self, settle)

        monkeypatch.setattr(fine_tuning.FineTuning, "run", watched)

        def stop(stage, done, total):
            if (stage, done) == ("fine-tuning int8-qat", 16):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            quantize(changed(again, **fields), stop)
        assert not (again.out / "model.int8-qat.onnx").exists()
        assert quantize(changed(again, **fields)).scorecard.rows == whole.scorecard.rows
        assert (again.out / "model.int8-qat.onnx").read_bytes() == expected
        assert starts == [0, 1, 0]

    def test_without_it_nothing_is_said_of_it(self, finished):
        _, result = finished
        assert not {"qat", "qat_images", "qat_lr", "qat_device", "unlabeled", "labelled"} & set(
            result.scorecard.settings
        )

    def test_photos_without_it_are_refused(self, again):
        with pytest.raises(UsageError, match="--unlabeled together with --qat"):
            changed(again, unlabeled=Path("photos"))
        with pytest.raises(UsageError, match="--labelled together with --qat"):
            changed(again, labelled=Path("photos"))
        with pytest.raises(UsageError, match="one of --labelled and --unlabeled"):
            changed(again, qat=True, labelled=Path("photos"), unlabeled=Path("photos"))

    def test_labels_for_a_network_that_is_not_ours_are_refused_before_any_work(self, again, data, tmp_path):
        recipe = changed(again, **self.FIELDS, labelled=data, out=tmp_path / "new")
        with pytest.raises(UsageError, match="labels can teach only the networks"):
            open_run(recipe)
        assert not recipe.out.exists()

    def test_photos_to_learn_from_that_are_evaluated_on_are_refused_before_any_work(self, again, data, tmp_path):
        recipe = changed(again, **self.FIELDS, unlabeled=data / "val", out=tmp_path / "new")
        with pytest.raises(DataSetError, match="evaluation images too"):
            open_run(recipe)
        assert not recipe.out.exists()
