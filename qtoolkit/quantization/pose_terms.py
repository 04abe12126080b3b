"""What of a pose network's outputs AP counts, as linear terms whose squares add up to 1 − OKS.

Around the outputs of the float network, with δ the change of an output, the loss of one confident person is to second
order::

    Σ_k (δx_k² + δy_k²) / (2 · area · (2·sigma_k)² · n)        the pose itself: 1 − OKS, n keypoints that are sure
    + Σ_b (1 − OKS_b) · exp(−gap_b / τ) · (δgap_b / τ)²        another row takes its place

The second line runs over the rows b that non-maximum suppression drops in favour of the person's own: gap_b is the
logit of the person's score minus that of b, OKS_b how similar the pose of b is. The nearer its score, the sooner noise
makes b the one that stays. τ = 0.3 is in logits, about what 8 bit moves the most sensitive scores by.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qtoolkit.data.people import People
from qtoolkit.data.skeletons import COCO17
from qtoolkit.evaluation.agreement import BOX_AREA_SHARE
from qtoolkit.evaluation.head_layouts import Head
from qtoolkit.evaluation.nms import DEFAULT_IOU_THRESHOLD, non_maximum_suppression
from qtoolkit.evaluation.oks import oks

__all__ = ["CONFIDENT", "FOUND", "LABELLED_CONFIDENCE", "PoseTerms", "labelled", "person_areas", "sigmas_of"]

CONFIDENT, FOUND = 0.4, 0.1
"""A person of the float network counts above the first score; one found by a quantized network above the second."""

LABELLED_CONFIDENCE = 0.5
"""A keypoint of the float network that is surer than this is compared with."""

_TEMPERATURE = 0.3
_SCORE_COLUMNS = {"yolov8-pose": (4,), "yolov5-pose": (4, 5)}
# A logit of a score beyond these would be infinite.
_LOWEST, _HIGHEST = 1e-6, 1 - 1e-6


def labelled(people: People) -> NDArray[np.bool_]:
    """(N, K): which keypoints are sure enough to be compared with."""
    return np.asarray(people.keypoints[..., 2] > LABELLED_CONFIDENCE, np.bool_)


def person_areas(people: People) -> NDArray[np.float64]:
    """(N,) area of each person in pixels², from its box; at least 1."""
    sides = people.boxes_xyxy[:, 2:] - people.boxes_xyxy[:, :2]
    return np.asarray(np.maximum(sides.prod(axis=1) * BOX_AREA_SHARE, 1.0), np.float64)


def sigmas_of(head: Head) -> NDArray[np.float64]:
    """(K,) tolerance of each keypoint: COCO's, or for another skeleton the mean of COCO's."""
    if head.keypoint_count == COCO17.keypoint_count:
        return np.asarray(COCO17.sigmas, np.float64)
    return np.full(head.keypoint_count, float(np.mean(COCO17.sigmas)))


@dataclass(frozen=True, eq=False)
class PoseTerms:
    """T terms of the rows of one image, each a sum of coefficient · output; ``people`` confident people made them.

    terms, rows, columns  (E,) int64    entry e belongs to a term and reads one element of the rows (A, C)
    coefficients          (E,) float64
    """

    shape: tuple[int, int]
    people: int
    count: int
    terms: NDArray[np.int64]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    coefficients: NDArray[np.float64]

    @staticmethod
    def known_for(head: Head) -> bool:
        """Whether the head has rows before non-maximum suppression, which the terms are made of."""
        return head.kind in _SCORE_COLUMNS

    @classmethod
    def of(cls, rows: NDArray[np.float32], head: Head) -> PoseTerms:
        """The terms of a float network's rows (A, C), as ``head`` lays them out; boxes and keypoints in pixels."""
        score_columns = _SCORE_COLUMNS[head.kind]
        first = max(score_columns) + 1
        candidates = np.flatnonzero(rows[:, score_columns].prod(axis=1) > FOUND)
        people = _people(rows[candidates], head, score_columns, first)
        kept = non_maximum_suppression(people.boxes_xyxy, people.scores)
        counts = (people.scores[kept] > CONFIDENT) & labelled(people.select(kept)).any(axis=1)
        kept = kept[counts]
        entries = _pose_entries(people, kept, sigmas_of(head), first)
        for person in kept:
            entries += _rival_entries(people, int(person), rows[candidates], score_columns, sigmas_of(head))
        flat = [
            (term, candidates[row], column, value) for term, entry in enumerate(entries) for row, column, value in entry
        ]
        table = np.array(flat, np.float64).reshape(-1, 4)
        terms, which, columns = table[:, :3].astype(np.int64).T
        return cls((rows.shape[0], rows.shape[1]), len(kept), len(entries), terms, which, columns, table[:, 3])

    def project(self, signs: NDArray[np.floating]) -> NDArray[np.float32]:
        """(A, C): the gradient of Σ sign · term with respect to the rows; ``signs`` (T,) of ±1.

        Over random signs, the mean square of its product with a change of the rows is the loss in the module's text.
        """
        gradient = np.zeros(self.shape, np.float64)
        np.add.at(gradient, (self.rows, self.columns), self.coefficients * np.asarray(signs, np.float64)[self.terms])
        return gradient.astype(np.float32)


_Entry = list[tuple[int, int, float]]


def _people(rows: NDArray[np.float32], head: Head, score_columns: tuple[int, ...], first: int) -> People:
    half = rows[:, 2:4] / 2
    boxes = np.concatenate([rows[:, :2] - half, rows[:, :2] + half], axis=1)
    points = rows[:, first:].reshape(len(rows), head.keypoint_count, 3)
    return People(boxes, rows[:, score_columns].prod(axis=1), points)


def _pose_entries(people: People, kept: NDArray[np.intp], sigmas: NDArray[np.float64], first: int) -> list[_Entry]:
    chosen = people.select(kept)
    sure, areas = labelled(chosen), person_areas(chosen)
    weights = 1 / np.sqrt(2 * areas[:, None] * (2 * sigmas) ** 2 * np.maximum(sure.sum(axis=1), 1)[:, None])
    return [
        [(int(kept[person]), first + 3 * int(k) + axis, float(weights[person, k]))]
        for person, k in zip(*np.nonzero(sure), strict=True)
        for axis in (0, 1)
    ]


def _rival_entries(
    people: People,
    person: int,
    rows: NDArray[np.float32],
    score_columns: tuple[int, ...],
    sigmas: NDArray[np.float64],
) -> list[_Entry]:
    own = people.select([person])
    rivals = np.flatnonzero(_iou(own.boxes_xyxy[0], people.boxes_xyxy) > DEFAULT_IOU_THRESHOLD)
    rivals = rivals[rivals != person]
    similar = oks(own.keypoints, people.select(rivals).keypoints, person_areas(own), labelled(own), sigmas)[0]
    scores = np.clip(people.scores.astype(np.float64), _LOWEST, _HIGHEST)
    logits = np.log(scores / (1 - scores))
    gaps = np.maximum(logits[person] - logits[rivals], 0.0)
    weights = np.sqrt(np.maximum(1.0 - similar, 0.0) * np.exp(-gaps / _TEMPERATURE)) / _TEMPERATURE
    slopes = 1 / (scores * (1 - scores))

    def moved(row: int, weight: float) -> _Entry:
        product = float(scores[row])
        # The score is the product of its columns: its slope by one of them is the product of the others.
        slope = weight * float(slopes[row])
        return [(row, c, slope * product / max(float(rows[row, c]), _LOWEST)) for c in score_columns]

    return [moved(person, float(w)) + moved(int(b), -float(w)) for b, w in zip(rivals, weights, strict=True)]


def _iou(box_xyxy: NDArray[np.float32], boxes_xyxy: NDArray[np.float32]) -> NDArray[np.float32]:
    low, high = np.maximum(box_xyxy[:2], boxes_xyxy[:, :2]), np.minimum(box_xyxy[2:], boxes_xyxy[:, 2:])
    shared = np.maximum(high - low, 0).prod(axis=1)
    areas = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(axis=1)
    own = (box_xyxy[2:] - box_xyxy[:2]).prod()
    return np.asarray(shared / np.maximum(areas + own - shared, np.float32(1e-9)), np.float32)
