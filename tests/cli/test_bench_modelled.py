"""``qtool bench --device jetson``: modelled, marked, and refused for what is not known."""

from __future__ import annotations

import json

import pytest

from qtoolkit.bench.roofline import fitted_model


def test_a_table_of_modelled_latencies_is_marked(network, qtool):
    result = qtool(
        "bench", network, "--device", "jetson-agx-orin-64gb@30W", "--precision", "fp16", "--precision", "int8"
    )
    assert result.exit_code == 0, result.stderr
    rows = [line for line in result.stdout.splitlines() if line.startswith("tiny.onnx (")]
    assert [row.split("(")[1].split(")")[0] for row in rows] == ["fp16", "int8"]
    assert all("modelled" in row and "~" in row for row in rows)
    assert "latency modelled, not measured" in result.stdout
    assert "NVIDIA Jetson AGX Orin 64GB at 30W (8 SMs, 612 MHz, 204.8 GB/s)" in result.stdout
    assert "modelled, not measured: roofline model fitted on 30 published latencies" in result.stdout
    # 64 pixels: smaller than every network that the model was checked on.
    assert "Extrapolated" in result.stdout and "±?" in result.stdout


def test_json(network, finished, qtool):
    result = qtool("bench", network, "--device", "jetson", "--json")
    document = json.loads(result.stdout)
    (row,) = document["results"]
    latency = row["latency"]
    assert (latency["measured"], latency["error_band_pct"], latency["p99_ms"]) == (False, None, None)
    assert latency["conditions"]["device_key"] == "jetson-orin-nano-8gb-super@maxn"
    assert latency["conditions"]["layers"] == {"fp32": sum(latency["conditions"]["layers"].values())}
    assert "Extrapolated" in row["remarks"][0]
    assert document["model"]["held_out_mean_pct"] == fitted_model().held_out_mean_pct


@pytest.mark.parametrize("device", ["jetson-orin", "jetson-agx-orin-64gb@7w"])
def test_an_unknown_device_or_mode_lists_the_known_ones(device, network, qtool):
    result = qtool("bench", network, "--device", device)
    assert result.exit_code == 2
    assert "expected:" in result.stderr and "jetson-agx-orin-64gb" in result.stderr


def test_photos_are_refused(network, people, qtool):
    result = qtool("bench", network, "--device", "jetson", "--data", people)
    assert result.exit_code == 2
    assert "these options cannot be used with --device jetson" in result.stderr
    assert "found: --data" in result.stderr


def test_devices_are_listed_without_a_network(qtool):
    result = qtool("bench", "--list-devices")
    assert result.exit_code == 0
    for label in ("jetson-nano-4gb@10w", "jetson-orin-nano-8gb-super@15w", "jetson-agx-thor-t5000@maxn"):
        assert label in result.stdout
    assert "modelled, not measured" in result.stdout


def test_a_network_that_tensorrt_cannot_build_is_refused(tmp_path, network, quick, make_data_set, qtool):
    data, out = make_data_set(tmp_path / "people"), tmp_path / "out"
    made = qtool("quantize", network, "--data", data, "--wide", "int16", "--out", out, *quick)
    assert made.exit_code == 0, made.stderr
    result = qtool("bench", out / "model.16bit.onnx", "--device", "jetson")
    assert result.exit_code == 3
    assert "is in 16-bit integers, which TensorRT has not" in result.stderr


def test_an_open_size_is_fixed_by_input_size(dynamic_pose_model, tmp_path, qtool):
    (tmp_path / "open.onnx").write_bytes(dynamic_pose_model(activation="relu").SerializeToString())
    assert qtool("bench", tmp_path / "open.onnx", "--device", "jetson").exit_code == 3
    result = qtool("bench", tmp_path / "open.onnx", "--device", "jetson", "--input-size", "64x96")
    assert result.exit_code == 0, result.stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory, network, make_data_set, qtool, quick):
    root = tmp_path_factory.mktemp("tensorrt")
    data, out = make_data_set(root / "people"), root / "out"
    words = ("--target", "tensorrt", "--device", "jetson", "--mixed", "0.4", "--mixed-by", "latency")
    return out, qtool("quantize", network, "--data", data, *words, "--out", out, *quick)


def test_every_latency_of_the_scorecard_is_modelled(made):
    out, result = made
    assert result.exit_code == 0, result.stderr
    card = json.loads((out / "scorecard.json").read_text())
    assert [row["variant"] for row in card["rows"]] == ["float", "16bit", "int8", "mixed"]
    assert not any(row["latency"]["measured"] for row in card["rows"])
    times = {row["variant"]: row["latency"]["p50_ms"] for row in card["rows"]}
    assert times["int8"] <= times["mixed"] <= times["16bit"] < times["float"]
    assert any("modelled, not measured" in note for note in card["notes"])
    assert any("Extrapolated" in note for note in card["notes"])
    assert card["settings"]["device"] == "jetson"


def test_reports_carry_the_mark(made):
    out, _ = made
    assert "modelled" in (out / "report.md").read_text()
    assert 'title="modelled, not measured"' in (out / "report.html").read_text()


def test_the_ranking_holds_modelled_times(made):
    ranking = json.loads((made[0] / "sensitivity.json").read_text())
    assert all(row["added_ms"] is not None and row["added_ms"] >= 0 for row in ranking["layers"])


def test_another_device_ranks_anew_and_the_same_does_not(made, network, qtool, quick):
    out, _ = made
    data = out.parent / "people"
    before = (out / "sensitivity.json").stat().st_mtime_ns
    words = ("quantize", network, "--data", data, "--target", "tensorrt", "--mixed", "0.4", "--mixed-by", "latency")
    qtool(*words, "--device", "jetson", "--out", out, *quick)
    assert (out / "sensitivity.json").stat().st_mtime_ns == before
    qtool(*words, "--device", "jetson-agx-orin-64gb", "--out", out, *quick)
    assert (out / "sensitivity.json").stat().st_mtime_ns > before


def test_a_gpu_without_int8_takes_16_bit_and_says_so(made, network, tmp_path, qtool, quick):
    data = made[0].parent / "people"
    words = ("--target", "tensorrt", "--device", "jetson-nano-4gb", "--mixed", "0.0", "--mixed-by", "latency")
    result = qtool("quantize", network, "--data", data, *words, "--out", tmp_path / "out", *quick)
    assert result.exit_code == 0, result.stderr
    card = json.loads((tmp_path / "out" / "scorecard.json").read_text())
    assert any("has no int8" in note for note in card["notes"])
    assert any("take the 16-bit network" in note for note in card["notes"])
    mixed = next(row for row in card["rows"] if row["variant"] == "mixed")
    assert mixed["layers_16bit"] == mixed["layers_total"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--target", "ort-cpu", "--device", "jetson"), "target ort-cpu makes no networks for jetson"),
        (("--target", "tensorrt", "--device", "jetson-x"), "the device jetson-x is not known"),
        (("--target", "tensorrt", "--mixed", "0.3", "--mixed-by", "latency"), "with --device jetson"),
    ],
)
def test_what_does_not_go_together(words, message, network, people, tmp_path, qtool):
    result = qtool("quantize", network, "--data", people, *words, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.stderr
