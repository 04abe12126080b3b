from __future__ import annotations

import json
import shutil
from collections import Counter
from functools import partial
from pathlib import Path

import onnx
import pytest
import yaml
from click.testing import Result

from qtoolkit import pipeline
from qtoolkit.artifacts.scorecard import Scorecard
from qtoolkit.graph import default_network

WRITTEN = {
    "model.float.onnx",
    "model.16bit.onnx",
    "model.int8.onnx",
    "model.mixed.onnx",
    "plan.yaml",
    "sensitivity.json",
    "scorecard.json",
    "report.md",
    "report.html",
}
VARIANTS = ["float", "16bit", "int8", "mixed"]
STAGES = ("calibrate", "analyse_sensitivity", "predict_set", "measure_latency")


@pytest.fixture
def calls(monkeypatch) -> Counter[str]:
    """How often the pipeline does each piece of work, from here on."""
    counted: Counter[str] = Counter()

    def watch(name: str) -> None:
        work = getattr(pipeline, name)

        def counting(*arguments, **options):
            counted[name] += 1
            return work(*arguments, **options)

        monkeypatch.setattr(pipeline, name, counting)

    for name in STAGES:
        watch(name)
    quantize = pipeline.Quantizer.quantize

    def quantizing(self, plan):
        counted["quantize"] += 1
        return quantize(self, plan)

    monkeypatch.setattr(pipeline.Quantizer, "quantize", quantizing)
    return counted


@pytest.fixture
def run_copy(finished, tmp_path) -> tuple[Path, Path]:
    """(data set, output folder) of a finished run, to go on in; file times are kept."""
    data, out, _ = finished
    shutil.copytree(out, tmp_path / "out")
    return data, tmp_path / "out"


def _times_ns(folder: Path, pattern: str = "model.*.onnx") -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob(pattern)}


class TestWholeRun:
    def test_it_is_good_and_writes_every_file(self, finished):
        _, out, result = finished
        assert result.exit_code == 0
        assert {path.name for path in out.iterdir()} >= WRITTEN
        assert all((out / name).stat().st_size > 100 for name in WRITTEN)

    def test_networks_are_valid_and_smaller_by_bits(self, finished):
        _, out, _ = finished
        sizes = {}
        for variant in VARIANTS:
            onnx.checker.check_model(onnx.load(out / f"model.{variant}.onnx"))
            sizes[variant] = (out / f"model.{variant}.onnx").stat().st_size
        assert sizes["16bit"] < sizes["float"]

    def test_scorecard_has_a_row_for_each_variant(self, finished):
        _, out, _ = finished
        scorecard = Scorecard.read(out / "scorecard.json")
        assert [row.variant for row in scorecard.rows] == VARIANTS
        assert (scorecard.data.images, scorecard.data.calibration_images) == (4, 3)
        assert all(row.ap is not None and 0 <= row.ap <= 100 for row in scorecard.rows)

    def test_table_plan_and_places_on_stdout(self, finished):
        _, out, result = finished
        assert "tiny.onnx on ort-cpu" in result.stdout
        assert all(f"\n{variant} " in result.stdout for variant in VARIANTS)
        plan = yaml.safe_load((out / "plan.yaml").read_text())
        wide = [name for name, precision in plan["layers"].items() if precision == "fp16"]
        line = f"plan: {len(wide)} of {len(plan['layers'])} layers at 16 bit (fp16); {out / 'plan.yaml'}"
        assert line in result.stdout.splitlines()
        assert 0 < len(wide) <= 0.3 * len(plan["layers"])
        assert f"report: {out / 'report.md'}, {out / 'report.html'}" in result.stdout

    def test_stages_on_stderr_once_each(self, finished):
        lines = finished[2].stderr.splitlines()
        assert len(lines) == len(set(lines))
        assert "calibrating (3) …" in lines
        assert "evaluating int8 (4) …" in lines
        assert not any("could not be used" in line for line in lines)


class TestAgain:
    def test_the_same_command_does_no_work_twice(self, run_copy, network, qtool, quick, calls):
        data, out = run_copy
        before = (_times_ns(out, "model.[!f]*.onnx"), (out / "scorecard.json").read_text())
        result = qtool("quantize", network, "--data", data, "--mixed", "0.3", "--out", out, *quick)
        assert result.exit_code == 0
        assert calls == {}
        assert _times_ns(out, "model.[!f]*.onnx") == before[0]
        rows = [json.loads(text)["rows"] for text in (before[1], (out / "scorecard.json").read_text())]
        assert rows[0] == rows[1]

    def test_json_is_the_whole_result_and_nothing_else(self, run_copy, network, qtool, quick):
        data, out = run_copy
        result = qtool("quantize", network, "--data", data, "--mixed", "0.3", "--out", out, "--json", "--quiet", *quick)
        document = json.loads(result.stdout)
        assert set(document) == {"out", "scorecard", "plan", "skipped"}
        assert document["out"] == str(out)
        assert document["scorecard"] == json.loads((out / "scorecard.json").read_text())
        assert document["plan"] == yaml.safe_load((out / "plan.yaml").read_text())
        assert document["skipped"] == []
        assert result.stderr == ""

    def test_a_lost_network_is_made_again_and_is_the_same(self, run_copy, network, qtool, quick, calls):
        data, out = run_copy
        content = (out / "model.int8.onnx").read_bytes()
        (out / "model.int8.onnx").unlink()
        assert qtool("quantize", network, "--data", data, "--mixed", "0.3", "--out", out, *quick).exit_code == 0
        assert calls == {"quantize": 1}
        assert (out / "model.int8.onnx").read_bytes() == content

    def test_other_share_ranks_nothing_again(self, run_copy, network, qtool, quick, calls):
        data, out = run_copy
        assert qtool("quantize", network, "--data", data, "--mixed", "0.6", "--out", out, *quick).exit_code == 0
        assert calls == {"quantize": 1, "predict_set": 1}

    def test_a_changed_photo_is_evaluated_again(self, run_copy, network, qtool, quick, calls, make_data_set, tmp_path):
        _, out = run_copy
        data = make_data_set(tmp_path / "changed")
        shutil.copy(data / "calib" / "11.png", data / "val" / "1.png")
        (data / "calib" / "11.png").unlink()
        command = ("quantize", network, "--data", data, "--mixed", "0.3", "--out", out, *quick)
        assert qtool(*command).exit_code == 0
        assert calls["predict_set"] == 4
        assert calls["calibrate"] == 1


class TestStopped:
    @pytest.mark.parametrize("how", [KeyboardInterrupt, ZeroDivisionError], ids=["ctrl-c", "bug"])
    def test_it_goes_on_where_it_stopped(self, how, network, people, tmp_path, qtool, quick, calls, monkeypatch):
        command = ("quantize", network, "--data", people, "--mixed", "0.3", "--out", tmp_path / "out", *quick)
        evaluate = pipeline.predict_set

        def stopping(*arguments, **options):
            if calls["predict_set"] == 2:
                raise how
            return evaluate(*arguments, **options)

        monkeypatch.setattr(pipeline, "predict_set", stopping)
        if how is KeyboardInterrupt:
            result = qtool(*command)
            assert result.exit_code == 130
            assert "qtool: stopped; run the same command again to go on" in result.stderr
        else:
            with pytest.raises(how):
                qtool(*command)
        assert calls == {"calibrate": 1, "analyse_sensitivity": 1, "quantize": 3, "predict_set": 2}
        assert not (tmp_path / "out" / "scorecard.json").exists()

        calls.clear()
        monkeypatch.setattr(pipeline, "predict_set", evaluate)
        assert qtool(*command).exit_code == 0
        # int8 and mixed only: float and 16bit were done.
        assert calls == {"predict_set": 2}
        assert (tmp_path / "out" / "scorecard.json").exists()
        assert not list((tmp_path / "out").rglob("*.tmp"))


class TestVariations:
    def test_without_mixed_nothing_is_ranked(self, network, people, tmp_path, qtool, quick, calls):
        out = tmp_path / "out"
        result = qtool("quantize", network, "--data", people, "--out", out, "--json", *quick)
        document = json.loads(result.stdout)
        assert [row["variant"] for row in document["scorecard"]["rows"]] == VARIANTS[:3]
        assert document["plan"] is None
        assert calls["analyse_sensitivity"] == 0
        assert not (out / "plan.yaml").exists()

    def test_a_plan_of_ones_own_is_applied(self, run_copy, network, tmp_path, qtool, quick, calls):
        data, out = run_copy
        document = yaml.safe_load((out / "plan.yaml").read_text())
        document["layers"] = dict.fromkeys(document["layers"], "int8") | {next(iter(document["layers"])): "fp16"}
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(document))
        result = qtool("quantize", network, "--data", data, "--plan", tmp_path / "mine.yaml", "--out", out, *quick)
        assert result.exit_code == 0
        assert f"plan: 1 of {len(document['layers'])} layers at 16 bit (fp16)" in result.stdout
        assert calls["analyse_sensitivity"] == 0

    def test_out_is_runs_and_the_name_of_the_network(self, network, people, tmp_path, qtool, quick, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert qtool("quantize", network, "--data", people, *quick).exit_code == 0
        assert (tmp_path / "runs" / "tiny" / "scorecard.json").is_file()

    def test_latency_is_measured_and_has_its_conditions(self, run_copy, network, qtool, quick, monkeypatch):
        monkeypatch.setattr(pipeline, "measure_latency", partial(pipeline.measure_latency, warmup_s=0.02))
        data, out = run_copy
        options = [*quick, "--runs", "10"]
        result = qtool("quantize", network, "--data", data, "--mixed", "0.3", "--out", out, "--json", *options)
        latencies = [row["latency"] for row in json.loads(result.stdout)["scorecard"]["rows"]]
        assert all(each["measured"] and each["p50_ms"] > 0 for each in latencies)
        assert {each["conditions"]["threads"] for each in latencies} == {1}
        assert latencies[0]["ratio"] == 1.0


@pytest.fixture(scope="module")
def demo(tmp_path_factory, qtool) -> tuple[Path, Result]:
    """What `make demo` does, on few images and with no latency: (folder, result)."""
    root = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QTOOLKIT_CACHE", str(root / "cache"))
        command = ("quantize", "--mixed", "0.3", "--data", "synthetic:24@1", "--out", root / "out")
        return root / "out", qtool(*command, "--sensitivity-images", "1", "--runs", "0")


class TestDefaultNetwork:
    """The network that comes with the package, on rendered people."""

    def test_every_variant_and_every_file(self, demo):
        out, result = demo
        assert result.exit_code == 0, result.stderr
        assert {path.name for path in out.iterdir()} >= WRITTEN
        assert "yolopose_n6_relu_320.onnx on ort-cpu" in result.stdout
        assert all(f"\n{variant} " in result.stdout for variant in VARIANTS)

    def test_it_finds_the_people_at_every_precision(self, demo):
        scorecard = Scorecard.read(demo[0] / "scorecard.json")
        assert [row.variant for row in scorecard.rows] == VARIANTS
        assert (scorecard.data.images, scorecard.data.calibration_images) == (24, 24)
        ap = {row.variant: row.ap for row in scorecard.rows}
        # Most people are found; how exactly their limbs are placed is another matter (docs/DEFAULT_NETWORK.md).
        assert next(row.ap50 for row in scorecard.rows if row.variant == "float") > 50
        assert abs(ap["16bit"] - ap["float"]) < 2
        # Loose, for processors whose 8-bit sums saturate; but the same AP to the last digit would be the same network.
        assert 0.5 * ap["float"] < ap["int8"] != ap["float"]
        assert ap["mixed"] > 0.7 * ap["float"]
        agreement = {row.variant: row.agreement for row in scorecard.rows}
        # On so few people the mix may agree on one person less than 8 bit, by chance.
        assert min(agreement.values()) > 90 and max(agreement.values()) <= 100
        assert agreement["int8"] < agreement["16bit"]

    def test_fine_tuned_networks_get_rows_of_their_own(self, network, people, tmp_path, qtool, quick):
        pytest.importorskip("torch")
        photos = tmp_path / "photos"
        shutil.copytree(people / "calib", photos)
        options = ("--qat", "--unlabeled", photos, "--qat-images", 8, "--qat-lr", 1e-4)
        result = qtool("quantize", network, "--data", people, "--out", tmp_path / "out", *options, *quick)
        assert result.exit_code == 0
        assert "\nint8-qat " in result.stdout
        assert "model.int8-qat.onnx" in result.stdout
        assert "fine-tuning int8-qat" in result.stderr
        row = Scorecard.read(tmp_path / "out" / "scorecard.json").row("int8-qat")
        assert row.ap is not None
        report = (tmp_path / "out" / "report.md").read_text()
        assert "int8-qat" in report and str(tmp_path) not in report

    def test_a_device_that_is_not_there_is_refused_before_any_work(self, network, people, tmp_path, qtool):
        if pytest.importorskip("torch").cuda.is_available():
            pytest.skip("there is a CUDA device")
        result = qtool(
            "quantize", network, "--data", people, "--qat", "--qat-device", "cuda", "--out", tmp_path / "out"
        )
        assert result.exit_code == 4 and "no such CUDA device" in result.stderr
        assert not (tmp_path / "out").exists()

    def test_photos_to_fine_tune_on_without_a_fine_tuning(self, network, people, tmp_path, qtool):
        result = qtool("quantize", network, "--data", people, "--unlabeled", people, "--out", tmp_path / "out")
        assert result.exit_code == 2
        assert "expected: --unlabeled together with --qat" in result.stderr

    def test_a_network_without_data(self, network, tmp_path, qtool):
        result = qtool("quantize", network, "--out", tmp_path / "out")
        assert result.exit_code == 2
        assert "there is nothing to calibrate on and to evaluate on" in result.stderr
        assert "give --data DIR, or synthetic:300@1 for rendered people" in result.stderr
        assert not (tmp_path / "out").exists()

    def test_an_installation_without_the_network(self, people, tmp_path, qtool, monkeypatch):
        monkeypatch.setattr(default_network, "_FOLDER", tmp_path / "weights")
        result = qtool("quantize", "--data", people, "--out", tmp_path / "out")
        assert result.exit_code == 4
        assert "the default network is not there" in result.stderr
        assert not (tmp_path / "out").exists()


def test_best_effort_without_torch_is_refused_before_any_work(network, people, tmp_path, qtool, monkeypatch):
    monkeypatch.setattr("qtoolkit.cli.extras._is_there", lambda name: name != "torch")
    result = qtool("quantize", network, "--data", people, "--effort", "best", "--out", tmp_path / "out")
    assert result.exit_code == 4
    assert "needs torch" in result.stderr and "pip install" in result.stderr
    assert not (tmp_path / "out").exists()
