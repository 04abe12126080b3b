"""Where the time of an image goes: letterbox and normalise, inference, decode and NMS; p50 of each and of all."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qtoolkit.bench.measured_record import MeasuredRecord, record_conditions
from qtoolkit.bench.turns import Progress, rotating_turns
from qtoolkit.bench.worker_process import WorkerProcess
from qtoolkit.errors import UsageError
from qtoolkit.evaluation.nms import DEPLOYED_SCORE_THRESHOLD

__all__ = ["StageTimes", "measure_stages"]

_BLOCK = 10


class StageTimes(MeasuredRecord):
    """Milliseconds of one photo, from decoded pixels to people in its pixels; reading the file is not in it."""

    head: str
    images: str
    """``N photos`` or ``noise``, in which there is nobody to decode."""
    score_threshold: float
    iou_threshold: float
    count: int
    preprocess_p50_ms: float
    """Letterbox and normalise."""
    inference_p50_ms: float
    postprocess_p50_ms: float
    """Decode, NMS, back to the photo's pixels."""
    end_to_end_p50_ms: float
    end_to_end_p99_ms: float


def measure_stages(
    variants: Mapping[str, Path],
    photos: Sequence[Path] = (),
    *,
    head: str | None = None,
    threads: int | None = None,
    runs: int = 100,
    score_threshold: float = DEPLOYED_SCORE_THRESHOLD,
    iou_threshold: float = 0.7,
    warmup_s: float = 1.0,
    backend: str = "ort-cpu",
    options: Mapping[str, Any] | None = None,
    timeout_s: float = 300.0,
    progress: Progress | None = None,
) -> dict[str, StageTimes]:
    """Times of each pose network of ``variants`` (label → ONNX file) on ``photos``, in turns, ``runs`` of each.

    Without photos an image of noise of 640×480 pixels. Raises HeadError where a network has no pose head, UsageError
    for no network or no run, DataSetError for a photo that cannot be read, and as ``measure_run`` does.
    """
    if not variants or runs < 1:
        raise UsageError(
            "the stages cannot be timed so",
            expected="networks and runs of 1 or more",
            found=f"{len(variants)} networks, runs={runs}",
            do="give larger counts",
        )
    block = min(_BLOCK, runs)
    opening = {"backend": backend, "options": {**(options or {}), "threads": threads}, "feeds": None, "seed": 0}
    thresholds = {"score_threshold": score_threshold, "iou_threshold": iou_threshold}
    paths = [str(Path(photo).absolute()) for photo in photos]
    with contextlib.ExitStack() as running:
        timed: list[_Variant] = []
        for label, path in variants.items():
            worker = running.enter_context(WorkerProcess(label, timeout_s=timeout_s))
            described = worker.ask("open", model=str(Path(path).absolute()), **opening)
            found = worker.ask("photos", paths=paths, head=head, **thresholds)["head"]
            worker.ask("warm", seconds=warmup_s)
            timed.append(_Variant(label, Path(path), worker, described, found))
        for cycle, variant in rotating_turns(timed, 0, -(-runs // block), progress):
            variant.rows_ns += variant.worker.ask("stages", first=cycle * block, count=block)["rows_ns"]
    images = f"{len(photos)} photos" if photos else "noise"
    return {each.label: _times(each, images, thresholds) for each in timed}


@dataclass
class _Variant:
    label: str
    path: Path
    worker: WorkerProcess
    described: dict[str, Any]
    head: str
    rows_ns: list[list[int]] = field(default_factory=list)


def _times(variant: _Variant, images: str, thresholds: Mapping[str, Any]) -> StageTimes:
    rows_ms = np.array(variant.rows_ns, np.float64) / 1e6
    before, inference, after = np.median(rows_ms, axis=0)
    whole_p50, whole_p99 = np.percentile(rows_ms.sum(axis=1), [50, 99])
    return StageTimes(
        **record_conditions(variant.label, variant.path, **variant.described),
        head=variant.head,
        images=images,
        **thresholds,
        count=len(rows_ms),
        preprocess_p50_ms=float(before),
        inference_p50_ms=float(inference),
        postprocess_p50_ms=float(after),
        end_to_end_p50_ms=float(whole_p50),
        end_to_end_p99_ms=float(whole_p99),
    )
