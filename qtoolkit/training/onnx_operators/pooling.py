"""Max and average pooling, of windows and of whole maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from qtoolkit.training.onnx_operators.convolution import same_pads, torch_pads
from qtoolkit.training.onnx_operators.site import Builder, Inputs, Operator, Pass, Site

__all__ = ["OPERATORS"]

_MAX: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@dataclass(frozen=True)
class _Window:
    """Kernel, strides, dilations, and pads at the begin and the end of each axis; ``hangs`` is by how much the last
    window of ``ceil_mode`` reaches beyond them."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    begins: list[int]
    ends: list[int]
    hangs: list[int]

    @property
    def is_even(self) -> bool:
        """Whether torch can pad it by itself: as much at both sides, and at most half the kernel."""
        fits = all(2 * pad <= k for pad, k in zip(self.begins, self.kernel, strict=True))
        return self.begins == self.ends and not any(self.hangs) and fits

    def counts(self, x: Tensor, axis: int, with_pads: bool) -> Tensor:
        """How many elements of the spatial ``axis`` of ``x`` each window averages over, ``(outputs,)``."""
        begin, end, size = self.begins[axis], self.ends[axis], x.shape[2 + axis]
        inside = torch.zeros(begin + size + end + self.hangs[axis], device=x.device)
        inside[0 if with_pads else begin : begin + size + (end if with_pads else 0)] = 1.0
        extent = (self.kernel[axis] - 1) * self.dilations[axis] + 1
        return inside.unfold(0, extent, self.strides[axis])[:, :: self.dilations[axis]].sum(1)


def _window_of(site: Site) -> Callable[[Tensor], _Window]:
    kernel = list(site.attribute("kernel_shape"))
    rank, auto_pad = len(kernel), site.attribute("auto_pad", "NOTSET")
    strides = list(site.attribute("strides") or [1] * rank)
    dilations = list(site.attribute("dilations") or [1] * rank)
    pads, ceil = list(site.attribute("pads") or [0] * 2 * rank), site.attribute("ceil_mode", 0)
    extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    if auto_pad == "VALID":
        pads = [0] * 2 * rank

    def window(x: Tensor) -> _Window:
        begins, ends, hangs = pads[:rank], pads[rank:], [0] * rank
        if auto_pad.startswith("SAME"):
            begins, ends = same_pads(x.shape[2:], extents, strides, auto_pad == "SAME_UPPER")
        elif ceil:
            for axis, size in enumerate(x.shape[2:]):
                free = size + begins[axis] + ends[axis] - extents[axis]
                steps = -(-free // strides[axis])
                # A window that would begin in the pads at the end is none.
                steps -= steps * strides[axis] >= size + begins[axis]
                hangs[axis] = max(steps * strides[axis] - free, 0)
        return _Window(kernel, strides, dilations, begins, ends, hangs)

    return window


def _padded(x: Tensor, window: _Window, value: float) -> Tensor:
    ends = [end + hang for end, hang in zip(window.ends, window.hangs, strict=True)]
    return F.pad(x, torch_pads(window.begins, ends), value=value)


def _max_pool(site: Site) -> Operator:
    site.unless(len([name for name in site.node.output if name]) == 1, "an output of indices")
    window_of = _window_of(site)

    def run(inputs: Inputs, _: Pass) -> Tensor:
        x = inputs[0]
        window = window_of(x)
        pool = _MAX[len(window.kernel)]
        if window.is_even:
            return pool(x, window.kernel, window.strides, window.begins, window.dilations)
        lowest = float("-inf") if x.is_floating_point() else torch.iinfo(x.dtype).min
        return pool(_padded(x, window, lowest), window.kernel, window.strides, 0, window.dilations)

    return run


def _average_pool(site: Site) -> Operator:
    with_pads, window_of = bool(site.attribute("count_include_pad", 0)), _window_of(site)

    def run(inputs: Inputs, _: Pass) -> Tensor:
        x = inputs[0]
        window = window_of(x)
        rank, channels = len(window.kernel), x.shape[1]
        if window.is_even and set(window.dilations) == {1}:
            return _AVERAGE[rank](x, window.kernel, window.strides, window.begins, count_include_pad=with_pads)
        ones = torch.ones(channels, 1, *window.kernel, dtype=x.dtype, device=x.device)
        total = _CONVOLUTIONS[rank](_padded(x, window, 0.0), ones, None, window.strides, 0, window.dilations, channels)
        for axis in range(rank):
            count = window.counts(x, axis, with_pads).to(total)
            total = total / count.reshape(-1, *[1] * (rank - 1 - axis))
        return total

    return run


def _lp_pool(site: Site) -> Operator:
    order, window_of = site.attribute("p", 2), _window_of(site)

    def run(inputs: Inputs, _: Pass) -> Tensor:
        x = inputs[0]
        window = window_of(x)
        ones = torch.ones(x.shape[1], 1, *window.kernel, dtype=x.dtype, device=x.device)
        powers = _padded(x, window, 0.0).abs().pow(order)
        convolve = _CONVOLUTIONS[len(window.kernel)]
        return convolve(powers, ones, None, window.strides, 0, window.dilations, x.shape[1]).pow(1.0 / order)

    return run


def _global(function: Callable[[Tensor, list[int]], Tensor]) -> Builder:
    return lambda site: lambda inputs, run: function(inputs[0], list(range(2, inputs[0].dim())))


OPERATORS: Mapping[str, Builder] = MappingProxyType(
    {
        "MaxPool": _max_pool,
        "AveragePool": _average_pool,
        "LpPool": _lp_pool,
        "GlobalAveragePool": _global(lambda x, axes: x.mean(axes, keepdim=True)),
        "GlobalMaxPool": _global(lambda x, axes: x.amax(axes, keepdim=True)),
    }
)
"""Operator → builder."""
