"""The labels' part in a fine-tuning of one of our own networks, read from its ONNX graph: the loss of ``losses``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import onnx
import torch
from torch import Tensor

from qtoolkit.data.skeletons import COCO17
from qtoolkit.errors import UsageError
from qtoolkit.evaluation.head_layouts import Head
from qtoolkit.models.yolopose import ANCHORS, STRIDES, anchors_apart, decode
from qtoolkit.training.distill import head_outputs
from qtoolkit.training.losses import LOSS_PARTS, PoseLoss, Targets
from qtoolkit.training.onnx_module import OnnxModule

__all__ = ["LabelledLoss"]

_PER_CELL = 3
_ROW = 6 + 3 * COCO17.keypoint_count
_TOLERANCE = 1e-3

_Joined = Literal["apart", "ti"]


@dataclass(frozen=True, eq=False)
class LabelledLoss:
    """Loss of the last layers' outputs against labelled people, for a network of our architecture.

    ``levels``: the output tensors of P3, P4, …, boxes before keypoints; ``joined``: how a level's channels are put
    together (``YoloPoseConfig.head_order``).
    """

    levels: tuple[tuple[str, ...], ...]
    joined: _Joined
    loss: PoseLoss

    @classmethod
    def of(cls, model: onnx.ModelProto, head: Head | None) -> LabelledLoss:
        """The loss of ``model``, a prepared float network.

        Which output means what is not guessed: decoded as our network decodes, they must give the numbers that the
        graph itself gives. Raises UsageError where they do not: labels can teach our own networks alone.
        """
        found = None
        if head is not None and head.kind == "yolov5-pose" and head.keypoint_count == COCO17.keypoint_count:
            found = _match(model, head)
        if found is None:
            raise UsageError(
                "labels can teach only the networks that `qtool train` makes",
                expected=f"a YOLO-Pose head of {len(STRIDES)} levels, {COCO17.keypoint_count} keypoints, our anchors",
                found="another head" if head is None else f"{head.kind} with {head.keypoint_count} keypoints",
                do="leave the labels out: the float network teaches any other (--qat with --unlabeled)",
            )
        levels, joined = found
        return cls(levels, joined, PoseLoss(torch.tensor(ANCHORS), STRIDES))

    def __call__(self, outputs: Mapping[str, Tensor], targets: Targets) -> Tensor:
        """The loss, a scalar mean over the images, of the last layers' outputs, each (B, C, H, W)."""
        raw = _rows(outputs, self.levels, self.joined)
        total, _ = self.loss(raw, targets)
        return total / raw[0].shape[0]

    def parts(self, outputs: Mapping[str, Tensor], targets: Targets) -> dict[str, float]:
        """What the loss of these outputs is made of: box, objectness, keypoints, confidence."""
        _, parts = self.loss(_rows(outputs, self.levels, self.joined), targets)
        return dict(zip(LOSS_PARTS, parts.tolist(), strict=True))


def _match(model: onnx.ModelProto, head: Head) -> tuple[tuple[tuple[str, ...], ...], _Joined] | None:
    """Levels and order of channels that decode to the network's own output, if any do."""
    names = head_outputs(model)
    module = OnnxModule(model).eval().requires_grad_(False)
    w, h = head.input_size_wh
    image = torch.rand((1, 3, h, w), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = module(image, capture=names)
    levels = _levels({name: found[name] for name in names}, head)
    if levels is None:
        return None
    wanted = found[head.outputs[0]]
    orders: tuple[_Joined, ...] = ("apart", "ti")
    for order in orders:
        rows = decode(_rows(found, levels, order), torch.tensor(ANCHORS))
        # Relative to the size of the input: boxes and keypoints are pixels.
        if rows.shape == wanted.shape and bool(((rows - wanted).abs() <= _TOLERANCE * max(w, h)).all()):
            return levels, order
    return None


def _levels(outputs: Mapping[str, Tensor], head: Head) -> tuple[tuple[str, ...], ...] | None:
    """The outputs by the stride of their maps, finest first; None where they are not those of our strides."""
    w, h = head.input_size_wh
    by_stride: dict[int, list[str]] = {}
    for name, values in outputs.items():
        if values.dim() != 4 or w % values.shape[3] or w // values.shape[3] != h // values.shape[2]:
            return None
        by_stride.setdefault(w // values.shape[3], []).append(name)
    if tuple(sorted(by_stride)) != STRIDES:
        return None
    levels = tuple(
        tuple(sorted(by_stride[stride], key=lambda name: outputs[name].shape[1])) for stride in sorted(by_stride)
    )
    channels = [sum(outputs[name].shape[1] for name in level) for level in levels]
    same = all(len(one) == len(other) for one, other in pairwise(levels))
    return levels if same and set(channels) == {_PER_CELL * _ROW} else None


def _rows(outputs: Mapping[str, Tensor], levels: Sequence[Sequence[str]], joined: _Joined) -> list[Tensor]:
    """Logits per level as ``YoloPose.forward`` gives them, (B, 3, H, W, 6 + 3K)."""
    if joined == "ti":
        return [anchors_apart(torch.cat([outputs[name] for name in level], dim=1)) for level in levels]
    return [torch.cat([anchors_apart(outputs[name]) for name in level], dim=-1) for level in levels]
