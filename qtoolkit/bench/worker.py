"""The process that holds one variant of a latency measurement: ``python -m qtoolkit.bench.worker``.

It reads one JSON object per line from standard input and answers each with one line on standard output; the end of
standard input ends it, so that it does not outlive its parent::

    {"do": "open", "backend": "ort-cpu", "model": PATH, "options": {…}, "feeds": PATH|null, "seed": 0}
    {"do": "warm", "seconds": 1.0}
    {"do": "run", "first": 0, "count": 10}
    {"do": "stream", "seconds": 0.5}                          (opened with "streams": how many infer at once)
    {"do": "photos", "paths": […], "head": null, "score_threshold": 0.25, "iou_threshold": 0.7}
    {"do": "stages", "first": 0, "count": 10}

Between two commands it must cost the machine nothing: the thread pool of an idle session polls for work for tens of
milliseconds after an inference, so an answer is given only when the process has come to rest.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
from numpy.typing import NDArray

from qtoolkit.backends.runner import Runner, TensorSpec
from qtoolkit.backends.table import open_runner
from qtoolkit.errors import QtoolError, UsageError

if TYPE_CHECKING:
    from qtoolkit.bench.stage_clock import StageClock

__all__ = ["LEAD_IN", "Worker", "load_feeds", "main", "seeded_feeds"]

LEAD_IN = 2
"""Inferences before each block that are not counted: another variant has just emptied the caches of this one."""

_SEEDED_FEEDS = 4
_WARM_GROUP = 5
_WARM_TOLERANCE = 0.03
_WARM_PATIENCE = 5
_REST_WINDOW_S = 0.012
_REST_SHARE = 0.05
_REST_LIMIT_S = 2.0

Feeds = list[dict[str, NDArray[Any]]]


class Worker:
    """One open runner and its inputs; each public method carries out one command and returns its answer.

    ``more`` are further open runners of the same network, for ``stream``.
    """

    def __init__(self, runner: Runner, feeds: Feeds, more: Sequence[Runner] = ()) -> None:
        self.runner = runner
        self.feeds = feeds
        self._streams = (runner, *more)
        self._clock: StageClock | None = None
        self._rested_at = (time.perf_counter_ns(), time.process_time_ns())

    def describe(self) -> dict[str, Any]:
        """Conditions of the runner and shapes of the inputs."""
        shapes = {name: list(array.shape) for name, array in self.feeds[0].items()}
        return {"target": self.runner.name, "conditions": self.runner.conditions(), "input_shapes": shapes}

    def warm(self, seconds: float) -> dict[str, Any]:
        """Infer for at least ``seconds``, then until two groups of 5 agree within 3 % (5 × as long at most)."""
        start = time.perf_counter()
        medians: list[float] = []
        stable = False
        while True:
            medians.append(float(np.median(self._timed(len(medians) * _WARM_GROUP, _WARM_GROUP))))
            elapsed_s = time.perf_counter() - start
            stable = len(medians) > 1 and abs(medians[-1] / medians[-2] - 1) <= _WARM_TOLERANCE
            if len(medians) > 1 and elapsed_s >= seconds and (stable or elapsed_s >= _WARM_PATIENCE * seconds):
                break
        self.rest()
        return {"count": len(medians) * _WARM_GROUP, "seconds": elapsed_s, "stable": stable}

    def run(self, first: int, count: int) -> dict[str, Any]:
        """Time ``count`` inferences, the first of them on input number ``first`` (modulo the number of inputs)."""
        idle_cpu_pct = self._cpu_pct_since_rest()
        self._timed(first, LEAD_IN)
        samples_ns = self._timed(first, count)
        self.rest()
        return {"samples_ns": samples_ns, "idle_cpu_pct": idle_cpu_pct}

    def stream(self, seconds: float) -> dict[str, Any]:
        """Infer for ``seconds`` on all streams at once, each one inference after the other on inputs of its own."""
        idle_cpu_pct = self._cpu_pct_since_rest()
        start = threading.Barrier(len(self._streams))

        def one(place: int) -> tuple[int, int]:
            infer, feeds, clock = self._streams[place].infer, self.feeds, time.perf_counter_ns
            infer(feeds[place % len(feeds)])
            start.wait()
            began, count = clock(), 0
            ends = began + int(seconds * 1e9)
            now = began
            while now < ends:
                infer(feeds[(place + count) % len(feeds)])
                count += 1
                now = clock()
            return count, now - began

        with ThreadPoolExecutor(len(self._streams)) as pool:
            counted = list(pool.map(one, range(len(self._streams))))
        self.rest()
        return {
            "counts": [each[0] for each in counted],
            "ns": [each[1] for each in counted],
            "idle_cpu_pct": idle_cpu_pct,
        }

    def photos(self, paths: list[str], **options: Any) -> dict[str, Any]:
        """Read photos for ``stages``; says what head the network has and how many photos there are."""
        from qtoolkit.bench.stage_clock import StageClock

        self._clock = StageClock(self.runner, [Path(path) for path in paths], **options)
        return {"head": self._clock.head, "photos": self._clock.photos}

    def stages(self, first: int, count: int) -> dict[str, Any]:
        """Nanoseconds of pre-processing, inference and post-processing of ``count`` photos."""
        if self._clock is None:
            raise UsageError("there are no photos", expected="photos first", found="stages", do="send photos first")
        self._clock.time(first, LEAD_IN)
        rows_ns = self._clock.time(first, count)
        self.rest()
        return {"rows_ns": rows_ns}

    def close(self) -> None:
        """Close every runner."""
        for runner in self._streams:
            runner.close()

    def rest(self) -> None:
        """Wait until this process has used next to no processor time in two windows in a row, 2 s at most."""
        deadline = time.perf_counter() + _REST_LIMIT_S
        quiet_windows = 0
        while quiet_windows < 2 and time.perf_counter() < deadline:
            wall, used = time.perf_counter(), time.process_time()
            time.sleep(_REST_WINDOW_S)
            share = (time.process_time() - used) / (time.perf_counter() - wall)
            quiet_windows = quiet_windows + 1 if share < _REST_SHARE else 0
        self._rested_at = (time.perf_counter_ns(), time.process_time_ns())

    def _timed(self, first: int, count: int) -> list[int]:
        infer, feeds, clock = self.runner.infer, self.feeds, time.perf_counter_ns
        samples_ns: list[int] = []
        gc.disable()
        try:
            for index in range(first, first + count):
                feed = feeds[index % len(feeds)]
                start = clock()
                outputs = infer(feed)
                samples_ns.append(clock() - start)
                # Freed here, since rebinding the name would free it inside the next measurement.
                del outputs
        finally:
            gc.enable()
        return samples_ns

    def _cpu_pct_since_rest(self) -> float:
        wall = time.perf_counter_ns() - self._rested_at[0]
        used = time.process_time_ns() - self._rested_at[1]
        # The clock of a process's other threads ticks every 4 ms: less than a few ticks of wall time say nothing.
        return 100.0 * used / wall if wall > 20_000_000 else 0.0


def seeded_feeds(inputs: Mapping[str, TensorSpec], seed: int) -> Feeds:
    """Inputs drawn from ``seed``: floats uniform in [0, 1), zeros for any other type.

    Raises UsageError where a dimension is free.
    """
    rng = np.random.default_rng(seed)
    return [{name: _drawn(name, spec, rng) for name, spec in inputs.items()} for _ in range(_SEEDED_FEEDS)]


def load_feeds(inputs: Mapping[str, TensorSpec], path: Path) -> Feeds:
    """Inputs of a network with one input of shape (B, …) from an .npy file of shape (M·B, …), M ≥ 1.

    float16, float32 and float64 are converted into one another. Raises UsageError for anything else.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _unfit(path, "a .npy file of one array", str(error)) from error
    if len(inputs) != 1 or not isinstance(array, np.ndarray):
        raise _unfit(path, "one array, for a network with one input", f"a network with {len(inputs)} inputs")
    name, spec = next(iter(inputs.items()))
    if np.issubdtype(array.dtype, np.floating) and np.issubdtype(spec.dtype, np.floating):
        array = array.astype(spec.dtype, copy=False)
    batch = spec.shape[0] if spec.shape and spec.shape[0] else 1
    rows = [array[start : start + batch] for start in range(0, len(array), batch)] if array.ndim else []
    if not rows or not all(spec.accepts(row) for row in rows):
        raise _unfit(path, f"arrays for input {name!r}, {spec}, one after the other", f"{array.dtype} {array.shape}")
    return [{name: np.ascontiguousarray(row)} for row in rows]


def main(commands: TextIO, answers: TextIO) -> None:
    """Carry out commands until their stream ends. An error of qtoolkit is answered, any other ends the process."""
    worker: Worker | None = None
    try:
        for command in _parsed(commands):
            try:
                if command["do"] == "open":
                    worker = _opened(command)
                    answer = worker.describe()
                elif worker is None:
                    raise UsageError("nothing is open", expected="open", found=command["do"], do="send open first")
                else:
                    parameters = {name: value for name, value in command.items() if name != "do"}
                    answer = _COMMANDS[command["do"]](worker, **parameters)
            except QtoolError as error:
                parts = {"expected": error.expected, "found": error.found, "do": error.do}
                answer = {"error": type(error).__name__, "what": error.what, **parts}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
    finally:
        if worker is not None:
            worker.close()


_COMMANDS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "warm": Worker.warm,
    "run": Worker.run,
    "stream": Worker.stream,
    "photos": Worker.photos,
    "stages": Worker.stages,
}


def _parsed(commands: TextIO) -> Iterator[dict[str, Any]]:
    # readline, not iteration over the stream: that reads ahead and would hold a command back.
    while line := commands.readline():
        yield json.loads(line)


def _opened(command: Mapping[str, Any]) -> Worker:
    runners: list[Runner] = []
    try:
        for _ in range(command.get("streams", 1)):
            runners.append(open_runner(command["backend"], Path(command["model"]), **command["options"]))
        inputs = runners[0].signature.inputs
        feeds = (
            load_feeds(inputs, Path(command["feeds"])) if command["feeds"] else seeded_feeds(inputs, command["seed"])
        )
    except QtoolError:
        for runner in runners:
            runner.close()
        raise
    return Worker(runners[0], feeds, runners[1:])


def _drawn(name: str, spec: TensorSpec, rng: np.random.Generator) -> NDArray[Any]:
    shape = tuple(size for size in spec.shape if size is not None)
    if len(shape) != len(spec.shape):
        raise UsageError(
            f"input {name!r} has no fixed size",
            expected="a network with fixed shapes, or inputs from a file",
            found=str(spec),
            do="fix its size with --input-size, or give an .npy file of inputs",
        )
    if np.issubdtype(spec.dtype, np.floating):
        return rng.random(shape, dtype=np.float32).astype(spec.dtype)
    return np.zeros(shape, spec.dtype)


def _unfit(path: Path, expected: str, found: str) -> UsageError:
    return UsageError(
        f"the inputs in {path} cannot be used", expected=expected, found=found, do="write them with numpy.save"
    )


if __name__ == "__main__":
    # A native library that prints must not break the protocol: it keeps number 1, which now leads to standard error.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as protocol:
        os.dup2(2, 1)
        main(sys.stdin, protocol)
