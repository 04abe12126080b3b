"""What a plan keeps of the float network, measured by running it on photos that no figure is reported on."""

from __future__ import annotations

from typing import Literal

import onnx

from qtoolkit.artifacts.plan import PrecisionPlan
from qtoolkit.backends.throughput import worker_count
from qtoolkit.data.people import People
from qtoolkit.data.samples import Samples, Split, collect_samples
from qtoolkit.data.sources import open_data_source
from qtoolkit.errors import UsageError
from qtoolkit.evaluation.agreement import agreement, reference_as_ground_truth
from qtoolkit.evaluation.coco_ap import ApInterval, bootstrap_interval, coco_keypoint_ap, counted_people
from qtoolkit.evaluation.pose_network import PoseNetwork, predict_set
from qtoolkit.quantization.labelled_photos import find_labelled_photos
from qtoolkit.quantization.ptq import Quantizer
from qtoolkit.quantization.run import Run

__all__ = ["PlanJudge", "better_network", "is_no_worse", "judge_of"]

_PHOTOS = 160
_LEVEL = 0.68
"""One standard deviation on either side: a network that is no better passes in one case of six."""


class PlanJudge:
    """Quantizes plans and runs them on ``photos``; what was measured once is not measured again.

    With labelled people on the photos a plan keeps AP / AP of float; without, agreement / 100: AP with the float
    network's confident people as the truth. Raises UsageError where the float network finds nobody.
    """

    def __init__(self, run: Run, quantizer: Quantizer, photos: Samples) -> None:
        self._run, self._quantizer, self._photos = run, quantizer, photos
        self._known: dict[tuple[tuple[str, str], ...], float] = {}
        self._float = self._people(None)
        self._ids = [sample.image_id for sample in photos if sample.image_id in self._float]
        self._truth = None if photos.annotations is None else photos.annotations.ground_truth(self._ids)
        whole = self._figure(self._float)
        if whole is None or whole <= 0.0:
            raise UsageError(
                "plans cannot be compared on these photos",
                expected="people that the float network finds",
                found=f"none on {len(self._ids)} photos",
                do="give photos of people in the part calib or train of the data set",
            )
        self._whole = whole

    @property
    def measured(self) -> Literal["ap", "agreement"]:
        """What is compared with the float network's own."""
        return "agreement" if self._truth is None else "ap"

    def kept(self, plan: PrecisionPlan) -> float:
        """Share of the float network's figure, 1 is all; above 1 where rounding happened to help."""
        key = tuple((layer, precision.value) for layer, precision in plan.layers.items())
        if key not in self._known:
            self._known[key] = (self._figure(self._people(plan)) or 0.0) / self._whole
        return self._known[key]

    def prefers(self, model: onnx.ModelProto, other: onnx.ModelProto, by_labels: bool = False) -> bool:
        """Whether ``model`` is better than ``other`` beyond chance, see ``difference``; True where nobody can tell."""
        found = self.difference(model, other, by_labels)
        return found is None or found.lo > 0.0

    def difference(self, model: onnx.ModelProto, other: onnx.ModelProto, by_labels: bool = False) -> ApInterval | None:
        """How much better ``model`` is than ``other``, with the bootstrap interval of 68 % over photos, which is what
        the draw of the photos makes of it; None where there is nobody to tell by.

        Better in agreement, AP with the float network's confident people as the truth; with ``by_labels`` in AP, where
        the photos have labels.
        """
        truth = self._truth if by_labels else None
        if truth is None:
            truth = reference_as_ground_truth({image: self._float[image] for image in self._ids})
        if not counted_people(truth):
            return None
        found, others = self._run_on_photos(model), self._run_on_photos(other)
        return bootstrap_interval(truth, found, self._ids, baseline=others, level=_LEVEL)

    def _people(self, plan: PrecisionPlan | None) -> dict[int, People]:
        return self._run_on_photos(self._quantizer.model if plan is None else self._quantizer.quantize(plan).model)

    def _run_on_photos(self, model: onnx.ModelProto) -> dict[int, People]:
        workers = worker_count(self._run.recipe.threads)
        with self._run.accuracy_runner(model) as runner:
            return predict_set(PoseNetwork(runner, self._run.head), self._photos, workers=workers)[0]

    def _figure(self, people: dict[int, People]) -> float | None:
        if self._truth is not None:
            return coco_keypoint_ap(self._truth, people, self._ids).ap
        return self._agreement(people)

    def _agreement(self, people: dict[int, People]) -> float | None:
        return agreement({image: self._float[image] for image in self._ids}, people).ap


def judge_of(run: Run, quantizer: Quantizer) -> tuple[PlanJudge, Samples, str]:
    """The judge of a run's plans, its photos, and the part of the data set that they are of; never of val.

    Labelled photos of train or, without those, the calibration photos, at most 160; without any labels the calibration
    photos, on which plans are compared by agreement.
    """
    source = open_data_source(run.recipe.data)
    try:
        found = find_labelled_photos(source, run.calibration, run.samples, _PHOTOS, run.recipe.seed)
        photos, part = found.samples, str(found.part)
    except UsageError:
        photos, part = _unlabelled(run), "calib"
    return PlanJudge(run, quantizer, photos), photos, part


def better_network(
    run: Run, quantizer: Quantizer, plan: PrecisionPlan, learned: onnx.ModelProto, by_labels: bool = False
) -> onnx.ModelProto:
    """``learned``, or PTQ's network under ``plan`` where the judge's photos do not show the other to be better.

    What learned too little, or the wrong thing, is not to be handed out as the better one. What was to repeat the float
    network is judged by how far it does, agreement, which moves less with the draw of photos than AP; ``by_labels``:
    what learned from labels by AP, where the judge has any (``PlanJudge.prefers``). Where the photos tell nothing,
    because the float network finds nobody on them, it is ``learned``.
    """
    try:
        judge = judge_of(run, quantizer)[0]
    except UsageError:
        return learned
    ptq = quantizer.quantize(plan).model
    return learned if judge.prefers(learned, ptq, by_labels) else ptq


def is_no_worse(run: Run, quantizer: Quantizer, plan: PrecisionPlan, model: onnx.ModelProto) -> bool:
    """Whether the judge's photos do not show ``model`` to be worse than PTQ's network under ``plan``, beyond chance."""
    try:
        judge = judge_of(run, quantizer)[0]
    except UsageError:
        return True
    found = judge.difference(model, quantizer.quantize(plan).model)
    return found is None or found.hi >= 0.0


def _unlabelled(run: Run) -> Samples:
    names = tuple(image.name for image in run.calibration.images)
    photos = collect_samples(Split(run.calibration.root, None, names), min(_PHOTOS, len(names)))
    return Samples(photos.samples, photos.skipped, None)
