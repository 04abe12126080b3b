"""The loss that makes a network repeat what another one says, without labels.

Compared are the outputs of the last layers, in front of the decoding, so that images of any size can be used. Most
places of an image are background, of which a pose network says only that nobody is there: how far the other numbers
are off counts in proportion to how sure the teacher is of a person at that place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from qtoolkit.evaluation.head_layouts import Head
from qtoolkit.graph.layers import find_layers, last_layers
from qtoolkit.graph.row_scales import restored_output
from qtoolkit.graph.view import GraphView
from qtoolkit.training.onnx_module import OnnxModule

__all__ = ["Distillation", "LossParts", "head_outputs", "score_channels"]

_BACKGROUND = 0.01
_ROW_SCORES = {"yolov8-pose": slice(4, 5), "yolov5-pose": slice(4, 6)}
_SCORE_WEIGHT, _LOGIT_WEIGHT = 10.0, 0.05


def head_outputs(model: onnx.ModelProto) -> tuple[str, ...]:
    """What the layers make behind which no layer follows, in graph order; where ``graph.equalize`` scaled their rows,
    the tensors with the scales taken out again, which are those of the float network."""
    last, view = set(last_layers(model)), GraphView(model)
    return tuple(restored_output(view, layer.output) for layer in find_layers(model) if layer.name in last)


def score_channels(model: onnx.ModelProto, head: Head | None) -> dict[str, Tensor]:
    """Which channels of which last layers the confidences are made of: tensor → indices (S,) int64.

    Found by the gradient of the decoded confidences. Empty where the head has none of its own per place (heatmaps), or
    where NMS stands between.
    """
    if head is None or head.kind not in _ROW_SCORES:
        return {}
    names = head_outputs(model)
    module = OnnxModule(model)
    module.requires_grad_(False)
    w, h = head.input_size_wh
    image = torch.full((1, 3, h, w), 0.5, requires_grad=True)
    found = module(image, capture=names)
    rows = found[head.outputs[0]]
    scores = rows[:, _ROW_SCORES[head.kind]] if head.anchors_last else rows[..., _ROW_SCORES[head.kind]]
    maps = [found[name] for name in names]
    gradients = torch.autograd.grad(scores.sum(), maps, allow_unused=True)
    channels: dict[str, Tensor] = {}
    for name, gradient in zip(names, gradients, strict=True):
        if gradient is not None and gradient.dim() == 4:
            used = gradient.abs().amax((0, 2, 3)).nonzero().flatten()
            if len(used):
                channels[name] = used
    return channels


@dataclass(frozen=True)
class LossParts:
    """The loss and what it is made of: ``scores`` and ``rest``, scalars."""

    total: Tensor
    scores: Tensor
    rest: Tensor


class Distillation:
    """Distance between the last layers' outputs of teacher and student.

    Per level of the pyramid, with p the teacher's confidence at a place (the largest over the anchors there) and
    w = p + 0.01, normalised to sum 1 over the batch: confidences by 10 · (KL(p ‖ q) averaged over places, plus
    0.05 · √w-weighted squared difference of the logits), every other channel by w-weighted squared difference, divided
    by the channel's variance under w. Without confidences w is uniform and only the second kind counts. KL divergence
    of Bernoulli variables: binary cross-entropy of q minus the entropy of p.

    ``outputs`` are the tensors compared, ``scores`` the confidence channels among them, as ``score_channels`` finds
    them. ``limit``: squared differences of more than so many standard deviations go on along a line (Huber), so that
    one photo on which the networks are far apart does not outweigh all the others; None: none do.
    """

    def __init__(self, outputs: tuple[str, ...], scores: Mapping[str, Tensor], limit: float | None = None) -> None:
        self.outputs = outputs
        self._scores = {name: channels.tolist() for name, channels in scores.items()}
        self._limit = limit
        self._variance: dict[str, Tensor] = {}
        self._channels: dict[tuple[str, torch.device], tuple[Tensor, Tensor]] = {}

    def measure_spread(self, teacher: Mapping[str, Tensor]) -> None:
        """Take the variances that differences are divided by from this batch of the teacher's, from now on.

        Without this call they are those of the first batch.
        """
        self._variance.clear()
        self(teacher, teacher)

    def __call__(self, teacher: Mapping[str, Tensor], student: Mapping[str, Tensor]) -> LossParts:
        """The loss of one batch; both map each tensor of ``outputs`` to (B, C, H, W) or (B, …) values of one device."""
        confidence = self.place_weights(teacher)
        scores = rest = torch.zeros((), device=teacher[self.outputs[0]].device)
        for name in self.outputs:
            wanted, given = teacher[name], student[name]
            chosen, others = self._channels_of(name, wanted)
            weight = confidence.get(tuple(wanted.shape[2:]))
            if len(chosen):
                scores = scores + _score_loss(wanted[:, chosen], given[:, chosen])
            if len(others):
                rest = rest + self._difference(name, wanted[:, others], given[:, others], weight)
        levels = max(1, len({tuple(teacher[name].shape[2:]) for name in self.outputs}))
        scores, rest = scores / levels, rest / levels
        return LossParts(_SCORE_WEIGHT * scores + rest, scores.detach(), rest.detach())

    def place_weights(self, teacher: Mapping[str, Tensor]) -> dict[tuple[int, ...], Tensor]:
        """How much each place counts: weights (B, 1, H, W) that sum to 1, of each size of map that has confidences."""
        weights = {}
        for name in self._scores:
            chosen, _ = self._channels_of(name, teacher[name])
            sure = teacher[name][:, chosen].sigmoid().amax(1, keepdim=True) + _BACKGROUND
            weights[tuple(sure.shape[2:])] = sure / sure.sum()
        return weights

    def _channels_of(self, name: str, values: Tensor) -> tuple[Tensor, Tensor]:
        """Indices of the confidence channels of an output and of its other ones, where ``values`` lie.

        Made once for each device: to send them with every batch, or to look for the ones in a mask, would make the
        processor wait for a GPU.
        """
        key = name, values.device
        if key not in self._channels:
            chosen = self._scores.get(name, [])
            others = sorted({*range(values.shape[1])} - {*chosen})
            self._channels[key] = (
                torch.tensor(chosen, dtype=torch.int64, device=values.device),
                torch.tensor(others, dtype=torch.int64, device=values.device),
            )
        return self._channels[key]

    def _difference(self, name: str, wanted: Tensor, given: Tensor, weight: Tensor | None) -> Tensor:
        if weight is None or wanted.dim() != 4:
            spread = self._variance.setdefault(name, wanted.var().clamp(min=1e-6))
            return self._squared((given - wanted).square() / spread).mean()
        if name not in self._variance:
            mean = (weight * wanted).sum((0, 2, 3), keepdim=True)
            self._variance[name] = (weight * (wanted - mean).square()).sum((0, 2, 3), keepdim=True).clamp(min=1e-3)
        return (weight * self._squared((given - wanted).square() / self._variance[name])).sum((0, 2, 3)).mean()

    def _squared(self, squares: Tensor) -> Tensor:
        """Squares u² as they are counted: c · (2 · |u| − c) beyond the limit c."""
        c = self._limit
        if c is None:
            return squares
        return torch.where(squares <= c * c, squares, c * (2 * squares.clamp(min=c * c).sqrt() - c))


def _score_loss(wanted: Tensor, given: Tensor) -> Tensor:
    sure = wanted.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(wanted, sure)
    divergence = F.binary_cross_entropy_with_logits(given, sure) - entropy
    logits = ((sure + _BACKGROUND).sqrt() * (given - wanted).clamp(-20, 20).square()).mean()
    return divergence + _LOGIT_WEIGHT * logits
