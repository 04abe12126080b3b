"""Operators that pick elements by index, or put them there, and that move elements between channels and space."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from qtoolkit.training.onnx_operators.site import Builder, Inputs, Operator, Pass, Site

__all__ = ["OPERATORS"]


def _wrapped(indices: Tensor, size: int) -> Tensor:
    """Indices of which negative ones count from the end, made positive."""
    indices = indices.to(torch.int64)
    return torch.where(indices < 0, indices + size, indices)


def _gather(site: Site) -> Operator:
    axis, indices = site.attribute("axis", 0), site.constant(1)
    single = int(indices) if indices is not None and indices.ndim == 0 else None
    if single is not None:
        return lambda inputs, run: inputs[0].select(axis, single)

    def run(inputs: Inputs, _: Pass) -> Tensor:
        x = inputs[0]
        place = axis % x.dim()
        chosen = _wrapped(inputs[1], x.shape[place])
        picked = x.index_select(place, chosen.reshape(-1))
        return picked.reshape(*x.shape[:place], *chosen.shape, *x.shape[place + 1 :])

    return run


def _gather_elements(site: Site) -> Operator:
    axis, places = site.attribute("axis", 0), site.places
    place = places.inputs[0] if places.inputs and places.inputs[1] is None else None

    def run(inputs: Inputs, run: Pass) -> Tensor:
        x, indices = inputs
        if place is not None and run.batch != run.fixed_batch:  # one list of indices for every image
            indices = run.repeated(indices, place)
        return torch.gather(x, axis, _wrapped(indices, x.shape[axis]))

    return run


def _gather_nd(site: Site) -> Operator:
    batch_dims = site.attribute("batch_dims", 0)

    def run(inputs: Inputs, _: Pass) -> Tensor:
        x, indices = inputs
        lead = x.shape[:batch_dims]
        # The shared leading axes become one, whose own index goes before the others.
        rows, picks = x.reshape(-1, *x.shape[batch_dims:]), indices.reshape(-1, *indices.shape[batch_dims:])
        index = [_wrapped(part, rows.shape[1 + i]) for i, part in enumerate(picks.unbind(-1))]
        own = torch.arange(rows.shape[0], device=x.device).reshape(-1, *[1] * (picks.dim() - 2))
        where = (own, *index)
        result = rows[where]
        return result.reshape(*lead, *indices.shape[batch_dims:-1], *result.shape[picks.dim() - 1 :])

    return run


def _scatter_nd(site: Site) -> Operator:
    site.unless(site.attribute("reduction", "none") == "none", "a reduction")

    def run(inputs: Inputs, _: Pass) -> Tensor:
        x, indices, updates = inputs
        index = tuple(_wrapped(part, x.shape[axis]) for axis, part in enumerate(indices.unbind(-1)))
        return x.index_put(index, updates.to(x.dtype))

    return run


def _scatter_elements(site: Site) -> Operator:
    site.unless(site.attribute("reduction", "none") == "none", "a reduction")
    axis = site.attribute("axis", 0)

    def run(inputs: Inputs, _: Pass) -> Tensor:
        x, indices, updates = inputs
        return x.scatter(axis, _wrapped(indices, x.shape[axis]), updates.to(x.dtype))

    return run


def _non_zero(_: Site) -> Operator:
    return lambda inputs, run: inputs[0].nonzero().t()


def _one_hot(site: Site) -> Operator:
    axis, depth_of = site.attribute("axis", -1), site.integers(1)

    def run(inputs: Inputs, _: Pass) -> Tensor:
        indices, values = inputs[0], inputs[2]
        depth = depth_of(inputs)[0]
        steps = torch.arange(depth, device=indices.device)
        hot = (_wrapped(indices, depth).unsqueeze(-1) == steps).movedim(-1, axis)
        return torch.where(hot, values[1], values[0])

    return run


def _depth_to_space(site: Site) -> Operator:
    block, columns_first = site.attribute("blocksize"), site.attribute("mode", "DCR") == "CRD"

    def run(inputs: Inputs, _: Pass) -> Tensor:
        x = inputs[0]
        if columns_first:
            return F.pixel_shuffle(x, block)
        b, c, h, w = x.shape
        x = x.reshape(b, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
        return x.reshape(b, c // block**2, h * block, w * block)

    return run


def _space_to_depth(site: Site) -> Operator:
    block = site.attribute("blocksize")

    def run(inputs: Inputs, _: Pass) -> Tensor:
        b, c, h, w = inputs[0].shape
        x = inputs[0].reshape(b, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
        return x.reshape(b, c * block**2, h // block, w // block)

    return run


OPERATORS: Mapping[str, Builder] = MappingProxyType(
    {
        "Gather": _gather,
        "GatherElements": _gather_elements,
        "GatherND": _gather_nd,
        "ScatterND": _scatter_nd,
        "ScatterElements": _scatter_elements,
        "NonZero": _non_zero,
        "OneHot": _one_hot,
        "DepthToSpace": _depth_to_space,
        "SpaceToDepth": _space_to_depth,
    }
)
"""Operator → builder."""
