"""The loss of YOLO-Pose: box, objectness, keypoints, keypoint confidence.

Source: Texas Instruments' edgeai-yolov5, ``utils/loss.py`` and the published gains. Per level, over the M matches of
``assignment.match_anchors``, everything in cells::

    box         0.05 · mean(1 − CIoU)
    objectness  1.0 · balance · mean over cells and anchors BCE(logit, IoU of the match, or 0), balance 4, 1, .25, .06
    keypoints   0.10 · mean over labelled keypoints of 1 − exp(−d² / (4 σ² · w · h)), w · h of the labelled box
    confidence  0.5 · mean over keypoints BCE(logit, 1 where the keypoint is labelled and inside the image, else 0)

and the sum over the levels, times the number of images, is what is minimised. The class loss is zero with one class.
Of a person without a single labelled keypoint only the box is learned. Cells in a crowd count neither as person nor as
background, unless a labelled person is matched there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from qtoolkit.data.skeletons import COCO17
from qtoolkit.training.assignment import Matches, crowd_cells, match_anchors

__all__ = ["BALANCE", "GAINS", "LOSS_PARTS", "PoseLoss", "Targets", "ciou", "keypoint_gain"]

GAINS = {"box": 0.05, "objectness": 1.0, "keypoints": 0.10, "confidence": 0.5}
"""Published gains; that of the keypoints is for ``oks``, ``keypoint_gain`` says it for the others."""
BALANCE = (4.0, 1.0, 0.25, 0.06)
"""Weight of the objectness of P3, P4, P5, P6."""
LOSS_PARTS = tuple(GAINS)
"""Names of the parts, in the order in which ``PoseLoss`` returns them."""

_SIGMAS = tuple(COCO17.sigmas.tolist())
_TYPICAL_ERROR = 0.05
_TYPICAL_CELLS = 7.2
_MEAN_ABSOLUTE_COSINE = 2 / math.pi


@dataclass(frozen=True, eq=False)
class Targets:
    """The people of a batch as tensors of one device; shapes and units as in ``dataset.Batch``."""

    person_image: Tensor
    boxes: Tensor
    keypoints: Tensor
    labelled: Tensor
    crowd_image: Tensor
    crowds_xyxy: Tensor


def keypoint_gain(kind: str) -> float:
    """Gain of the keypoint loss ``kind`` (oks, l1, l1-scaled) at which the three are equally large for a typical error.

    Typical: a distance of 5 % of √(w·h), in any direction, for all 17 keypoints, in a box of √(w·h) = 7.2 cells, the
    median over the 12 anchors. There the OKS loss is the mean of 1 − exp(−0.05² / 4σ²), ``l1-scaled`` is 0.05 · 2/π
    and ``l1`` 7.2 times that.
    """
    sigmas = np.array(_SIGMAS)
    by_oks = float(np.mean(1 - np.exp(-(_TYPICAL_ERROR**2) / (4 * sigmas**2))))
    by_scaled_l1 = _TYPICAL_ERROR * _MEAN_ABSOLUTE_COSINE
    ratio = {"oks": 1.0, "l1-scaled": by_oks / by_scaled_l1, "l1": by_oks / (by_scaled_l1 * _TYPICAL_CELLS)}
    return GAINS["keypoints"] * ratio[kind]


def ciou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Complete IoU (M,) of boxes ``a`` with ``b``, both (M, 4) cx, cy, w, h; and the plain IoU (M,).

    CIoU = IoU − ρ²/c² − α·v with ρ the distance of the centres, c the diagonal of the enclosing box,
    v = 4/π² · (atan(w_b/h_b) − atan(w_a/h_a))² and α = v / (v − IoU + 1), not differentiated (Zheng et al. 2020).
    """
    epsilon = 1e-7
    low_a, high_a = a[:, :2] - a[:, 2:] / 2, a[:, :2] + a[:, 2:] / 2
    low_b, high_b = b[:, :2] - b[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2
    shared = (torch.minimum(high_a, high_b) - torch.maximum(low_a, low_b)).clamp(min=0).prod(dim=1)
    union = a[:, 2:].prod(dim=1) + b[:, 2:].prod(dim=1) - shared + epsilon
    iou = shared / union
    diagonal = (torch.maximum(high_a, high_b) - torch.minimum(low_a, low_b)).square().sum(dim=1) + epsilon
    distance = (a[:, :2] - b[:, :2]).square().sum(dim=1)
    angle_a, angle_b = torch.atan(a[:, 2] / (a[:, 3] + epsilon)), torch.atan(b[:, 2] / (b[:, 3] + epsilon))
    v = 4 / math.pi**2 * (angle_b - angle_a).square()
    with torch.no_grad():
        alpha = v / (v - iou + (1 + epsilon))
    return iou - distance / diagonal - alpha * v, iou


class PoseLoss:
    """The loss of a batch. ``kind`` of the keypoint loss: oks, l1 (in cells) or l1-scaled (by √(w·h) of the box).

    ``gains`` of the parts; that of the keypoints is for oks, the others get theirs in proportion (``keypoint_gain``).
    ``total_of`` turns a count of this process into that of all processes, and ``processes`` is how many there are: each
    computes its share of the loss of the whole batch, times ``processes``, because their gradients are averaged.
    """

    def __init__(
        self,
        anchors: Tensor,
        strides: Sequence[int],
        kind: str = "oks",
        total_of: Callable[[Tensor], Tensor] | None = None,
        processes: int = 1,
        gains: Mapping[str, float] = GAINS,
    ) -> None:
        self._anchors = anchors
        self._strides = tuple(strides)
        self._kind = kind
        self._gains = {**gains, "keypoints": gains["keypoints"] * keypoint_gain(kind) / GAINS["keypoints"]}
        self._sigmas = torch.tensor(_SIGMAS, device=anchors.device)
        self._total_of = total_of or (lambda count: count)
        self._processes = processes

    def __call__(
        self, raw: Sequence[Tensor], targets: Targets, widths: Sequence[float] = (1.0,)
    ) -> tuple[Tensor, Tensor]:
        """The loss to minimise (a scalar: the weighted sum times the images of all processes), and its parts.

        ``widths``: the OKS loss is the mean of those with sigmas so many times as wide, which gives far keypoints a
        gradient.

        raw  per level (B, A, H, W, 6 + 3K) of any float type; computed in float32, or float64 where raw is.
        The parts (4,), detached: LOSS_PARTS with their gains, this process's share of the mean over images.
        """
        matches = [self._matches(level, output, targets) for level, output in enumerate(raw)]
        counts = self._counts(matches, targets)
        parts = raw[0].new_zeros(len(LOSS_PARTS), dtype=torch.promote_types(raw[0].dtype, torch.float32))
        for level, output in enumerate(raw):
            parts = parts + self._level(level, output, matches[level], targets, counts[level], widths)
        images = raw[0].shape[0]
        return parts.sum() * images * self._processes, parts.detach()

    def _matches(self, level: int, output: Tensor, targets: Targets) -> Matches:
        stride = self._strides[level]
        grid_wh = (output.shape[3], output.shape[2])
        return match_anchors(targets.person_image, targets.boxes, self._anchors[level], stride, grid_wh)

    def _counts(self, matches: Sequence[Matches], targets: Targets) -> Tensor:
        """(L, 3) float: matches, labelled keypoints among them, keypoints whose confidence is known; mean of processes.

        Dividing by the mean over the processes makes the average of their gradients that of one large batch.
        """
        known = targets.labelled.sum(), targets.keypoints.shape[1]
        rows = []
        for match in matches:
            labelled = targets.labelled[match.person]
            shown = targets.keypoints[match.person, :, 2].sum()
            rows.append(
                torch.stack([labelled.new_tensor(len(labelled), dtype=shown.dtype), shown, labelled.sum() * known[1]])
            )
        return self._total_of(torch.stack(rows)) / self._processes

    def _level(
        self, level: int, output: Tensor, match: Matches, targets: Targets, counts: Tensor, widths: Sequence[float]
    ) -> Tensor:
        _, a, h, w, channels = output.shape
        # One row per match by index_select: its gradient is added up in a fixed order, that of [...] is not.
        flat = ((match.image * a + match.anchor) * h + match.row) * w + match.column
        rows = output.reshape(-1, channels).index_select(0, flat)
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        box, iou = self._box(level, rows, match, targets)
        keypoints, confidence = self._keypoints(level, rows, match, targets, widths)
        objectness = self._objectness(level, output, flat, iou, targets)
        matched, shown, known = counts.clamp(min=1e-9).unbind()
        gains = self._gains
        return torch.stack(
            [
                gains["box"] * box / matched,
                gains["objectness"] * objectness,
                gains["keypoints"] * keypoints / shown,
                gains["confidence"] * confidence / known,
            ]
        )

    def _box(self, level: int, rows: Tensor, match: Matches, targets: Targets) -> tuple[Tensor, Tensor]:
        """Sum of 1 − CIoU over the matches, and the IoU (M,) of each."""
        stride = self._strides[level]
        cell = torch.stack([match.column, match.row], dim=1)
        wanted = targets.boxes[match.person] / stride
        wanted = torch.cat([wanted[:, :2] - cell, wanted[:, 2:]], dim=1)
        anchors = self._anchors[level][match.anchor] / stride
        found = torch.cat([rows[:, :2].sigmoid() * 2 - 0.5, (rows[:, 2:4].sigmoid() * 2).square() * anchors], dim=1)
        similar, iou = ciou(found, wanted.to(found.dtype))
        return (1 - similar).sum(), iou.detach().clamp(min=0)

    def _objectness(self, level: int, output: Tensor, flat: Tensor, iou: Tensor, targets: Targets) -> Tensor:
        b, a, h, w, _ = output.shape
        logits = output[..., 4].reshape(-1)
        logits = logits.to(iou.dtype)
        # Where two people are matched with one anchor of a cell, the box that fits better counts.
        wanted = torch.zeros_like(logits).scatter_reduce(0, flat, iou, "amax")
        loss = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        if len(targets.crowd_image):
            unknown = crowd_cells(targets.crowd_image, targets.crowds_xyxy, b, self._strides[level], (w, h))
            unknown = unknown[:, None].expand(b, a, h, w).reshape(-1).index_fill(0, flat, False)
            loss = loss.masked_fill(unknown, 0.0)
        return loss.mean() * BALANCE[level]

    def _keypoints(
        self, level: int, rows: Tensor, match: Matches, targets: Targets, widths: Sequence[float]
    ) -> tuple[Tensor, Tensor]:
        """Sums of the keypoint loss over labelled keypoints and of the confidence loss over known ones."""
        stride = self._strides[level]
        found = rows[:, 6:].reshape(len(rows), rows.shape[1] // 3 - 2, 3)
        wanted = targets.keypoints[match.person].to(found.dtype)
        cell = torch.stack([match.column, match.row], dim=1)[:, None]
        difference = found[..., :2] * 2 - 0.5 - (wanted[..., :2] / stride - cell)
        area = (targets.boxes[match.person, 2:] / stride).prod(dim=1, keepdim=True).to(found.dtype)
        if self._kind == "oks":
            squared = difference.square().sum(dim=-1)
            exponent = squared / (4 * self._sigmas.to(found.dtype).square() * area + 1e-9)
            loss = torch.stack([1 - torch.exp(-exponent / width**2) for width in widths]).mean(dim=0)
        else:
            loss = difference.abs().mean(dim=-1)
            if self._kind == "l1-scaled":
                loss = loss / area.sqrt()
        shown = wanted[..., 2]
        confidence = functional.binary_cross_entropy_with_logits(found[..., 2], shown, reduction="none")
        known = targets.labelled[match.person][:, None]
        # Not by a product: the place of an unlabelled keypoint may be anything, and 0 · inf is no 0.
        return torch.where(shown > 0, loss, 0.0).sum(), torch.where(known, confidence, 0.0).sum()
