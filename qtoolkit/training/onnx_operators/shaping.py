"""What gives a tensor another shape, joins and cuts tensors, or makes new ones of a shape.

Constants of a graph prepared for a batch of one hold that one: in a Reshape, an Expand, beside images in a Concat.
Where ``Site.places`` says that the images of a batch lie there, the actual batch takes its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from types import MappingProxyType

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from qtoolkit.training.onnx_operators.convolution import torch_pads
from qtoolkit.training.onnx_operators.site import Builder, Inputs, Operator, Pass, Site, UnsupportedNode, torch_dtype

__all__ = ["OPERATORS", "to_tensor"]


def to_tensor(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> Tensor:
    """A tensor of its own with the values of ``array``; see ``torch_dtype`` for types that torch lacks.

    Raises UnsupportedNode for a type that has no equal.
    """
    target = torch_dtype(onnx.helper.np_dtype_to_tensor_dtype(array.dtype))
    if target == torch.bfloat16:
        array = array.astype(np.float32)
    elif array.dtype in (np.uint16, np.uint32):
        array = array.astype(np.int64)
    return torch.tensor(np.array(array)).to(target)


def _reshape(site: Site) -> Operator:
    target_of, literal = site.integers(1), site.constant(1) is not None
    zero_copies, place = not site.attribute("allowzero", 0), site.places.output

    def run(inputs: Inputs, run: Pass) -> Tensor:
        x, target = inputs[0], target_of(inputs)
        if place is not None and run.batch != run.fixed_batch:
            _rescale_(target, place, x.numel(), run, literal)
        if zero_copies:
            target = [x.shape[axis] if size == 0 else size for axis, size in enumerate(target)]
        return x.reshape(target)

    return run


def _rescale_(target: list[int], place: int, count: int, run: Pass, literal: bool) -> None:
    """Write the actual batch into the target of a Reshape where it holds the fixed one; in place.

    A target that the graph computes may hold the actual batch already: then its elements are as many as there are, or,
    with one left open, its entry is not the fixed batch.
    """
    size = target[place]
    if size <= 0:
        return
    written = size != run.fixed_batch if -1 in target else 0 not in target and prod(target) == count
    if literal or not written:
        target[place] = size * run.batch // run.fixed_batch


def _flatten(site: Site) -> Operator:
    axis = site.attribute("axis", 1)

    def run(inputs: Inputs, _: Pass) -> Tensor:
        x = inputs[0]
        rows = prod(x.shape[: axis if axis >= 0 else axis + x.dim()])
        return x.reshape(rows, -1) if x.numel() else x.reshape(rows, prod(x.shape[axis:]))

    return run


def _transpose(site: Site) -> Operator:
    order = site.attribute("perm")
    return lambda inputs, run: inputs[0].permute(order or list(range(inputs[0].dim()))[::-1])


def _squeeze(site: Site) -> Operator:
    axes_of = site.axes(13)

    def run(inputs: Inputs, _: Pass) -> Tensor:
        return inputs[0].squeeze(axes_of(inputs)) if axes_of else inputs[0].squeeze()

    return run


def _unsqueeze(site: Site) -> Operator:
    axes_of = site.axes(13)
    if axes_of is None:
        raise UnsupportedNode("no axes")

    def run(inputs: Inputs, _: Pass) -> Tensor:
        x, axes = inputs[0], axes_of(inputs)
        rank = x.dim() + len(axes)
        for axis in sorted(axis % rank for axis in axes):
            x = x.unsqueeze(axis)
        return x

    return run


def _concat(site: Site) -> Operator:
    axis, place = site.attribute("axis"), site.places.output
    alone = [i for i, axis_of in enumerate(site.places.inputs) if axis_of is None] if place is not None else []

    def run(inputs: Inputs, run: Pass) -> Tensor:
        parts = list(inputs)
        if place is not None and run.batch != run.fixed_batch:
            for position in alone:
                parts[position] = run.repeated(parts[position], place)
        return torch.cat(parts, axis)

    return run


def _split(site: Site) -> Operator:
    axis, count = site.attribute("axis", 0), len(site.node.output)
    given = site.attribute("split") if site.opset < 13 else None
    sizes_of = site.integers(1) if site.opset >= 13 and site.has(1) else None

    def run(inputs: Inputs, _: Pass) -> tuple[Tensor, ...]:
        x = inputs[0]
        sizes = given or (sizes_of(inputs) if sizes_of else None)
        if sizes is None:
            share = -(-x.shape[axis] // count)
            sizes = [share] * (count - 1) + [x.shape[axis] - share * (count - 1)]
        return torch.split_with_sizes(x, sizes, axis)

    return run


def _slice(site: Site) -> Operator:
    place = site.places.inputs[0] if site.places.inputs else None
    if site.opset < 10:
        starts, ends, given_axes = (site.attribute(name) for name in ("starts", "ends", "axes"))
        fixed = (starts, ends, given_axes or list(range(len(starts))), [1] * len(starts))
        return lambda inputs, run: _sliced(inputs[0], fixed, place if run.batch != run.fixed_batch else None)
    starts_of, ends_of = site.integers(1), site.integers(2)
    axes_of = site.integers(3) if site.has(3) else None
    steps_of = site.integers(4) if site.has(4) else None

    def run(inputs: Inputs, run: Pass) -> Tensor:
        starts = starts_of(inputs)
        axes = axes_of(inputs) if axes_of else list(range(len(starts)))
        cuts = (starts, ends_of(inputs), axes, steps_of(inputs) if steps_of else [1] * len(starts))
        return _sliced(inputs[0], cuts, place if run.batch != run.fixed_batch else None)

    return run


def _sliced(x: Tensor, cuts: tuple[list[int], list[int], list[int], list[int]], untouched: int | None) -> Tensor:
    """``x`` cut by (starts, ends, axes, steps), but whole along the axis ``untouched``."""
    for start, end, axis, step in zip(*cuts, strict=True):
        place = axis % x.dim()
        if place == untouched:
            continue
        if step > 0:
            x = x[(slice(None),) * place + (slice(start, end, step),)]
        else:  # torch has no steps backwards
            chosen = range(*slice(start, end if end >= -x.shape[place] else None, step).indices(x.shape[place]))
            x = x.index_select(place, torch.tensor(list(chosen), dtype=torch.int64, device=x.device))
    return x


def _expand(site: Site) -> Operator:
    target_of = site.integers(1)

    def run(inputs: Inputs, _: Pass) -> Tensor:
        x = inputs[0]
        # Broadcast both ways: a 1 in the target leaves the size that is there, the batch's too.
        target = target_of(inputs)
        kept = [1] * (len(target) - x.dim()) + list(x.shape)
        asked = [1] * (x.dim() - len(target)) + target
        return x.expand([size if wanted == 1 else wanted for size, wanted in zip(kept, asked, strict=True)])

    return run


def _tile(site: Site) -> Operator:
    repeats_of = site.integers(1)
    return lambda inputs, run: inputs[0].repeat(repeats_of(inputs))


_PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def _pad(site: Site) -> Operator:
    mode = site.attribute("mode", "constant")
    given, value = site.attribute("pads"), float(site.attribute("value", 0.0))
    pads_of = site.integers(1) if site.opset >= 11 else None
    value_of = site.numbers(2) if site.has(2) else None
    axes_of = site.integers(3) if site.has(3) else None

    def run(inputs: Inputs, _: Pass) -> Tensor:
        x = inputs[0]
        pads = pads_of(inputs) if pads_of else list(given)
        axes = axes_of(inputs) if axes_of else list(range(x.dim()))
        half = len(pads) // 2
        begins, ends = [0] * x.dim(), [0] * x.dim()
        for axis, begin, end in zip(axes, pads[:half], pads[half:], strict=True):
            begins[axis], ends[axis] = begin, end
        if mode == "constant":
            return F.pad(x, torch_pads(begins, ends), value=value_of(inputs)[0] if value_of else value)
        return _pad_by_neighbours(x, begins, ends, _PAD_MODES[mode])

    return run


def _pad_by_neighbours(x: Tensor, begins: list[int], ends: list[int], mode: str) -> Tensor:
    for axis, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        if begin or end:
            # One axis at a time, as the last of three, which is what torch pads so.
            moved = x.movedim(axis, -1)
            padded = F.pad(moved.reshape(1, -1, moved.shape[-1]), [begin, end], mode=mode)
            x = padded.reshape(*moved.shape[:-1], -1).movedim(-1, axis)
    return x


def _shape(site: Site) -> Operator:
    start, end = site.attribute("start", 0), site.attribute("end")

    def run(inputs: Inputs, _: Pass) -> Tensor:
        return torch.tensor(list(inputs[0].shape)[start:end], dtype=torch.int64, device=inputs[0].device)

    return run


def _size(_: Site) -> Operator:
    return lambda inputs, run: torch.tensor(inputs[0].numel(), device=inputs[0].device)


def _constant(site: Site) -> Operator:
    value = site.view.constant(site.node.output[0])
    if value is None:
        raise UnsupportedNode("a value that is no tensor of numbers")
    tensor = to_tensor(value)
    return lambda inputs, run: tensor


def _constant_of_shape(site: Site) -> Operator:
    shape_of, value = site.integers(0), site.attribute("value")
    fill = to_tensor(onnx.numpy_helper.to_array(value)) if value is not None else torch.zeros(1)
    number = fill.reshape(-1)[0].item()
    return lambda inputs, run: torch.full(shape_of(inputs), number, dtype=fill.dtype, device=inputs[0].device)


def _range(_: Site) -> Operator:
    def run(inputs: Inputs, _: Pass) -> Tensor:
        start, limit, step = (part.item() for part in inputs[:3])
        return torch.arange(start, limit, step, dtype=inputs[0].dtype, device=inputs[0].device)

    return run


OPERATORS: Mapping[str, Builder] = MappingProxyType(
    {
        "Reshape": _reshape,
        "Flatten": _flatten,
        "Transpose": _transpose,
        "Squeeze": _squeeze,
        "Unsqueeze": _unsqueeze,
        "Concat": _concat,
        "Split": _split,
        "Slice": _slice,
        "Expand": _expand,
        "Tile": _tile,
        "Pad": _pad,
        "Shape": _shape,
        "Size": _size,
        "Constant": _constant,
        "ConstantOfShape": _constant_of_shape,
        "Range": _range,
    }
)
"""Operator → builder."""
