"""Images per second at a batch and with several streams, and the energy of an image: apart from any latency.

Like latencies these are measured in turns, each network in a process of its own; but here a process keeps the machine
busy for a whole turn, with as many inferences under way as there are streams.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from qtoolkit.backends.cores import runtime_threads
from qtoolkit.bench.energy import EnergyMeter
from qtoolkit.bench.latency_result import mean_ratio
from qtoolkit.bench.measured_record import MeasuredRecord, record_conditions
from qtoolkit.bench.turns import Progress, rotating_turns
from qtoolkit.bench.worker_process import WorkerProcess
from qtoolkit.errors import UsageError

__all__ = ["ThroughputResult", "measure_throughput"]

_TURNS = 10


class ThroughputResult(MeasuredRecord):
    """Images per second of one network, with as many inferences under way at once as there are ``streams``."""

    streams: int
    seconds: float
    inferences: int
    images_per_second: float
    ratio: float
    """Images per second over those of the first network, with its 95 % bootstrap interval over turns."""
    ratio_lo: float
    ratio_hi: float
    turn_cv_pct: float
    """Standard deviation of the turns' figures over their mean."""
    millijoules_per_image: float | None
    """Of all that ``energy_source`` covers, what it uses at rest included; None where no meter can be read."""
    energy_source: str | None
    turns_images_per_second: tuple[float, ...] = Field(repr=False)


@dataclass
class _Variant:
    label: str
    path: Path
    worker: WorkerProcess
    described: dict[str, Any]
    rates: list[float] = field(default_factory=list)
    inferences: int = 0
    seconds: float = 0.0
    joules: float = 0.0


def measure_throughput(
    variants: Mapping[str, Path],
    *,
    streams: int = 1,
    threads: int | None = None,
    seconds: float = 5.0,
    warmup_s: float = 1.0,
    seed: int = 0,
    backend: str = "ort-cpu",
    options: Mapping[str, Any] | None = None,
    meter: EnergyMeter | None = None,
    timeout_s: float = 300.0,
    progress: Progress | None = None,
) -> dict[str, ThroughputResult]:
    """Throughput of each network of ``variants`` (label → ONNX file of fixed shape); ratios are against the first.

    The batch is that of the network's input. ``threads``: of all streams together, None for every core; each stream has
    its share, at least one. ``seconds``: of each network, in ten turns. ``meter`` counts the energy of each turn.

    Raises UsageError for counts that cannot be used, and as ``measure_run`` does.
    """
    if not variants or streams < 1 or not 0 < seconds < float("inf"):
        raise UsageError(
            "the throughput cannot be measured so",
            expected="networks, 1 stream or more, more than 0 seconds",
            found=f"{len(variants)} networks, {streams} streams, {seconds} s",
            do="give larger counts",
        )
    share = max(1, runtime_threads(threads) // streams)
    opening = {"backend": backend, "options": {**(options or {}), "threads": share}, "feeds": None, "seed": seed}
    with contextlib.ExitStack() as running:
        gathered: list[_Variant] = []
        for label, path in variants.items():
            worker = running.enter_context(WorkerProcess(label, timeout_s=timeout_s))
            described = worker.ask("open", model=str(Path(path).absolute()), streams=streams, **opening)
            worker.ask("warm", seconds=warmup_s)
            gathered.append(_Variant(label, Path(path), worker, described))
        for _, variant in rotating_turns(gathered, 0, _TURNS, progress):
            _one_turn(variant, seconds / _TURNS, meter)
    return {each.label: _result(each, gathered[0], streams, meter) for each in gathered}


def _one_turn(variant: _Variant, seconds: float, meter: EnergyMeter | None) -> None:
    if meter is not None:
        meter.start()
    answer = variant.worker.ask("stream", seconds=seconds)
    if meter is not None:
        variant.joules += meter.stop_j()
    # Each stream by its own time: they end at different moments, and the last one runs alone for a while.
    variant.rates.append(sum(count * 1e9 / ns for count, ns in zip(answer["counts"], answer["ns"], strict=True)))
    variant.inferences += sum(answer["counts"])
    variant.seconds += max(answer["ns"]) / 1e9


def _result(variant: _Variant, first: _Variant, streams: int, meter: EnergyMeter | None) -> ThroughputResult:
    conditions = record_conditions(variant.label, variant.path, **variant.described)
    batch = conditions["batch"]
    rates = np.array(variant.rates) * batch
    ratio = mean_ratio(np.array(variant.rates), np.array(first.rates)) if variant is not first else None
    images = variant.inferences * batch
    return ThroughputResult(
        **conditions,
        streams=streams,
        seconds=variant.seconds,
        inferences=variant.inferences,
        images_per_second=float(rates.mean()),
        ratio=1.0 if ratio is None else ratio.ratio,
        ratio_lo=1.0 if ratio is None else ratio.ratio_lo,
        ratio_hi=1.0 if ratio is None else ratio.ratio_hi,
        turn_cv_pct=float(100 * rates.std() / rates.mean()),
        millijoules_per_image=None if meter is None else 1e3 * variant.joules / images,
        energy_source=None if meter is None else meter.source,
        turns_images_per_second=tuple(rates.tolist()),
    )
