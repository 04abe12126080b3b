"""YOLO-Pose on YOLOv5 with the outputs P3 to P6: every anchor finds a person with the box and the keypoints together.

Source: "YOLO-Pose" (arXiv 2204.06806) and Texas Instruments' edgeai-yolov5. Backbone of strides 2 to 64, PANet neck,
two convolutional heads per level, three anchors per cell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from qtoolkit.errors import UsageError
from qtoolkit.models.blocks import C3, SPP, ConvolutionStem, ConvolutionUnit, FocusStem, depthwise_unit
from qtoolkit.models.yolopose_config import YoloPoseConfig

__all__ = ["ANCHORS", "STRIDES", "DeployedYoloPose", "YoloPose", "YoloPoseConfig", "anchors_apart", "decode"]

STRIDES = (8, 16, 32, 64)
"""Pixels per cell of the levels P3, P4, P5, P6."""
ANCHORS = (
    ((19, 27), (44, 40), (38, 94)),
    ((96, 68), (86, 152), (180, 137)),
    ((140, 301), (303, 264), (238, 542)),
    ((436, 615), (739, 380), (925, 792)),
)
"""Width and height in pixels of the three anchors of each level."""

_PER_CELL = 3
_BOX_COLUMNS = 6
_OBJECTNESS, _CLASS = 4, 5
_LEVEL_CHANNELS = (256, 512, 768, 1024)
_KEYPOINT_STEPS = 5
# YOLOv5's priors: 8 people in 640×640 pixels; a class score of 0.98.
_OBJECTS_PER_IMAGE, _IMAGE_PIXELS = 8, 640
_CLASS_BIAS = math.log(0.6 / 0.01)

Parts = list[tuple[Tensor, Tensor]]


class _Backbone(nn.Module):
    """Images (B, 3, H, W) → features of strides 8, 16, 32, 64."""

    def __init__(self, config: YoloPoseConfig) -> None:
        super().__init__()
        act = config.activation
        c2, c4, c8, c16, c32, c64 = (config.channels(base) for base in (64, 128, *_LEVEL_CHANNELS))
        few, many = config.repeats(3), config.repeats(9)
        self.stem = ConvolutionStem(c2, act) if config.lite else FocusStem(c2, act)
        self.down4 = ConvolutionUnit(c2, c4, 3, 2, activation=act)
        self.stage4 = C3(c4, c4, few, True, act)
        self.down8 = ConvolutionUnit(c4, c8, 3, 2, activation=act)
        self.stage8 = C3(c8, c8, many, True, act)
        self.down16 = ConvolutionUnit(c8, c16, 3, 2, activation=act)
        self.stage16 = C3(c16, c16, many, True, act)
        self.down32 = ConvolutionUnit(c16, c32, 3, 2, activation=act)
        self.stage32 = C3(c32, c32, few, True, act)
        self.down64 = ConvolutionUnit(c32, c64, 3, 2, activation=act)
        self.spp = SPP(c64, c64, config.side_activation or act)
        self.stage64 = C3(c64, c64, few, False, act)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        level8 = self.stage8(self.down8(self.stage4(self.down4(self.stem(images)))))
        level16 = self.stage16(self.down16(level8))
        level32 = self.stage32(self.down32(level16))
        return level8, level16, level32, self.stage64(self.spp(self.down64(level32)))


class _Neck(nn.Module):
    """PANet: coarse features come down to the fine ones, then fine ones go up to the coarse ones."""

    def __init__(self, config: YoloPoseConfig) -> None:
        super().__init__()
        act = config.activation
        c8, c16, c32, c64 = (config.channels(base) for base in _LEVEL_CHANNELS)
        few = config.repeats(3)
        self.lateral64 = ConvolutionUnit(c64, c32, activation=act)
        self.fuse32 = C3(2 * c32, c32, few, False, act)
        self.lateral32 = ConvolutionUnit(c32, c16, activation=act)
        self.fuse16 = C3(2 * c16, c16, few, False, act)
        self.lateral16 = ConvolutionUnit(c16, c8, activation=act)
        self.out8 = C3(2 * c8, c8, few, False, act)
        self.down8 = ConvolutionUnit(c8, c8, 3, 2, activation=act)
        self.out16 = C3(2 * c8, c16, few, False, act)
        self.down16 = ConvolutionUnit(c16, c16, 3, 2, activation=act)
        self.out32 = C3(2 * c16, c32, few, False, act)
        self.down32 = ConvolutionUnit(c32, c32, 3, 2, activation=act)
        self.out64 = C3(2 * c32, c64, few, False, act)

    def forward(self, level8: Tensor, level16: Tensor, level32: Tensor, level64: Tensor) -> list[Tensor]:
        lateral64 = self.lateral64(level64)
        lateral32 = self.lateral32(self.fuse32(torch.cat((_doubled(lateral64), level32), dim=1)))
        lateral16 = self.lateral16(self.fuse16(torch.cat((_doubled(lateral32), level16), dim=1)))
        out8 = self.out8(torch.cat((_doubled(lateral16), level8), dim=1))
        out16 = self.out16(torch.cat((self.down8(out8), lateral16), dim=1))
        out32 = self.out32(torch.cat((self.down16(out16), lateral32), dim=1))
        return [out8, out16, out32, self.out64(torch.cat((self.down32(out32), lateral64), dim=1))]


def _doubled(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")


class _Head(nn.Module):
    """Outputs of one level: a convolution for the boxes; one, behind a chain of depthwise ones, for the keypoints."""

    def __init__(self, config: YoloPoseConfig, channels: int, stride: int) -> None:
        super().__init__()
        self._joined = config.head_order == "ti"
        self.box = nn.Conv2d(channels, _PER_CELL * _BOX_COLUMNS, 1)
        last = nn.Conv2d(channels, _PER_CELL * 3 * config.keypoint_count, 1)
        steps: list[nn.Module] = []
        if not config.lite:
            act = config.side_activation or config.activation
            for _ in range(_KEYPOINT_STEPS):
                steps += [depthwise_unit(channels, 3, act), ConvolutionUnit(channels, channels, activation=act)]
            steps.append(depthwise_unit(channels, 3, act))
        self.keypoints = nn.Sequential(*steps, last)
        self._initialise(last, config.row_length if self._joined else _BOX_COLUMNS, stride)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) → boxes (B, 3, H, W, 6) and keypoints (B, 3, H, W, 3K)."""
        box, keypoints = self.box(x), self.keypoints(x)
        if not self._joined:
            return anchors_apart(box), anchors_apart(keypoints)
        rows = anchors_apart(torch.cat((box, keypoints), dim=1))
        return rows[..., :_BOX_COLUMNS], rows[..., _BOX_COLUMNS:]

    @torch.no_grad()
    def _initialise(self, last: nn.Conv2d, row_length: int, stride: int) -> None:
        """YOLOv5's priors as biases, and no weights for the class score.

        With one class nothing is learned of it: what its weights are drawn as would only blur the objectness that it
        is multiplied by.
        """
        for anchor in range(_PER_CELL):
            layer, place = self._channel(last, anchor * row_length + _OBJECTNESS)
            _bias(layer)[place] += math.log(_OBJECTS_PER_IMAGE / (_IMAGE_PIXELS / stride) ** 2)
            layer, place = self._channel(last, anchor * row_length + _CLASS)
            _bias(layer)[place] = _CLASS_BIAS
            layer.weight[place] = 0.0

    def _channel(self, last: nn.Conv2d, place: int) -> tuple[nn.Conv2d, int]:
        """The convolution that makes channel ``place`` of both joined, and the channel's place in it."""
        boxes = self.box.out_channels
        return (self.box, place) if place < boxes else (last, place - boxes)


def _bias(layer: nn.Conv2d) -> Tensor:
    return layer.bias if layer.bias is not None else torch.zeros(layer.out_channels)


def anchors_apart(x: Tensor) -> Tensor:
    """(B, 3·R, H, W) → (B, 3, H, W, R)."""
    b, c, h, w = x.shape
    return x.reshape(b, _PER_CELL, c // _PER_CELL, h, w).permute(0, 1, 3, 4, 2)


class YoloPose(nn.Module):
    """YOLO-Pose as ``config`` says, with random weights.

    ``anchors``: buffer (4, 3, 2), width and height in pixels of the input; ``strides``: pixels per cell.
    """

    anchors: Tensor

    def __init__(self, config: YoloPoseConfig) -> None:
        super().__init__()
        self.config = config
        self.strides = STRIDES
        self.backbone = _Backbone(config)
        self.neck = _Neck(config)
        levels = zip((config.channels(base) for base in _LEVEL_CHANNELS), STRIDES, strict=True)
        self.heads = nn.ModuleList(_Head(config, channels, stride) for channels, stride in levels)
        self.register_buffer("anchors", torch.tensor(ANCHORS, dtype=torch.float32))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Logits of the levels P3 to P6, (B, 3, H/stride, W/stride, 6 + 3K) each.

        images  (B, 3, H, W) float, RGB from 0 to 1; H and W multiples of 64

        A row: tx, ty, tw, th, objectness, class, K × (x, y, confidence). Raises UsageError for another size.
        """
        return [torch.cat(parts, dim=-1) for parts in self.parts(images)]

    def parts(self, images: Tensor) -> Parts:
        """As ``forward``, with boxes (…, 6) and keypoints (…, 3K) of each level apart, as the heads give them."""
        if images.ndim != 4 or images.shape[2] % STRIDES[-1] or images.shape[3] % STRIDES[-1]:
            raise UsageError(
                "these images do not fit the network",
                expected=f"(B, 3, H, W) with H and W multiples of {STRIDES[-1]}",
                found=str(tuple(images.shape)),
                do="letterbox them to such a size",
            )
        features = self.neck(*self.backbone(images))
        return [head(x) for head, x in zip(self.heads, features, strict=True)]


class DeployedYoloPose(nn.Module):
    """A network and its decoding in one, as it is exported: images → ``decode``'s rows, in evaluation mode."""

    def __init__(self, model: YoloPose) -> None:
        super().__init__()
        self.model = model
        self.decode = _Decoder()
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, A, 6 + 3K), head layout ``yolov5-pose``."""
        rows: Tensor = self.decode(self.model.parts(images), self.model.anchors, self.model.strides)
        return rows


def decode(raw: Sequence[Tensor], anchors: Tensor, strides: Sequence[int] = STRIDES) -> Tensor:
    """Logits of all levels → (B, A, 6 + 3K) in pixels of the input, scores from 0 to 1; float32 at least.

    raw      per level (B, 3, H, W, 6 + 3K), as ``YoloPose.forward`` gives
    anchors  (levels, 3, 2) width and height, pixels
    strides  pixels per cell

    A row: cx, cy, w, h, objectness, class, K × (x, y, confidence). A runs over level, anchor, row of cells, cell.
    Source: YOLOv5 and edgeai-yolov5. Boxes: (2σ(t) − 0.5 + cell)·stride and (2σ(t))²·anchor; keypoints:
    (2t − 0.5 + cell)·stride.
    """
    rows: Tensor = _Decoder()([(each[..., :_BOX_COLUMNS], each[..., _BOX_COLUMNS:]) for each in raw], anchors, strides)
    return rows


class _Decoder(nn.Module):
    """``decode``; a module so that its operators can be told from those of the network in an exported graph."""

    def forward(self, parts: Parts, anchors: Tensor, strides: Sequence[int]) -> Tensor:
        columns = parts[0][1].shape[-1]
        places = [(box.shape[2], box.shape[3]) for box, _ in parts]
        boxes = torch.cat([box.flatten(1, 3) for box, _ in parts], dim=1)
        joined = torch.cat([each.flatten(1, 3) for _, each in parts], dim=1)
        # Pixels do not fit into the 8 or 11 bits of bfloat16 and half.
        dtype = torch.promote_types(boxes.dtype, torch.float32)
        corner, stride, anchor = _cells(places, _as(anchors, dtype), strides)
        scores = _as(boxes, dtype).sigmoid()
        xy, wh = scores[..., :2] * 2, scores[..., 2:4] * 2
        points = _as(joined, dtype).reshape(*joined.shape[:2], columns // 3, 3)
        point_xy = (points[..., :2] * 2 + corner[:, None]) * stride[:, None]
        keypoints = torch.cat((point_xy, points[..., 2:].sigmoid()), dim=-1).flatten(2)
        return torch.cat(((xy + corner) * stride, wh * wh * anchor, scores[..., 4:], keypoints), dim=-1)


def _as(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` itself where it has this type already: an exported graph would get a Cast that does nothing."""
    return x if x.dtype == dtype else x.to(dtype)


def _cells(places: Sequence[tuple[int, int]], anchors: Tensor, strides: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Per anchor: cell − 0.5 as x, y (A, 2) in cells; stride (A, 1) in pixels; width and height (A, 2) in pixels."""
    corners, steps, sizes = [], [], []
    for (h, w), level_anchors, stride in zip(places, anchors, strides, strict=True):
        y = torch.arange(h, dtype=anchors.dtype, device=anchors.device)[:, None].expand(h, w)
        x = torch.arange(w, dtype=anchors.dtype, device=anchors.device)[None, :].expand(h, w)
        corners.append((torch.stack((x, y), dim=-1).reshape(-1, 2) - 0.5).repeat(_PER_CELL, 1))
        steps.append(torch.full((_PER_CELL * h * w, 1), float(stride), dtype=anchors.dtype, device=anchors.device))
        sizes.append(level_anchors[:, None].expand(_PER_CELL, h * w, 2).reshape(-1, 2))
    return torch.cat(corners), torch.cat(steps), torch.cat(sizes)
