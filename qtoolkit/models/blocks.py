"""Building blocks of YOLOv5: convolutions with batch norm, residual and cross-stage blocks, stems, pooling pyramid.

Submodules carry YOLOv5's names (conv, bn, cv1, cv2, cv3, m), so that released weights fit by name. Every tensor is
(B, C, H, W). Source of the structure: Ultralytics YOLOv5 and Texas Instruments' edgeai-yolov5.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from qtoolkit.models.activations import activation_module

__all__ = [
    "C3",
    "SPP",
    "Bottleneck",
    "ConvolutionStem",
    "ConvolutionUnit",
    "FocusStem",
    "depthwise_unit",
    "space_to_channels",
]

_NORM_EPSILON = 1e-3
_NORM_MOMENTUM = 0.03


class ConvolutionUnit(nn.Module):
    """Convolution without bias, batch norm (ε 1e-3, momentum 0.03), activation; padded by kernel // 2.

    (B, c_in, H, W) → (B, c_out, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self, c_in: int, c_out: int, kernel: int = 1, stride: int = 1, groups: int = 1, activation: str = "silu"
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(c_out, eps=_NORM_EPSILON, momentum=_NORM_MOMENTUM)
        self.act = activation_module(activation)

    def forward(self, x: Tensor) -> Tensor:
        """Activation of the normalised convolution of ``x``."""
        result: Tensor = self.act(self.bn(self.conv(x)))
        return result


def depthwise_unit(channels: int, kernel: int, activation: str) -> ConvolutionUnit:
    """A ConvolutionUnit with one filter per channel: (B, C, H, W) → the same shape."""
    return ConvolutionUnit(channels, channels, kernel, groups=channels, activation=activation)


class Bottleneck(nn.Module):
    """1×1 and 3×3 convolution, with the input added where ``shortcut``; the shape stays."""

    def __init__(self, channels: int, shortcut: bool, activation: str) -> None:
        super().__init__()
        self.cv1 = ConvolutionUnit(channels, channels, activation=activation)
        self.cv2 = ConvolutionUnit(channels, channels, 3, activation=activation)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """cv2(cv1(x)), plus x with a shortcut."""
        y: Tensor = self.cv2(self.cv1(x))
        return x + y if self.shortcut else y


class C3(nn.Module):
    """Cross-stage block: one half of c_out // 2 channels through ``repeats`` bottlenecks, the other past them."""

    def __init__(self, c_in: int, c_out: int, repeats: int, shortcut: bool, activation: str) -> None:
        super().__init__()
        hidden = c_out // 2
        self.cv1 = ConvolutionUnit(c_in, hidden, activation=activation)
        self.cv2 = ConvolutionUnit(c_in, hidden, activation=activation)
        self.cv3 = ConvolutionUnit(2 * hidden, c_out, activation=activation)
        self.m = nn.Sequential(*(Bottleneck(hidden, shortcut, activation) for _ in range(repeats)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, H, W) → (B, c_out, H, W)."""
        result: Tensor = self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), dim=1))
        return result


class SPP(nn.Module):
    """Pyramid of max-pools of 3×3, 5×5 and 7×7 beside the features themselves.

    The larger two are the 3×3 one chained, which is the same maximum and all that embedded accelerators need to have.
    """

    def __init__(self, c_in: int, c_out: int, activation: str) -> None:
        super().__init__()
        hidden = c_in // 2
        self.cv1 = ConvolutionUnit(c_in, hidden, activation=activation)
        self.cv2 = ConvolutionUnit(4 * hidden, c_out, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, H, W) → (B, c_out, H, W)."""
        levels = [self.cv1(x)]
        for _ in range(3):
            levels.append(functional.max_pool2d(levels[-1], kernel_size=3, stride=1, padding=1))
        result: Tensor = self.cv2(torch.cat(levels, dim=1))
        return result


def space_to_channels(x: Tensor) -> Tensor:
    """(B, C, H, W) → (B, 4C, H/2, W/2): squares of 2×2 pixels side by side, channel (2·dy + dx)·C + c.

    The order of ONNX SpaceToDepth and of the released networks; ``torch.pixel_unshuffle`` has another one.
    """
    b, c, h, w = x.shape
    squares = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4)
    return squares.reshape(b, 4 * c, h // 2, w // 2)


class FocusStem(nn.Module):
    """Squares of pixels to channels, then a 3×3 convolution: (B, 3, H, W) → (B, c_out, H/2, W/2)."""

    def __init__(self, c_out: int, activation: str) -> None:
        super().__init__()
        self.conv = ConvolutionUnit(12, c_out, 3, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        """The first features of the full networks."""
        result: Tensor = self.conv(space_to_channels(x))
        return result


class ConvolutionStem(nn.Module):
    """A 3×3 convolution of stride 2 in place of the rearrangement, which embedded devices run badly: the lite stem."""

    def __init__(self, c_out: int, activation: str) -> None:
        super().__init__()
        self.conv_slice = ConvolutionUnit(3, 12, 3, 2, activation=activation)
        self.conv = ConvolutionUnit(12, c_out, 3, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, c_out, H/2, W/2)."""
        result: Tensor = self.conv(self.conv_slice(x))
        return result
