"""How much each layer suffers when it alone is quantized.

Two metrics, both without labels, against the float network on calibration photos:

- ``oks``: mean over the float network's confident people of 1 − OKS of the most similar person that the network with
  one layer quantized still finds. It is what AP counts, made continuous.
- ``sqnr``: noise over signal (NMSE) at the outputs, mean over boxes, scores, keypoints and keypoint confidences, each
  by itself: together the pixels would drown the rest.
"""

from __future__ import annotations

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
from qtoolkit.data.people import People
from qtoolkit.data.skeletons import COCO17
from qtoolkit.errors import UsageError
from qtoolkit.evaluation.decode import decode, output_blocks
from qtoolkit.evaluation.heads import Head
from qtoolkit.evaluation.nms import non_maximum_suppression
from qtoolkit.evaluation.oks import oks
from qtoolkit.graph.layers import Layer
from qtoolkit.quantization.ptq import Quantizer
from qtoolkit.quantization.trials import prepare_trials, run_trials

__all__ = ["METRICS", "Metric", "analyse_sensitivity"]

Metric = Literal["oks", "sqnr"]
METRICS: tuple[Metric, ...] = ("oks", "sqnr")

# A person of the float network counts above this score; one found by the quantized network above the lower one.
_CONFIDENT, _FOUND = 0.4, 0.1
_LABELLED_CONFIDENCE = 0.5
# Share of a person's box that the person covers: COCO's areas are of the outline.
_AREA_SHARE = 0.53


@dataclass
class _Judge:
    """Collects losses of every layer while trials run.

    ``reference`` and ``blocks`` are the float results of the photos of the current group alone; ``people`` counts the
    reference poses of all photos.
    """

    head: Head
    sigmas: NDArray[np.floating[Any]]
    wants_oks: bool
    reference: dict[int, People] = field(default_factory=dict)
    blocks: dict[int, dict[str, NDArray[np.float32]]] = field(default_factory=dict)
    energies: dict[int, dict[str, float]] = field(default_factory=dict)
    oks_losses: dict[str, list[NDArray[np.float64]]] = field(default_factory=dict)
    noise: dict[str, dict[str, NDArray[np.float64]]] = field(default_factory=dict)
    people: int = 0
    _trying: bool = False

    def __call__(self, photo: int, layer: str | None, outputs: Mapping[str, NDArray[Any]]) -> None:
        if layer is None:
            self._keep_reference(photo, outputs)
            return
        self._trying = True
        if self.wants_oks and len(self.reference[photo]):
            self.oks_losses.setdefault(layer, []).append(self._pose_losses(photo, outputs))
        # Every trial of a layer comes from one thread at a time, so its own entries need no lock.
        sums = self.noise.setdefault(layer, {})
        for name, block in output_blocks(outputs, self.head).items():
            difference = (block - self.blocks[photo][name]).ravel()
            pair = np.array([np.dot(difference, difference), self.energies[photo][name]], np.float64)
            sums[name] = sums.get(name, np.zeros(2)) + pair

    def _keep_reference(self, photo: int, outputs: Mapping[str, NDArray[Any]]) -> None:
        # A float run behind trials opens a new group: nothing is compared with the old one any more.
        if self._trying:
            self.reference.clear()
            self.blocks.clear()
            self.energies.clear()
            self._trying = False
        self.blocks[photo] = output_blocks(outputs, self.head)
        self.energies[photo] = {name: _energy(block) for name, block in self.blocks[photo].items()}
        if self.wants_oks:
            confident = self._people(outputs, _CONFIDENT)
            # A pose without a single sure keypoint has no OKS.
            self.reference[photo] = confident.select(np.flatnonzero(_labelled(confident).any(axis=1)))
            self.people += len(self.reference[photo])

    def _people(self, outputs: Mapping[str, NDArray[Any]], score: float) -> People:
        people = decode(outputs, self.head, score)
        if self.head.nms_inside or self.head.kind == "heatmap":
            return people
        return people.select(non_maximum_suppression(people.boxes_xyxy, people.scores))

    def _pose_losses(self, photo: int, outputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
        reference, found = self.reference[photo], self._people(outputs, _FOUND)
        if not len(found):
            return np.ones(len(reference))
        sides = reference.boxes_xyxy[:, 2:] - reference.boxes_xyxy[:, :2]
        areas = np.maximum(sides.prod(axis=1) * _AREA_SHARE, 1.0)
        similar = oks(reference.keypoints, found.keypoints, areas, _labelled(reference), self.sigmas)
        return np.asarray(1.0 - similar.max(axis=1), np.float64)

    def nmse(self, layer: str) -> float:
        """Mean over the blocks of noise energy / signal energy."""
        sums = self.noise.get(layer, {})
        ratios = [pair[0] / max(pair[1], 1e-30) for pair in sums.values()]
        return float(np.mean(ratios)) if ratios else 0.0

    def oks_loss(self, layer: str) -> float:
        """Mean of 1 − OKS over all people."""
        losses = self.oks_losses.get(layer, [])
        return float(np.concatenate(losses).mean()) if losses else 0.0

    def row(self, layer: Layer, total_macs: int) -> LayerSensitivity:
        """What was collected for one layer."""
        nmse = self.nmse(layer.name)
        return LayerSensitivity(
            layer=layer.name,
            loss=self.oks_loss(layer.name) if self.wants_oks else nmse,
            sqnr_db=None if nmse <= 0.0 else float(-10.0 * np.log10(nmse)),
            macs=layer.macs,
            macs_share=layer.macs / total_macs,
            weights=prod(layer.weight_shape),
        )


def analyse_sensitivity(
    quantizer: Quantizer,
    head: Head,
    feeds: Iterable[Mapping[str, NDArray[Any]]],
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

    Raises UsageError for an unknown metric, and for ``oks`` where the float network finds nobody on these images.
    """
    if metric not in METRICS:
        raise UsageError("the metric is not known", expected=" or ".join(METRICS), found=repr(metric))
    started = perf_counter()
    chosen = [layer for layer in quantizer.layers if layers is None or layer.name in set(layers)]
    judge = _Judge(head, _sigmas(head), metric == "oks")
    with tempfile.TemporaryDirectory(prefix="qtoolkit-") as folder:
        trials = prepare_trials(quantizer, [layer.name for layer in chosen], precision, Path(folder), threads)
        count = run_trials(
            quantizer.model, trials, feeds, judge, threads=threads, progress=progress,
            integer_kernels=quantizer.target.backend == "ort-cpu",
        )  # fmt: skip
    if metric == "oks" and not judge.people:
        raise _nobody(count)
    total = sum(layer.macs for layer in quantizer.layers) or 1
    return Sensitivity(
        metric=metric,
        precision=precision,
        target=quantizer.target.name,
        model_sha256=model_sha256,
        calibration_sha256=calibration_sha256,
        images=count,
        people=judge.people,
        seconds=round(perf_counter() - started, 3),
        layers=tuple(judge.row(layer, total) for layer in chosen),
    )


def _nobody(images: int) -> UsageError:
    return UsageError(
        "sensitivity by poses needs people on the calibration photos",
        expected=f"at least one person that the float network finds with a score above {_CONFIDENT} "
        f"and a keypoint confidence above {_LABELLED_CONFIDENCE}",
        found=f"nobody on {images} images",
        do="calibrate on photos with people, or use --metric sqnr",
    )


def _energy(block: NDArray[np.float32]) -> float:
    """Sum of squares."""
    flat = block.ravel()
    return float(np.dot(flat, flat))


def _labelled(people: People) -> NDArray[np.bool_]:
    """(N, K): which keypoints are sure enough to be compared with."""
    return np.asarray(people.keypoints[..., 2] > _LABELLED_CONFIDENCE, np.bool_)


def _sigmas(head: Head) -> NDArray[np.float64]:
    if head.keypoint_count == COCO17.keypoint_count:
        return np.asarray(COCO17.sigmas, np.float64)
    # COCO's mean tolerance, for a skeleton whose own is not known.
    return np.full(head.keypoint_count, float(np.mean(COCO17.sigmas)))
