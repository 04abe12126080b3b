"""How far a candidate network finds the same people as the reference network, without any label.

AP on a few hundred labelled photos moves by half a point between equally good roundings of one network, because
photos are few and labels are coarse. Agreement takes the confident poses of the reference network (the float one) as
the ground truth instead: it is 100 for the reference itself and falls only with what quantization changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtoolkit.data.people import People
from qtoolkit.data.skeletons import COCO17
from qtoolkit.evaluation.coco_ap import MAX_DETECTIONS, ApMetrics, coco_keypoint_ap, counted_people

__all__ = ["BOX_AREA_SHARE", "Agreement", "agreement", "reference_as_ground_truth"]

# COCO's area is that of a person's outline. Over 640 labelled people of COCO val2017 it is 0.528 of the box's area on
# average (median 0.541; 446 people of train2017: 0.515), so OKS means the same here as in COCO's own AP.
BOX_AREA_SHARE = 0.53

_LABELLED, _ABSENT = 2, 0


@dataclass(frozen=True)
class Agreement:
    """Keypoint metrics against the reference network's own poses, 0–100, and how many poses and images they rest on.

    ``metrics`` is None where the reference network finds nobody with confidence: then there is nothing to agree on.
    """

    metrics: ApMetrics | None
    people: int
    images: int

    @property
    def ap(self) -> float | None:
        """The AP of ``metrics``: the one figure of a table."""
        return None if self.metrics is None else self.metrics.ap


def agreement(
    reference: Mapping[int, People],
    candidate: Mapping[int, People],
    *,
    score_threshold: float = 0.5,
    doubtful_threshold: float = 0.25,
    keypoint_threshold: float = 0.5,
    sigmas: NDArray[np.floating] = COCO17.sigmas,
) -> Agreement:
    """AP of ``candidate`` with the confident poses of ``reference`` as ground truth; 100 for the reference itself.

    Both map image ids to People in pixels of the original image, decoded with one low score threshold (0.001); the
    images are those of ``reference``, and one without an entry in ``candidate`` has no detections. ``sigmas`` (K,).
    How the ground truth is made: ``reference_as_ground_truth``. Raises UsageError where K differs.
    """
    truth = reference_as_ground_truth(
        reference,
        score_threshold=score_threshold,
        doubtful_threshold=doubtful_threshold,
        keypoint_threshold=keypoint_threshold,
    )
    people = len(counted_people(truth))
    if not people:
        return Agreement(None, 0, len(reference))
    return Agreement(coco_keypoint_ap(truth, candidate, reference, sigmas), people, len(reference))


def reference_as_ground_truth(
    reference: Mapping[int, People],
    *,
    score_threshold: float = 0.5,
    doubtful_threshold: float = 0.25,
    keypoint_threshold: float = 0.5,
) -> dict[str, Any]:
    """The poses of a network as a COCO dictionary, for ``coco_keypoint_ap`` and ``bootstrap_interval``.

    - A person counts with a score of at least ``score_threshold``; in each image the 20 most confident at most, because
      COCO looks at no more detections and the others could not be found.
    - From ``doubtful_threshold`` on, and beyond those 20, people are ignored like COCO's crowds: who finds them is
      neither right nor wrong. Else a score that moves from 0.49 to 0.51 would be punished as a false alarm.
    - Keypoints with a confidence above ``keypoint_threshold`` are labelled, the others are absent.
    - The area is ``BOX_AREA_SHARE`` of the box's.
    """
    annotations: list[dict[str, Any]] = []
    for image_id, everybody in reference.items():
        people = everybody.select(np.argsort(-everybody.scores, kind="stable"))
        people = people.select(people.scores >= min(score_threshold, doubtful_threshold))
        for rank, (box_xyxy, score, keypoints) in enumerate(
            zip(people.boxes_xyxy.astype(np.float64), people.scores, people.keypoints.astype(np.float64), strict=True)
        ):
            labelled = keypoints[:, 2] > keypoint_threshold
            size_wh = np.maximum(box_xyxy[2:] - box_xyxy[:2], 0)
            columns = (keypoints[:, 0], keypoints[:, 1], np.where(labelled, _LABELLED, _ABSENT))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": 1,
                    "iscrowd": int(rank >= MAX_DETECTIONS or score < score_threshold),
                    "bbox": [*box_xyxy[:2].tolist(), *size_wh.tolist()],
                    "area": float(size_wh.prod()) * BOX_AREA_SHARE,
                    "num_keypoints": int(labelled.sum()),
                    "keypoints": np.stack(columns, axis=1).ravel().tolist(),
                }
            )
    return {
        "images": [{"id": image_id} for image_id in reference],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": annotations,
    }
