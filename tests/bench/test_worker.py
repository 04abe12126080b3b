"""The worker's commands, carried out in this process, and its inputs."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from qtoolkit.backends.runner import Condition, Runner, Signature, TensorSpec
from qtoolkit.bench import worker
from qtoolkit.errors import UsageError

FLOAT32 = np.dtype(np.float32)
ONE_INPUT = {"x": TensorSpec((2, 3), FLOAT32)}


class Instant(Runner):
    """Answers at once with its input; remembers the first value of every input, and whether it was closed."""

    name = "instant"

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[float] = []

    def _open(self) -> Signature:
        return Signature(inputs={"x": TensorSpec((1,), FLOAT32)}, outputs={"y": TensorSpec((1,), FLOAT32)})

    def _infer(self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> Sequence[NDArray[Any]]:
        self.seen.append(float(feeds["x"][0]))
        return [feeds["x"]]

    def _close(self) -> None:
        pass

    def conditions(self) -> dict[str, Condition]:
        return {"runtime": "python", "version": "3", "provider": "none", "threads": 1}


def instant_worker(inputs: int = 3) -> tuple[worker.Worker, Instant]:
    runner = Instant()
    runner.open()
    return worker.Worker(runner, [{"x": np.full(1, i, np.float32)} for i in range(inputs)]), runner


def test_a_block_starts_on_its_own_input_after_the_lead_in() -> None:
    held, runner = instant_worker(inputs=3)
    answer = held.run(first=4, count=4)
    assert len(answer["samples_ns"]) == 4
    assert runner.seen == [1.0, 2.0, 1.0, 2.0, 0.0, 1.0]


def test_the_harness_costs_less_than_20_us_per_inference() -> None:
    held, _ = instant_worker()
    assert np.median(held.run(first=0, count=500)["samples_ns"]) < 20_000


def test_warm_up_lasts_at_least_as_long_as_asked() -> None:
    held, runner = instant_worker()
    answer = held.warm(0.05)
    assert answer["seconds"] >= 0.05
    assert answer["count"] == len(runner.seen) >= 10
    assert answer["seconds"] < 2.0


def test_warm_up_ends_even_where_times_never_settle(monkeypatch: pytest.MonkeyPatch) -> None:
    held, _ = instant_worker()
    durations = iter(range(1, 10**9))

    def restless(first: int, count: int) -> list[int]:
        time.sleep(0.001)
        return [2 ** (next(durations) % 2) * 10**6] * count

    monkeypatch.setattr(held, "_timed", restless)
    answer = held.warm(0.02)
    assert answer["stable"] is False
    assert 0.1 <= answer["seconds"] < 1.0


def test_it_rests_before_it_answers(tiny_pose_model: Callable[..., onnx.ModelProto]) -> None:
    """Two threads of an idle session poll on after an inference: they must have stopped when the answer comes."""
    from qtoolkit.backends.onnxruntime_cpu import OnnxRuntimeCpu

    with OnnxRuntimeCpu(tiny_pose_model(), threads=2) as runner:
        held = worker.Worker(runner, worker.seeded_feeds(runner.signature.inputs, 0))
        held.run(first=0, count=20)
        used, wall = time.process_time(), time.perf_counter()
        time.sleep(0.1)
        assert (time.process_time() - used) / (time.perf_counter() - wall) < 0.1


def talk(*commands: dict[str, Any]) -> list[dict[str, Any]]:
    answers = io.StringIO()
    worker.main(io.StringIO("".join(json.dumps(each) + "\n" for each in commands)), answers)
    return [json.loads(line) for line in answers.getvalue().splitlines()]


def test_answers_each_command_with_one_line(tiny_pose_model: Callable[..., onnx.ModelProto], tmp_path: Path) -> None:
    onnx.save(tiny_pose_model(), tmp_path / "tiny.onnx")
    opening = {"do": "open", "backend": "ort-cpu", "model": str(tmp_path / "tiny.onnx"), "feeds": None, "seed": 0}
    opened, warmed, ran = talk(
        {**opening, "options": {"threads": 1}}, {"do": "warm", "seconds": 0.0}, {"do": "run", "first": 0, "count": 3}
    )
    assert opened["target"] == "ort-cpu"
    assert opened["conditions"]["threads"] == 1
    assert opened["input_shapes"] == {"images": [1, 3, 64, 64]}
    assert warmed["count"] >= 10
    assert len(ran["samples_ns"]) == 3 and min(ran["samples_ns"]) > 0


def test_an_error_is_answered_and_the_next_command_is_heard(tmp_path: Path) -> None:
    opening = {"do": "open", "backend": "nobody", "model": "x", "options": {}, "feeds": None, "seed": 0}
    unknown, not_open = talk(opening, {"do": "run", "first": 0, "count": 1})
    assert unknown["error"] == "UsageError" and "there is no backend 'nobody'" in unknown["what"]
    assert not_open["error"] == "UsageError" and not_open["what"] == "nothing is open"


def test_seeded_inputs_are_the_same_for_the_same_seed() -> None:
    inputs = {"x": TensorSpec((2, 3), FLOAT32), "half": TensorSpec((4,), np.dtype(np.float16))}
    first, again, other = (worker.seeded_feeds(inputs, seed) for seed in (1, 1, 2))
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one["x"], two["x"])
    assert (first[0]["x"] != other[0]["x"]).any() and (first[0]["x"] != first[1]["x"]).any()
    assert first[0]["x"].dtype == np.float32 and first[0]["half"].dtype == np.float16
    assert first[0]["x"].min() >= 0 and first[0]["x"].max() < 1


def test_integer_inputs_are_zeros() -> None:
    feeds = worker.seeded_feeds({"n": TensorSpec((2,), np.dtype(np.int64))}, 0)
    np.testing.assert_array_equal(feeds[0]["n"], [0, 0])


def test_a_free_dimension_needs_inputs_from_a_file(tmp_path: Path) -> None:
    inputs = {"x": TensorSpec((None, 3), FLOAT32)}
    with pytest.raises(UsageError, match=r"found: float32 \(\?, 3\)\n  do: fix its size with --input-size"):
        worker.seeded_feeds(inputs, 0)
    np.save(tmp_path / "x.npy", np.zeros((2, 3), np.float32))
    assert [feed["x"].shape for feed in worker.load_feeds(inputs, tmp_path / "x.npy")] == [(1, 3), (1, 3)]


def test_a_file_of_inputs_is_cut_into_batches_and_converted(tmp_path: Path) -> None:
    values = np.arange(12.0).reshape(4, 3)
    np.save(tmp_path / "x.npy", values)
    feeds = worker.load_feeds(ONE_INPUT, tmp_path / "x.npy")
    assert len(feeds) == 2
    np.testing.assert_array_equal(feeds[1]["x"], values[2:].astype(np.float32))
    assert feeds[0]["x"].dtype == np.float32 and feeds[0]["x"].flags.c_contiguous


@pytest.mark.parametrize(
    "array",
    [np.zeros((3, 3)), np.zeros((2, 4)), np.zeros((0, 3)), np.zeros((2, 3), np.uint8), np.zeros(())],
    ids=["half a batch left over", "wrong size", "empty", "integers", "scalar"],
)
def test_a_file_that_does_not_fit_is_refused(array: NDArray[Any], tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(UsageError, match="arrays for input 'x'"):
        worker.load_feeds(ONE_INPUT, tmp_path / "x.npy")


@pytest.mark.parametrize("content", [None, b"", b"text", b"\x93NUMPY\x01\x00"], ids=["missing", "empty", "text", "cut"])
def test_a_file_that_cannot_be_read_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"the inputs in .* cannot be used"):
        worker.load_feeds(ONE_INPUT, path)


def test_a_pickle_is_not_executed(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(UsageError, match="allow_pickle=False"):
        worker.load_feeds(ONE_INPUT, tmp_path / "x.npy")


def test_two_inputs_cannot_come_from_one_file(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 3)))
    with pytest.raises(UsageError, match="found: a network with 2 inputs"):
        worker.load_feeds({**ONE_INPUT, "y": ONE_INPUT["x"]}, tmp_path / "x.npy")


def test_an_npz_is_no_npy(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 3)))
    with pytest.raises(UsageError, match="cannot be used"):
        worker.load_feeds(ONE_INPUT, tmp_path / "x.npz")


def test_a_worker_imports_no_runtime_before_it_is_asked_to() -> None:
    code = "import sys, qtoolkit.bench.worker; print(*sys.modules)"
    root = Path(worker.__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert not set(done.stdout.split()) & {"onnx", "onnxruntime", "cv2", "pydantic", "plotly", "rich", "click"}
