"""Resize and Upsample: each axis by itself, with the coordinates of the ONNX standard.

::

    half_pixel            (o + 0.5) / scale − 0.5
    pytorch_half_pixel    the same; 0 where the output has one element
    half_pixel_symmetric  the same about the middle of the input, where the output's size was rounded
    asymmetric            o / scale
    align_corners         o · (inputs − 1) / (outputs − 1)
    tf_half_pixel_for_nn  (o + 0.5) / scale                                       (opset 11 and 12)

``o`` counts output elements. Where torch has the same formula, its own kernels do the work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import floor
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from qtoolkit.training.onnx_operators.site import Builder, Inputs, Operator, Pass, Site

__all__ = ["OPERATORS"]

_MODES = ("nearest", "linear", "cubic")
_ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
_TRANSFORMS = (
    "half_pixel",
    "pytorch_half_pixel",
    "half_pixel_symmetric",
    "asymmetric",
    "align_corners",
    "tf_half_pixel_for_nn",
)


def _coordinates(transform: str, inputs: int, outputs: int, size_ratio: float) -> NDArray[np.float32]:
    """Where each output element lies among the input's, ``(outputs,)``, in elements."""
    # In float32, as runtimes do: what lies halfway between two elements must fall to the same side.
    o, scale = np.arange(outputs, dtype=np.float32), np.float32(size_ratio)
    if transform == "align_corners":
        where = o * np.float32((inputs - 1) / max(outputs - 1, 1))
    elif transform == "asymmetric":
        where = o / scale
    elif transform == "tf_half_pixel_for_nn":
        where = (o + np.float32(0.5)) / scale
    else:
        where = (o + np.float32(0.5)) / scale - np.float32(0.5)
    if transform == "pytorch_half_pixel" and outputs == 1:
        where = np.zeros(1, np.float32)
    if transform == "half_pixel_symmetric":
        where = np.float32(inputs / 2 * (1 - outputs / (size_ratio * inputs))) + where
    return np.asarray(where, np.float32)


def _nearest(x: NDArray[np.float32], rule: str) -> NDArray[np.int64]:
    if rule in ("floor", "ceil"):
        rounded = np.floor(x) if rule == "floor" else np.ceil(x)
    else:
        rounded = np.ceil(x - 0.5) if rule == "round_prefer_floor" else np.floor(x + 0.5)
    return np.asarray(rounded, np.int64)


def _taps(
    mode: str, x: NDArray[np.float32], rule: str, cubic_a: float
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Which input elements each output element mixes, and by which weights, both ``(outputs, taps)``."""
    if mode == "nearest":
        return _nearest(x, rule)[:, None], np.ones((x.size, 1), np.float32)
    base = np.floor(x)
    t = (x - base)[:, None]
    if mode == "linear":
        return base[:, None].astype(np.int64) + np.arange(2), np.concatenate([1 - t, t], axis=1)
    a, distance = cubic_a, np.abs(t - np.arange(-1, 3))
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return base[:, None].astype(np.int64) + np.arange(-1, 3), np.asarray(np.where(distance <= 1, near, far), np.float32)


class _Sampler:
    """How one Resize node reads its input along an axis."""

    def __init__(self, site: Site) -> None:
        self.mode = site.attribute("mode", "nearest")
        default = "half_pixel" if site.opset >= 11 and site.node.op_type == "Resize" else "asymmetric"
        self.transform = site.attribute("coordinate_transformation_mode", default)
        self.rule = site.attribute("nearest_mode", "round_prefer_floor" if site.opset >= 11 else "floor")
        if site.node.op_type == "Upsample":
            self.rule = "floor"
        self.cubic_a = site.attribute("cubic_coeff_a", -0.75)
        self.exclude_outside = bool(site.attribute("exclude_outside", 0))
        self._known: dict[tuple[int, int, float, torch.device], list[tuple[Tensor, Tensor]]] = {}
        site.unless(self.mode in _MODES, f"mode {self.mode}")
        site.unless(self.rule in _ROUNDINGS, f"rounding {self.rule}")
        site.unless(self.transform in _TRANSFORMS, f"coordinates {self.transform}")
        site.unless(not site.attribute("antialias", 0), "antialias")

    def along(self, x: Tensor, axis: int, outputs: int, scale: float) -> Tensor:
        """``x`` with ``outputs`` elements along ``axis``."""
        shape = [-1 if i == axis else 1 for i in range(x.dim())]
        total: Tensor | None = None
        for indices, weights in self._taps_of(x.shape[axis], outputs, scale, x.device):
            part = x.index_select(axis, indices)
            if self.mode == "nearest":
                return part
            part = part * weights.to(x).reshape(shape)
            total = part if total is None else total + part
        return x if total is None else total

    def _taps_of(self, inputs: int, outputs: int, scale: float, device: torch.device) -> list[tuple[Tensor, Tensor]]:
        """Indices and weights of each tap, both ``(outputs,)``, on ``device``; sent there once for each size."""
        key = (inputs, outputs, scale, device)
        if key not in self._known:
            where = _coordinates(self.transform, inputs, outputs, scale)
            indices, weights = _taps(self.mode, where, self.rule, self.cubic_a)
            if self.exclude_outside and self.mode == "cubic":
                weights = np.where((indices >= 0) & (indices < inputs), weights, 0.0)
                weights = weights / weights.sum(axis=1, keepdims=True)
            columns = zip(np.clip(indices, 0, inputs - 1).T, weights.T, strict=True)
            self._known[key] = [
                (torch.from_numpy(index.copy()).to(device), torch.from_numpy(weight.copy()).to(device))
                for index, weight in columns
            ]
        return self._known[key]

    def torch_has_it(self, sizes: Sequence[int], outputs: Sequence[int], scales: Sequence[float]) -> bool:
        """Whether ``F.interpolate`` samples these spatial axes in the same way."""
        if any(abs(size * scale - out) > 1e-6 for size, out, scale in zip(sizes, outputs, scales, strict=True)):
            return False
        if self.mode == "linear":
            return self.transform in ("half_pixel", "pytorch_half_pixel", "align_corners") and min(outputs) > 1
        return self.mode == "nearest" and all(
            np.array_equal(
                np.clip(_nearest(_coordinates(self.transform, size, out, scale), self.rule), 0, size - 1),
                np.arange(out) * size // out,
            )
            for size, out, scale in zip(sizes, outputs, scales, strict=True)
        )

    def resize(self, x: Tensor, outputs: list[int], scales: list[float]) -> Tensor:
        """``x`` in the shape ``outputs``; axes that keep their size and have scale 1 are left alone."""
        changed = [axis for axis in range(x.dim()) if outputs[axis] != x.shape[axis] or scales[axis] != 1.0]
        if not changed:
            return x
        spatial = slice(2, None)
        image = x.dim() == 4 and changed[0] >= 2 and x.is_floating_point()
        if image and self.torch_has_it(x.shape[spatial], outputs[spatial], scales[spatial]):
            if self.mode == "nearest":
                return F.interpolate(x, size=outputs[spatial], mode="nearest")
            return F.interpolate(
                x, size=outputs[spatial], mode="bilinear", align_corners=self.transform == "align_corners"
            )
        for axis in changed:
            x = self.along(x, axis, outputs[axis], scales[axis])
        return x


def _resize(site: Site) -> Operator:
    sampler = _Sampler(site)
    since_11 = site.opset >= 11 and site.node.op_type == "Resize"
    scales_at = 2 if since_11 else 1
    given_scales = site.attribute("scales")
    known = site.constant(scales_at)
    has_scales = site.has(scales_at) and (known is None or known.size > 0)
    scales_of = site.numbers(scales_at) if has_scales else None
    sizes_of = site.integers(3) if since_11 and site.has(3) else None
    given_axes = site.attribute("axes") if site.opset >= 18 else None
    policy = site.attribute("keep_aspect_ratio_policy", "stretch")

    def run(inputs: Inputs, _: Pass) -> Tensor:
        x = inputs[0]
        axes = [axis % x.dim() for axis in given_axes] if given_axes else list(range(x.dim()))
        outputs, scales = list(x.shape), [1.0] * x.dim()
        if sizes_of:
            wanted = dict(zip(axes, sizes_of(inputs), strict=True))
            # The batch and the channels keep their sizes, whatever batch the constant was written for.
            wanted = {axis: size for axis, size in wanted.items() if axis >= 2 or x.dim() != 4}
            _fit_sizes_(x, wanted, policy, outputs, scales)
            return sampler.resize(x, outputs, scales)
        factors = given_scales or (scales_of(inputs) if scales_of else [1.0] * len(axes))
        for axis, scale in zip(axes, factors, strict=True):
            outputs[axis], scales[axis] = floor(x.shape[axis] * scale), scale
        return sampler.resize(x, outputs, scales)

    return run


def _fit_sizes_(x: Tensor, wanted: dict[int, int], policy: str, outputs: list[int], scales: list[float]) -> None:
    """Write sizes and scales for ``wanted`` sizes of axes; ``policy`` may hold all axes to one scale."""
    ratios = {axis: size / x.shape[axis] for axis, size in wanted.items()}
    if policy != "stretch":
        chosen = min(ratios.values()) if policy == "not_larger" else max(ratios.values())
        wanted = {axis: floor(x.shape[axis] * chosen + 0.5) for axis in wanted}
        ratios = dict.fromkeys(wanted, chosen)
    for axis, size in wanted.items():
        outputs[axis], scales[axis] = size, ratios[axis]


OPERATORS: Mapping[str, Builder] = MappingProxyType({"Resize": _resize, "Upsample": _resize})
"""Operator → builder."""
