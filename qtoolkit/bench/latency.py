"""Latency of several variants of a network, measured in one run, interleaved, each in a process of its own.

One after the other they would be measured on different machines, in effect: clock rates and neighbours drift. In one
process they would disturb one another: the thread pool of an idle session polls for work, which slowed the next
session by up to 1.6 ×. So each variant has a worker process that is at rest unless it is its turn, and turns are short:
A B C, B C A, C A B, …
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtoolkit.bench.latency_result import (
    LatencyResult,
    half_width_pct,
    p50_interval_ms,
    p50_ratio,
    percentiles_ms,
)
from qtoolkit.bench.measured_record import record_conditions
from qtoolkit.bench.noise import NoiseWatch, RunNoise
from qtoolkit.bench.turns import Progress, rotating_turns
from qtoolkit.bench.worker_process import WorkerProcess
from qtoolkit.errors import UsageError

__all__ = ["DEFAULT_LIMIT_S", "LatencyRun", "measure_latency", "measure_run"]

DEFAULT_LIMIT_S = 60.0
"""Seconds after which a measurement that was to go on until its intervals are narrow gives up."""

_FEWEST_CYCLES = 10
# Intervals are computed again when the number of cycles has grown by this: their cost stays in proportion.
_GROWTH = 0.25


@dataclass(frozen=True, eq=False)
class LatencyRun:
    """One run: the results by label, and what else the machine did meanwhile.

    ``half_width_pct`` is the widest interval of any p50 and any ratio, as ± percent of the figure; ``until_pct`` what
    was asked for, None for a fixed number of inferences.
    """

    results: dict[str, LatencyResult]
    noise: RunNoise
    until_pct: float | None

    @property
    def half_width_pct(self) -> float:
        """± percent of the widest interval."""
        return max(result.half_width_pct for result in self.results.values())

    @property
    def reached(self) -> bool | None:
        """Whether every interval is as narrow as was asked; None where nothing was."""
        return None if self.until_pct is None else self.half_width_pct <= self.until_pct


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


def measure_latency(variants: Mapping[str, Path], **options: Any) -> dict[str, LatencyResult]:
    """The results of ``measure_run``, which takes the same options."""
    return measure_run(variants, **options).results


def measure_run(
    variants: Mapping[str, Path],
    *,
    threads: int | None = None,
    runs: int = 100,
    block: int = 10,
    until_pct: float | None = None,
    limit_s: float = DEFAULT_LIMIT_S,
    warmup_s: float = 1.0,
    feeds_path: Path | None = None,
    seed: int = 0,
    backend: str = "ort-cpu",
    options: Mapping[str, Any] | None = None,
    timeout_s: float = 300.0,
    progress: Progress | None = None,
) -> LatencyRun:
    """Latency of each network of ``variants`` (label → ONNX file); ratios are against the first.

    ``runs``: inferences per variant, at least 10, rounded up to whole turns of ``block``, which is made smaller where
    fewer than ten turns would come of it. ``until_pct``: go on after those until the 95 % interval of every p50 and of
    every ratio is within ± so many percent of the figure, or ``limit_s`` seconds have gone by. ``threads``: of the
    runtime; None takes every core this process may use. ``warmup_s``: least warm-up, which goes on until times settle.
    ``feeds_path``: see ``worker.load_feeds``; without it inputs are drawn from ``seed``. ``backend``, ``options``: see
    ``table.open_runner``. ``timeout_s``: for any one answer of a worker. ``progress`` is called after each turn with
    the turns done and all turns, as far as they are known.

    Raises UsageError for counts that cannot be used, what the backend raises for a network it refuses, and QtoolError
    where a worker dies or hangs. Every worker has ended when this returns or raises.
    """
    _check_counts(variants, runs, block, warmup_s)
    _check_until(until_pct, limit_s)
    block = min(block, max(1, runs // _FEWEST_CYCLES))
    opening = {
        "backend": backend,
        "options": {**(options or {}), "threads": threads},
        "feeds": None if feeds_path is None else str(Path(feeds_path).absolute()),
        "seed": seed,
    }
    watch = NoiseWatch()
    watch.start()
    with contextlib.ExitStack() as running:
        gathered: list[_Variant] = []
        for label, path in variants.items():
            worker = running.enter_context(WorkerProcess(label, timeout_s=timeout_s))
            gathered.append(_warmed_up(label, Path(path), worker, opening, warmup_s))
        _take_turns(gathered, -(-runs // block), block, until_pct, limit_s, watch, progress)
    inputs = f"seed {seed}" if feeds_path is None else "file"
    return LatencyRun({each.label: _result(each, gathered[0], inputs) for each in gathered}, watch.finish(), until_pct)


def _warmed_up(label: str, path: Path, worker: WorkerProcess, opening: Mapping[str, Any], warmup_s: float) -> _Variant:
    described = worker.ask("open", model=str(path.absolute()), **opening)
    return _Variant(label, path, worker, described, warmed=worker.ask("warm", seconds=warmup_s))


def _take_turns(
    gathered: list[_Variant],
    cycles: int,
    block: int,
    until_pct: float | None,
    limit_s: float,
    watch: NoiseWatch,
    progress: Progress | None,
) -> None:
    """``cycles`` cycles; with ``until_pct`` more of them until the intervals are so narrow or the time is up."""
    ends_s = time.perf_counter() + limit_s
    first, last = 0, cycles
    while True:
        for cycle, variant in rotating_turns(gathered, first, last, progress):
            answer = variant.worker.ask("run", first=cycle * block, count=block)
            variant.blocks_ms.append([sample / 1e6 for sample in answer["samples_ns"]])
            variant.idle_cpu_pct = max(variant.idle_cpu_pct, answer["idle_cpu_pct"])
            if variant is gathered[-1]:
                watch.look()
        done_s = time.perf_counter()
        if until_pct is None or done_s >= ends_s or _widest_pct(gathered) <= until_pct:
            return
        # As many more as a quarter of those done, but no more than there is time for.
        spent_s = limit_s - (ends_s - done_s)
        more = min(last * _GROWTH, last * (ends_s - done_s) / max(spent_s, 1e-3))
        first, last = last, last + max(1, int(more))


def _widest_pct(gathered: list[_Variant]) -> float:
    first_ms = gathered[0].samples_ms()
    return max(_half_width_pct(each.samples_ms(), first_ms) for each in gathered)


def _half_width_pct(samples_ms: NDArray[np.float64], first_ms: NDArray[np.float64]) -> float:
    ratio = p50_ratio(samples_ms, first_ms)
    of_p50 = half_width_pct(float(np.median(samples_ms)), *p50_interval_ms(samples_ms))
    return max(of_p50, half_width_pct(ratio.ratio, ratio.ratio_lo, ratio.ratio_hi))


def _result(variant: _Variant, first: _Variant, inputs: str) -> LatencyResult:
    samples_ms = variant.samples_ms()
    conditions = record_conditions(variant.label, variant.path, **variant.described)
    shape = next(iter(conditions["input_shapes"].values()))
    medians_ms = np.median(samples_ms, axis=1)
    p50_lo_ms, p50_hi_ms = p50_interval_ms(samples_ms)
    statistics: dict[str, Any] = {
        **percentiles_ms(samples_ms),
        "p50_lo_ms": round(p50_lo_ms, 6),
        "p50_hi_ms": round(p50_hi_ms, 6),
        "block_cv_pct": round(float(100 * medians_ms.std() / medians_ms.mean()), 3),
        **p50_ratio(samples_ms, first.samples_ms()).model_dump(),
    }
    return LatencyResult(
        **conditions,
        input_size_wh=(shape[3], shape[2]) if len(shape) == 4 else None,
        inputs=inputs,
        warm_up_s=variant.warmed["seconds"],
        warm_up_count=variant.warmed["count"],
        warm_up_stable=variant.warmed["stable"],
        count=samples_ms.size,
        block=samples_ms.shape[1],
        **statistics,
        idle_cpu_pct=variant.idle_cpu_pct,
        block_medians_ms=tuple(medians_ms.tolist()),
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


def _check_until(until_pct: float | None, limit_s: float) -> None:
    if until_pct is not None and not (0 < until_pct < 100 and 0 <= limit_s < float("inf")):
        raise UsageError(
            "the latency cannot be measured until its intervals are so narrow",
            expected="a share above 0 % and below 100 %, and a limit of 0 s or more",
            found=f"{until_pct:g} %, {limit_s:g} s",
            do="give, for example, --until 1%",
        )
