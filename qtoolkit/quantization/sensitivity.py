"""How much each layer suffers when it alone is quantized.

Without labels, against the float network on calibration photos:

- ``oks``: mean over the float network's confident people of 1 − OKS of the most similar person that the network with
  one layer quantized still finds. It is what AP counts, made continuous.
- ``sqnr``: noise over signal (NMSE) at the outputs, mean over boxes, scores, keypoints and keypoint confidences, each
  by itself: together the pixels would drown the rest.
- ``fisher``: what the rounding errors of a layer cost by the gradients of one backward pass per photo, for all layers
  at once (``quantization.fisher``, needs torch); 1 − OKS as for ``oks``, to second order.

With labels, on ``LabelledPhotos``:

- ``ap``: COCO AP that is lost. The truth, but a coarse one: what a single layer costs is less than what AP moves by
  chance on a hundred photos.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qtoolkit.artifacts.plan import Precision
from qtoolkit.artifacts.sensitivity import LayerSensitivity, Sensitivity
from qtoolkit.errors import UnavailableError, UsageError
from qtoolkit.evaluation.heads import Head
from qtoolkit.graph.layers import Layer
from qtoolkit.graph.load import network_input
from qtoolkit.quantization.ap_trials import ApJudge
from qtoolkit.quantization.labelled_photos import LabelledPhotos
from qtoolkit.quantization.output_trials import OutputJudge
from qtoolkit.quantization.pose_terms import (
    CONFIDENT,
    LABELLED_CONFIDENCE,
    sigmas_of,
)
from qtoolkit.quantization.ptq import Quantizer
from qtoolkit.quantization.trials import prepare_trials, run_trials

__all__ = ["METRICS", "Metric", "analyse_sensitivity", "check_metric"]

Metric = Literal["oks", "sqnr", "fisher", "ap"]
METRICS: tuple[Metric, ...] = ("oks", "sqnr", "fisher", "ap")

Feeds = Iterable[Mapping[str, NDArray[Any]]]


@dataclass(frozen=True)
class _Found:
    """What a metric found: layer → loss (and SQNR in dB where it was measured), photos, people, the float AP."""

    losses: Mapping[str, float]
    images: int
    people: int = 0
    sqnr_db: Mapping[str, float] = field(default_factory=dict)
    float_ap: float | None = None


def check_metric(metric: str) -> None:
    """Raise UsageError for an unknown metric, UnavailableError where what it needs is not installed."""
    if metric not in METRICS:
        raise UsageError("the metric is not known", expected=" or ".join(METRICS), found=repr(metric))
    if metric == "fisher" and not _has_torch():
        raise UnavailableError(
            "the metric fisher needs torch",
            expected="the optional package torch",
            found="no torch",
            do="pip install 'qtoolkit[train]', or use --metric oks",
        )


def _has_torch() -> bool:
    try:
        return importlib.util.find_spec("torch") is not None
    # An import hook may refuse by raising; a half-removed package has no spec.
    except (ImportError, ValueError):
        return False


def analyse_sensitivity(
    quantizer: Quantizer,
    head: Head,
    feeds: Feeds | LabelledPhotos,
    *,
    metric: Metric,
    layers: Sequence[str] | None = None,
    precision: Precision = Precision.INT8,
    calibration_sha256: str = "",
    model_sha256: str = "",
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Sensitivity:
    """The loss of every layer (or of ``layers``) at ``precision``, one at a time, on the images of ``feeds``.

    The metric ``ap`` takes LabelledPhotos. ``progress`` is called with photos times layers done. Raises UsageError for
    an unknown metric, for ``oks`` and ``fisher`` where the float network finds nobody on these images, and for ``ap``
    without labels; UnavailableError for ``fisher`` without torch.
    """
    check_metric(metric)
    started = perf_counter()
    chosen = [layer for layer in quantizer.layers if layers is None or layer.name in set(layers)]
    work = _Work(quantizer, head, chosen, precision, threads, progress)
    if isinstance(feeds, LabelledPhotos):
        found = _by_ap(work, feeds) if metric == "ap" else _without_labels(work, metric, _feeds_of(work, feeds))
    elif metric == "ap":
        raise _no_labels()
    else:
        found = _without_labels(work, metric, feeds)
    total = sum(layer.macs for layer in quantizer.layers) or 1
    return Sensitivity(
        metric=metric,
        precision=precision,
        target=quantizer.target.name,
        model_sha256=model_sha256,
        calibration_sha256=calibration_sha256,
        part=feeds.part if isinstance(feeds, LabelledPhotos) else "calib",
        images=found.images,
        people=found.people,
        float_ap=found.float_ap,
        seconds=round(perf_counter() - started, 3),
        layers=tuple(_row(layer, found, total) for layer in chosen),
    )


def _row(layer: Layer, found: _Found, total_macs: int) -> LayerSensitivity:
    return LayerSensitivity(
        layer=layer.name,
        loss=found.losses[layer.name],
        sqnr_db=found.sqnr_db.get(layer.name),
        macs=layer.macs,
        macs_share=layer.macs / total_macs,
        weights=prod(layer.weight_shape),
    )


@dataclass(frozen=True)
class _Work:
    """What every metric needs: the network, the layers to try, and how."""

    quantizer: Quantizer
    head: Head
    layers: Sequence[Layer]
    precision: Precision
    threads: int | None
    progress: Callable[[int], None] | None

    def try_each(self, feeds: Feeds, judge: Callable[[int, str | None, Mapping[str, NDArray[Any]]], None]) -> int:
        """Have ``judge`` see the outputs with each layer quantized alone; returns the number of photos."""
        names = [layer.name for layer in self.layers]
        with tempfile.TemporaryDirectory(prefix="qtoolkit-") as folder:
            trials = prepare_trials(self.quantizer, names, self.precision, Path(folder), self.threads)
            model = self.quantizer.model
            return run_trials(
                model, trials, feeds, judge, threads=self.threads, progress=self.progress,
                integer_kernels=self.quantizer.target.backend == "ort-cpu",
            )  # fmt: skip


def _feeds_of(work: _Work, photos: LabelledPhotos) -> Feeds:
    return ApJudge(work.head, photos.samples, network_input(work.quantizer.model).name).feeds()


def _without_labels(work: _Work, metric: Metric, feeds: Feeds) -> _Found:
    return _by_fisher(work, feeds) if metric == "fisher" else _by_outputs(work, feeds, metric == "oks")


def _by_outputs(work: _Work, feeds: Feeds, wants_oks: bool) -> _Found:
    judge = OutputJudge(work.head, sigmas_of(work.head), wants_oks)
    count = work.try_each(feeds, judge)
    if wants_oks and not judge.people:
        raise _nobody(count)
    nmse = {layer.name: judge.nmse(layer.name) for layer in work.layers}
    sqnr_db = {name: float(-10.0 * np.log10(noise)) for name, noise in nmse.items() if noise > 0.0}
    losses = {layer.name: judge.oks_loss(layer.name) for layer in work.layers} if wants_oks else nmse
    return _Found(losses, count, judge.people, sqnr_db)


def _by_ap(work: _Work, photos: LabelledPhotos) -> _Found:
    judge = ApJudge(work.head, photos.samples, network_input(work.quantizer.model).name)
    count = work.try_each(judge.feeds(), judge)
    of_float = judge.ap(None)
    names = [layer.name for layer in work.layers]
    return _Found({name: of_float - judge.ap(name) for name in names}, count, float_ap=of_float)


def _by_fisher(work: _Work, feeds: Feeds) -> _Found:
    # Imported here: this module is used where torch is not installed.
    from qtoolkit.quantization.fisher import fisher_losses

    progress, layers = work.progress, len(work.layers)
    found = fisher_losses(
        work.quantizer, work.head, feeds, work.layers, work.precision, threads=work.threads,
        progress=None if progress is None else lambda photos: progress(photos * layers),
    )  # fmt: skip
    if found.people == 0 and found.takes_people:
        raise _nobody(found.images)
    return _Found(found.losses, found.images, found.people)


def _no_labels() -> UsageError:
    return UsageError(
        "the metric ap needs labels",
        expected="photos with labels (LabelledPhotos)",
        found="photos without",
        do="use --metric oks, which needs none",
    )


def _nobody(images: int) -> UsageError:
    return UsageError(
        "sensitivity by poses needs people on the calibration photos",
        expected=f"at least one person that the float network finds with a score above {CONFIDENT} "
        f"and a keypoint confidence above {LABELLED_CONFIDENCE}",
        found=f"nobody on {images} images",
        do="calibrate on photos with people, or use --metric sqnr",
    )
