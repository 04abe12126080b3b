"""Latency of several variants of a network, measured in one run, interleaved, each in a process of its own.

One after the other they would be measured on different machines, in effect: clock rates and neighbours drift. In one
process they would disturb one another: the thread pool of an idle session polls for work, which slowed the next
session by up to 1.6 ×. So each variant has a worker process that is at rest unless it is its turn, and turns are short:
A B C, B C A, C A B, …
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

import qtoolkit
from qtoolkit import errors
from qtoolkit.artifacts.files import sha256_file
from qtoolkit.bench.environment import cpu_name
from qtoolkit.bench.latency_result import LatencyResult, p50_ratio, percentiles_ms
from qtoolkit.errors import QtoolError, UnavailableError, UsageError

__all__ = ["WorkerProcess", "measure_latency"]

_FEWEST_CYCLES = 10
_GRACE_S = 2.0
_NAMED_CONDITIONS = ("runtime", "version", "provider", "threads")


class WorkerProcess:
    """A running :mod:`qtoolkit.bench.worker`; leaving the ``with`` block ends it whatever state it is in."""

    def __init__(self, label: str, *, timeout_s: float) -> None:
        self.label = label
        self._timeout_s = timeout_s
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._process: subprocess.Popen[str] | None = None
        self._stderr: IO[bytes] | None = None
        self._reader: threading.Thread | None = None

    def __enter__(self) -> WorkerProcess:
        self._stderr = tempfile.TemporaryFile()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "qtoolkit.bench.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env=_worker_environment(),
                text=True,
                encoding="utf-8",
            )
        except OSError as error:
            self._stderr.close()
            raise UnavailableError(
                f"no process could be started to measure variant {self.label!r}",
                expected="one more Python process",
                found=error.strerror or str(error),
                do="close other programs, or measure fewer variants at a time",
            ) from error
        # A thread of its own, since a pipe cannot be read with a time limit on every system.
        self._reader = threading.Thread(target=self._read_answers, args=(self._process.stdout,), daemon=True)
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._process
        if process is not None:
            if kind is not None:
                process.kill()
            with contextlib.suppress(OSError):
                self._stdin.close()
            try:
                process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if self._reader is not None:
                self._reader.join()
            if process.stdout is not None:
                process.stdout.close()
        if self._stderr is not None:
            self._stderr.close()

    def ask(self, do: str, **parameters: Any) -> dict[str, Any]:
        """Send one command and wait for its answer.

        Raises the error the worker reports, and QtoolError where it died or gave no answer in ``timeout_s``.
        """
        try:
            self._stdin.write(json.dumps({"do": do, **parameters}) + "\n")
            self._stdin.flush()
        except OSError as error:
            raise self._lost("it ended before its turn") from error
        try:
            line = self._answers.get(timeout=self._timeout_s)
        except queue.Empty as error:
            raise self._lost(f"no answer to {do!r} in {self._timeout_s:g} s") from error
        if not line:
            raise self._lost(f"it ended during {do!r}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise _reported(self.label, answer)
        return answer

    @property
    def _stdin(self) -> IO[str]:
        if self._process is None or self._process.stdin is None:
            raise UsageError(
                "the worker is not running", expected="a started worker", found="none", do="use it inside `with`"
            )
        return self._process.stdin

    def _read_answers(self, stream: IO[str]) -> None:
        for line in stream:
            self._answers.put(line)
        self._answers.put("")

    def _lost(self, how: str) -> QtoolError:
        code = None
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._process.wait(0.5)
        said = ""
        if self._stderr is not None:
            self._stderr.seek(0)
            said = self._stderr.read().decode("utf-8", "replace").strip().rsplit("\n", 1)[-1]
        state = "still running" if code is None else f"exit code {code}"
        return QtoolError(
            f"the process that measures variant {self.label!r} was lost: {how}",
            expected="an answer",
            found=f"{state}{'; ' + said if said else ''}",
            do="run the network alone with `qtool bench` to see whether the runtime or memory fails",
        )


@dataclass
class _Variant:
    """What has been gathered of one variant so far."""

    label: str
    path: Path
    worker: WorkerProcess
    described: dict[str, Any]
    warmed: dict[str, Any]
    blocks_ms: list[list[float]] = field(default_factory=list)
    idle_cpu_pct: float = 0.0

    def samples_ms(self) -> NDArray[np.float64]:
        """(cycles, block) milliseconds."""
        return np.array(self.blocks_ms, np.float64)


def measure_latency(
    variants: Mapping[str, Path],
    *,
    threads: int | None = None,
    runs: int = 100,
    block: int = 10,
    warmup_s: float = 1.0,
    feeds_path: Path | None = None,
    seed: int = 0,
    backend: str = "ort-cpu",
    options: Mapping[str, Any] | None = None,
    timeout_s: float = 300.0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, LatencyResult]:
    """Latency of each network of ``variants`` (label → ONNX file); ratios are against the first.

    ``runs``: inferences per variant, at least 10, rounded up to whole turns of ``block``, which is made smaller where
    fewer than ten turns would come of it. ``threads``: of the runtime; None takes every core this process may use.
    ``warmup_s``: least warm-up, which goes on until times settle. ``feeds_path``: see ``worker.load_feeds``; without
    it inputs are drawn from ``seed``. ``backend``, ``options``: see ``table.open_runner``. ``timeout_s``: for any one
    answer of a worker. ``progress`` is called after each turn with the turns done and all turns.

    Raises UsageError for counts that cannot be used, what the backend raises for a network it refuses, and QtoolError
    where a worker dies or hangs. Every worker has ended when this returns or raises.
    """
    _check_counts(variants, runs, block, warmup_s)
    block = min(block, max(1, runs // _FEWEST_CYCLES))
    cycles = -(-runs // block)
    opening = {
        "backend": backend,
        "options": {**(options or {}), "threads": threads},
        "feeds": None if feeds_path is None else str(Path(feeds_path).absolute()),
        "seed": seed,
    }
    with contextlib.ExitStack() as running:
        gathered: list[_Variant] = []
        for label, path in variants.items():
            worker = running.enter_context(WorkerProcess(label, timeout_s=timeout_s))
            gathered.append(_warmed_up(label, Path(path), worker, opening, warmup_s))
        _take_turns(gathered, cycles, block, progress)
    inputs = f"seed {seed}" if feeds_path is None else "file"
    return {each.label: _result(each, gathered[0], inputs) for each in gathered}


def _warmed_up(label: str, path: Path, worker: WorkerProcess, opening: Mapping[str, Any], warmup_s: float) -> _Variant:
    described = worker.ask("open", model=str(path.absolute()), **opening)
    return _Variant(label, path, worker, described, warmed=worker.ask("warm", seconds=warmup_s))


def _take_turns(gathered: list[_Variant], cycles: int, block: int, progress: Callable[[int, int], None] | None) -> None:
    for cycle in range(cycles):
        # The order rotates, so that no variant always follows the same one or always opens a cycle.
        start = cycle % len(gathered)
        for turn, variant in enumerate(gathered[start:] + gathered[:start]):
            answer = variant.worker.ask("run", first=cycle * block, count=block)
            variant.blocks_ms.append([sample / 1e6 for sample in answer["samples_ns"]])
            variant.idle_cpu_pct = max(variant.idle_cpu_pct, answer["idle_cpu_pct"])
            if progress is not None:
                progress(cycle * len(gathered) + turn + 1, cycles * len(gathered))


def _result(variant: _Variant, first: _Variant, inputs: str) -> LatencyResult:
    samples_ms = variant.samples_ms()
    conditions = variant.described["conditions"]
    shapes = {name: tuple(shape) for name, shape in variant.described["input_shapes"].items()}
    shape = next(iter(shapes.values()))
    statistics: dict[str, Any] = {
        **percentiles_ms(samples_ms),
        **p50_ratio(samples_ms, first.samples_ms()).model_dump(),
    }
    return LatencyResult(
        variant=variant.label,
        target=variant.described["target"],
        device=cpu_name(),
        **{name: conditions[name] for name in _NAMED_CONDITIONS},
        options={name: value for name, value in conditions.items() if name not in _NAMED_CONDITIONS},
        batch=shape[0] if shape else 1,
        input_size_wh=(shape[3], shape[2]) if len(shape) == 4 else None,
        input_shapes=shapes,
        inputs=inputs,
        model_sha256=sha256_file(variant.path),
        warm_up_s=variant.warmed["seconds"],
        warm_up_count=variant.warmed["count"],
        warm_up_stable=variant.warmed["stable"],
        count=samples_ms.size,
        block=samples_ms.shape[1],
        **statistics,
        idle_cpu_pct=variant.idle_cpu_pct,
        block_medians_ms=tuple(np.median(samples_ms, axis=1).tolist()),
        samples_ms=tuple(samples_ms.ravel().tolist()),
    )


def _check_counts(variants: Mapping[str, Path], runs: int, block: int, warmup_s: float) -> None:
    if not variants or runs < _FEWEST_CYCLES or block < 1 or not 0 <= warmup_s < float("inf"):
        raise UsageError(
            "the latency cannot be measured so",
            expected=f"variants, runs of {_FEWEST_CYCLES} or more, a block of 1 or more, a warm-up of 0 s or more",
            found=f"{len(variants)} variants, runs={runs}, block={block}, warmup_s={warmup_s}",
            do="give larger counts",
        )


def _reported(label: str, answer: Mapping[str, Any]) -> QtoolError:
    kind = getattr(errors, answer["error"])
    error: QtoolError = kind(
        f"variant {label!r}: {answer['what']}", expected=answer["expected"], found=answer["found"], do=answer["do"]
    )
    return error


def _worker_environment() -> dict[str, str]:
    """This process's environment, changed so that the worker imports this very package and nothing of the folder."""
    package_root = str(Path(qtoolkit.__file__).resolve().parents[1])
    paths = [package_root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}
