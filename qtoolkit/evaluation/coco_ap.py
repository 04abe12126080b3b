"""COCO keypoint AP through pycocotools: the one door to that package."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from qtoolkit.data.people import People
from qtoolkit.data.skeletons import COCO17
from qtoolkit.errors import DataSetError, UsageError

__all__ = ["MAX_DETECTIONS", "ApInterval", "ApMetrics", "bootstrap_interval", "coco_keypoint_ap", "counted_people"]

MAX_DETECTIONS = 20
"""People per image that the COCO keypoint metrics look at, most confident first."""


@dataclass(frozen=True)
class ApMetrics:
    """The COCO keypoint metrics, 0–100, averaged over OKS 0.50:0.05:0.95 unless the name says one OKS.

    ap_m is of people of 32²–96² pixels, ap_l of larger ones; None where there are no labelled people of that size.
    ar is the average recall with at most 20 people per image.
    """

    ap: float
    ap50: float
    ap75: float
    ap_m: float | None
    ap_l: float | None
    ar: float


@dataclass(frozen=True)
class ApInterval:
    """An AP (or a difference of two APs) with the interval that resampling the images gives it; 0–100.

    ``lo`` and ``hi`` enclose the middle ``level`` (0–1) of ``resamples`` draws of ``images`` images.
    """

    value: float
    lo: float
    hi: float
    level: float
    resamples: int
    images: int


def coco_keypoint_ap(
    ground_truth: Mapping[str, Any],
    predictions: Mapping[int, People],
    image_ids: Iterable[int],
    sigmas: NDArray[np.floating] = COCO17.sigmas,
) -> ApMetrics:
    """The COCO keypoint metrics of ``predictions`` on ``image_ids``.

    ground_truth  a COCO dictionary (images, annotations, categories with one category); it is not changed
    predictions   image id → People in pixels of the original image; an image that is not there has no detections
    image_ids     the images that count, each once; predictions of other images are ignored
    sigmas        (K,) tolerance of each keypoint

    Crowds and people without labelled keypoints are ignored as COCO does. No detections at all are an AP of 0.0.
    The figures are those of pycocotools, to the last digit. Raises UsageError where K differs between predictions,
    labels and sigmas, DataSetError where no image has a labelled person.
    """
    evaluation = _evaluated(ground_truth, predictions, image_ids, sigmas)
    with _silence():
        evaluation.accumulate()
        evaluation.summarize()
    percent = [float(value) * 100 for value in evaluation.stats]
    ap_m, ap_l = (value if value >= 0 else None for value in percent[3:5])
    return ApMetrics(ap=percent[0], ap50=percent[1], ap75=percent[2], ap_m=ap_m, ap_l=ap_l, ar=percent[5])


def counted_people(ground_truth: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The annotations that AP is of: people with labelled keypoints that are no crowd."""
    return [a for a in ground_truth["annotations"] if a["num_keypoints"] > 0 and not a.get("iscrowd")]


def bootstrap_interval(
    ground_truth: Mapping[str, Any],
    predictions: Mapping[int, People],
    image_ids: Iterable[int],
    *,
    baseline: Mapping[int, People] | None = None,
    sigmas: NDArray[np.floating] = COCO17.sigmas,
    n: int = 200,
    seed: int = 0,
    level: float = 0.95,
) -> ApInterval:
    """Percentile bootstrap over images of the AP, or of AP(predictions) − AP(baseline) where a baseline is given.

    Both networks are resampled together, image by image: the interval of a difference is much narrower than that of
    either AP, because a hard image is hard for both. A draw without a labelled person is drawn again. Arguments,
    errors and conventions as ``coco_keypoint_ap``; n is at least 1 and level lies between 0 and 1 (UsageError).
    """
    if n < 1 or not 0 < level < 1:
        raise UsageError(
            "the bootstrap cannot be drawn",
            expected="n of at least 1 and a level between 0 and 1",
            found=f"n {n}, level {level}",
            do="leave them at 200 and 0.95",
        )
    image_ids = sorted(set(image_ids))
    sets = [predictions] if baseline is None else [predictions, baseline]
    evaluations = [_evaluated(ground_truth, one, image_ids, sigmas) for one in sets]
    labelled = _images_with_people(evaluations[0])
    random = np.random.default_rng(seed)

    def figure(images: NDArray[np.intp]) -> float:
        aps = [_resampled_ap(evaluation, images) for evaluation in evaluations]
        return aps[0] - aps[1] if len(aps) == 2 else aps[0]

    draws: list[float] = []
    while len(draws) < n:
        images = random.integers(0, len(image_ids), len(image_ids))
        if labelled[images].any():
            draws.append(figure(images))
    lo, hi = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    value = figure(np.arange(len(image_ids)))
    return ApInterval(value, float(lo), float(hi), level, n, len(image_ids))


def _evaluated(
    ground_truth: Mapping[str, Any],
    predictions: Mapping[int, People],
    image_ids: Iterable[int],
    sigmas: NDArray[np.floating],
) -> Any:
    """A COCOeval on which ``evaluate`` has run."""
    wanted = sorted(set(image_ids))
    truth = _truth_of(ground_truth, wanted)
    _check(truth, {i: predictions[i] for i in wanted if i in predictions}, wanted, sigmas)
    with _silence():
        evaluation = COCOeval(
            _coco(truth), _coco({**truth, "annotations": _detections(predictions, truth)}), "keypoints"
        )
        evaluation.params.imgIds = wanted
        evaluation.params.kpt_oks_sigmas = np.asarray(sigmas, np.float64)
        evaluation.evaluate()
    return evaluation


def _truth_of(ground_truth: Mapping[str, Any], image_ids: list[int]) -> dict[str, Any]:
    """The part that these images need; annotations are copied, because pycocotools writes on them."""
    wanted = set(image_ids)
    return {
        "images": [image for image in ground_truth["images"] if image["id"] in wanted],
        "categories": list(ground_truth["categories"]),
        "annotations": [dict(a) for a in ground_truth["annotations"] if a["image_id"] in wanted],
    }


def _check(
    truth: Mapping[str, Any],
    predictions: Mapping[int, People],
    image_ids: list[int],
    sigmas: NDArray[np.floating],
) -> None:
    unknown = set(image_ids) - {image["id"] for image in truth["images"]}
    counted = counted_people(truth)
    if unknown or not counted:
        raise DataSetError(
            "the labels do not cover the images to evaluate" if unknown else "there is nobody to evaluate on",
            expected="an entry for every image, and at least one labelled person who is not in a crowd",
            found=f"{len(unknown)} images without an entry (id {min(unknown)} …)"
            if unknown
            else f"{len(image_ids)} images with {len(truth['annotations'])} annotations, none of them such a person",
            do="evaluate on images that these labels were made for",
        )
    counts = {len(sigmas)} | {len(a["keypoints"]) // 3 for a in truth["annotations"]}
    counts |= {people.keypoint_count for people in predictions.values()}
    if len(counts) > 1:
        found = {people.keypoint_count for people in predictions.values()}
        raise UsageError(
            "the network and the labels have different skeletons",
            expected=f"{len(sigmas)} keypoints per person in predictions and labels",
            found=f"predictions with {sorted(found) or 'no'} keypoints, labels or sigmas with {sorted(counts - found)}",
            do="evaluate on a data set that is labelled with the network's own keypoints",
        )


def _coco(dataset: dict[str, Any]) -> Any:
    coco = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco


def _detections(predictions: Mapping[int, People], truth: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Detections in the form that ``COCO.loadRes`` gives them (an area from the extent of the keypoints).

    Written here because loadRes refuses an empty list. Only the people that the metrics look at are handed over:
    ten times fewer, with equal figures.
    """
    category_id = truth["categories"][0]["id"] if truth["categories"] else 1
    detections: list[dict[str, Any]] = []
    for image in truth["images"]:
        people = predictions.get(image["id"])
        if people is None:
            continue
        people = people.select(np.argsort(-people.scores, kind="stable")[:MAX_DETECTIONS])
        points = people.keypoints.astype(np.float64)
        corner, extent = points[..., :2].min(axis=1), np.ptp(points[..., :2], axis=1)
        for score, keypoints, low, size in zip(people.scores, points, corner, extent, strict=True):
            detections.append(
                {
                    "id": len(detections) + 1,
                    "image_id": image["id"],
                    "category_id": category_id,
                    "score": float(score),
                    "keypoints": keypoints.ravel().tolist(),
                    "bbox": [*low.tolist(), *size.tolist()],
                    "area": float(size[0] * size[1]),
                }
            )
    return detections


def _images_with_people(evaluation: Any) -> NDArray[np.bool_]:
    """Whether each image (in the order of imgIds) has a person that counts at any size."""
    results = evaluation.evalImgs[: len(evaluation.params.imgIds)]
    return np.array([one is not None and not np.all(one["gtIgnore"]) for one in results], np.bool_)


def _resampled_ap(evaluation: Any, images: NDArray[np.intp]) -> float:
    """AP over ``images``, indices into imgIds that may repeat, from the matches that ``evaluate`` has made."""
    shell = COCOeval(iouType="keypoints")
    # The first results in evalImgs are those of area range "all"; the AP of sizes is not asked for.
    shell.evalImgs = [evaluation.evalImgs[i] for i in images]
    shell.params.imgIds = list(range(len(images)))
    shell.params.catIds = evaluation.params.catIds[:1]
    shell.params.areaRng = evaluation.params.areaRng[:1]
    shell._paramsEval = shell.params
    with _silence():
        shell.accumulate()
    return float(shell.eval["precision"].mean()) * 100


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """pycocotools prints every step it takes."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
