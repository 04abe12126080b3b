"""Several variants in one run, each in a process of its own; the runners are of known duration."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qtoolkit.artifacts.files import sha256_file
from qtoolkit.bench import latency, worker_process
from qtoolkit.bench.latency import measure_latency
from qtoolkit.bench.worker_process import WorkerProcess
from qtoolkit.errors import ModelFileError, QtoolError, UsageError


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[str]]:
    """Every worker process that a test starts."""
    processes: list[subprocess.Popen[str]] = []
    start = subprocess.Popen

    def remember(*args: Any, **options: Any) -> subprocess.Popen[str]:
        processes.append(start(*args, **options))
        return processes[-1]

    monkeypatch.setattr(worker_process.subprocess, "Popen", remember)
    return processes


def lasting(tmp_path: Path, **seconds: float) -> dict[str, Path]:
    for name, duration in seconds.items():
        (tmp_path / name).write_text(str(duration))
    return {name: tmp_path / name for name in seconds}


def measure(variants: dict[str, Path], kind: str = "Timed", **options: Any) -> dict[str, latency.LatencyResult]:
    settings: dict[str, Any] = {"runs": 10, "warmup_s": 0.0, "timeout_s": 30.0, **options}
    return measure_latency(variants, backend=f"stand_ins:{kind}", **settings)


_ATTEMPTS = 4


def test_known_durations_come_out_right_to_2_percent(tmp_path: Path) -> None:
    variants = lasting(tmp_path, slow=0.01, fast=0.006)
    for _ in range(_ATTEMPTS):  # on a machine that others use as well, sleeping takes longer now and then
        found = measure(variants, runs=20)
        if abs(found["slow"].p50_ms - 10.0) < 0.2 and abs(found["fast"].p50_ms - 6.0) < 0.12:
            break
    assert list(found) == ["slow", "fast"]
    assert found["slow"].p50_ms == pytest.approx(10.0, rel=0.02)
    assert found["fast"].p50_ms == pytest.approx(6.0, rel=0.02)
    assert found["fast"].ratio == pytest.approx(0.6, rel=0.03)
    assert found["fast"].ratio_lo <= found["fast"].ratio <= found["fast"].ratio_hi
    assert (found["slow"].ratio, found["slow"].ratio_lo, found["slow"].ratio_hi) == (1.0, 1.0, 1.0)
    assert found["fast"].min_ms >= 6.0


def test_a_figure_carries_its_conditions(tmp_path: Path) -> None:
    variants = lasting(tmp_path, only=0.001)
    result = measure(variants, runs=23, block=4, threads=3, options={"note": "tuned"})["only"]
    assert (result.variant, result.target, result.runtime, result.version) == ("only", "timed", "sleep", "1")
    assert (result.provider, result.threads, result.options) == ("none", 3, {"note": "tuned"})
    assert (result.batch, result.input_size_wh, result.inputs) == (1, (6, 4), "seed 0")
    assert (result.count, result.block) == (24, 2)
    assert len(result.samples_ms) == 24 and len(result.block_medians_ms) == 12
    assert result.model_sha256 == sha256_file(variants["only"])
    assert result.warm_up_count >= 10
    assert result.measured is True and result.device


def test_turns_interleave_and_rotate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []
    ask = WorkerProcess.ask

    def remember(self: WorkerProcess, do: str, **parameters: Any) -> dict[str, Any]:
        if do == "run":
            asked.append((self.label, parameters["first"]))
        return ask(self, do, **parameters)

    monkeypatch.setattr(WorkerProcess, "ask", remember)
    steps: list[tuple[int, int]] = []
    measure(lasting(tmp_path, a=0.0, b=0.0), runs=20, progress=lambda done, total: steps.append((done, total)))
    assert asked[:6] == [("a", 0), ("b", 0), ("b", 2), ("a", 2), ("a", 4), ("b", 4)]
    assert len(asked) == 20
    assert steps == [(done, 20) for done in range(1, 21)]


def test_a_real_runtime_is_at_rest_while_the_other_variant_runs(
    tiny_pose_model: Callable[..., onnx.ModelProto], tmp_path: Path
) -> None:
    variants = {name: tmp_path / f"{name}.onnx" for name in ("silu", "relu")}
    for activation, path in variants.items():
        onnx.save(tiny_pose_model(activation=activation), path)
    for _ in range(_ATTEMPTS):
        found = measure_latency(variants, threads=2, runs=10, warmup_s=0.0, timeout_s=60.0)
        if max(result.idle_cpu_pct for result in found.values()) < 10.0:
            break
    for result in found.values():
        assert result.idle_cpu_pct < 10.0
        assert result.runtime == "onnxruntime" and result.threads == 2
        assert 0 < result.min_ms <= result.p50_ms <= result.p90_ms <= result.p99_ms


def test_inputs_from_a_file(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.zeros((3, 3, 4, 6), np.float32))
    found = measure(lasting(tmp_path, only=0.0), feeds_path=tmp_path / "images.npy")
    assert found["only"].inputs == "file"


def test_output_of_native_libraries_does_not_break_the_protocol(tmp_path: Path) -> None:
    assert measure(lasting(tmp_path, only=0.0), kind="Chatty")["only"].count == 10


def test_a_worker_that_dies_is_reported_with_its_last_words(
    tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    # The order rotates, so the second variant is the first to have its second turn.
    with pytest.raises(QtoolError, match=r"variant 'b' was lost: .* during 'run'") as caught:
        measure(lasting(tmp_path, a=0.0, b=0.0), kind="Dying", runs=100)
    assert caught.value.found == "exit code 7; out of luck"
    assert len(started) == 2 and all(process.poll() is not None for process in started)


def test_an_unexpected_exception_in_a_worker_is_reported(tmp_path: Path) -> None:
    with pytest.raises(QtoolError, match="ZeroDivisionError: by nothing"):
        measure(lasting(tmp_path, only=0.0), kind="Raising")


def test_a_worker_that_hangs_is_given_up_and_killed(tmp_path: Path, started: list[subprocess.Popen[str]]) -> None:
    begin = time.perf_counter()
    with pytest.raises(QtoolError, match=r"no answer to 'warm' in 1 s\n.*\n  found: still running"):
        measure(lasting(tmp_path, only=0.0), kind="Hanging", timeout_s=1.0)
    assert time.perf_counter() - begin < 10
    assert [process.poll() is not None for process in started] == [True]


def test_a_refused_network_keeps_its_error_and_names_the_variant(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_text("no network")
    with pytest.raises(ModelFileError, match=r"variant 'int8': ONNX Runtime cannot load") as caught:
        measure_latency({"int8": tmp_path / "broken.onnx"}, timeout_s=30.0)
    assert caught.value.found == "Protobuf parsing failed."


def test_workers_end_with_the_block_and_with_their_standard_input(
    tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    measure(lasting(tmp_path, a=0.0, b=0.0))
    assert [process.returncode for process in started] == [0, 0]


def test_an_interrupted_run_leaves_no_worker(tmp_path: Path, started: list[subprocess.Popen[str]]) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(lasting(tmp_path, a=0.0, b=0.0), progress=interrupt)
    assert all(process.poll() is not None for process in started)


def test_a_worker_does_not_import_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.version_info < (3, 11):
        pytest.skip("Python 3.10 always puts the working folder first")
    (tmp_path / "numpy.py").write_text("raise SystemExit('the wrong numpy')")
    monkeypatch.chdir(tmp_path)
    assert measure(lasting(tmp_path, only=0.0))["only"].count == 10


@pytest.mark.parametrize(
    "changed",
    [{"runs": 9}, {"block": 0}, {"warmup_s": -1.0}, {"warmup_s": float("nan")}],
    ids=["too few runs", "no block", "negative warm-up", "warm-up of NaN"],
)
def test_counts_that_cannot_be_used_are_refused_before_anything_starts(
    changed: dict[str, Any], tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    with pytest.raises(UsageError, match="the latency cannot be measured so"):
        measure(lasting(tmp_path, only=0.0), **changed)
    assert started == []


def test_no_variant_is_refused() -> None:
    with pytest.raises(UsageError, match="found: 0 variants"):
        measure({})


def test_asking_a_worker_that_was_never_started_says_so() -> None:
    with pytest.raises(UsageError, match="the worker is not running"):
        WorkerProcess("a", timeout_s=1.0).ask("run")
