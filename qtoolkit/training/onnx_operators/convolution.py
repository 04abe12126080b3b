"""Conv, ConvTranspose, Gemm, MatMul, Einsum."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from qtoolkit.training.onnx_operators.site import Builder, Inputs, Operator, Pass, Site

__all__ = ["OPERATORS", "same_pads", "torch_pads"]

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


def torch_pads(begins: Sequence[int], ends: Sequence[int]) -> list[int]:
    """Pads of ``torch.nn.functional.pad``, last axis first, from those at the begin and at the end of each axis."""
    return [pad for begin, end in zip(reversed(begins), reversed(ends), strict=True) for pad in (begin, end)]


def same_pads(
    sizes: Sequence[int], extents: Sequence[int], strides: Sequence[int], upper: bool
) -> tuple[list[int], list[int]]:
    """Pads at the begin and the end of each axis for ``auto_pad``: outputs of size ⌈size / stride⌉.

    ``extents`` are kernel sizes with their dilation. The odd pixel goes to the end where ``upper``.
    """
    begins, ends = [], []
    for size, extent, stride in zip(sizes, extents, strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + extent - size, 0)
        begins.append(total // 2 if upper else total - total // 2)
        ends.append(total - begins[-1])
    return begins, ends


def _conv(site: Site) -> Operator:
    auto_pad = site.attribute("auto_pad", "NOTSET")
    groups, has_bias = site.attribute("group", 1), site.has(2)
    given_pads, given_strides, given_dilations = (site.attribute(name) for name in ("pads", "strides", "dilations"))

    def run(inputs: Inputs, _: Pass) -> Tensor:
        x, weight = inputs[0], inputs[1]
        rank = weight.dim() - 2
        strides, dilations = given_strides or [1] * rank, given_dilations or [1] * rank
        pads = given_pads or [0] * 2 * rank
        begins, ends = pads[:rank], pads[rank:]
        if auto_pad.startswith("SAME"):
            extents = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
            begins, ends = same_pads(x.shape[2:], extents, strides, auto_pad == "SAME_UPPER")
        elif auto_pad == "VALID":
            begins = ends = [0] * rank
        if begins != ends:
            x = F.pad(x, torch_pads(begins, ends))
            begins = [0] * rank
        bias = inputs[2] if has_bias else None
        return _CONVOLUTIONS[rank](x, weight, bias, strides, begins, dilations, groups)

    return run


def _conv_transpose(site: Site) -> Operator:
    auto_pad = site.attribute("auto_pad", "NOTSET")
    groups, has_bias = site.attribute("group", 1), site.has(2)
    given = {n: site.attribute(n) for n in ("pads", "strides", "dilations", "output_padding", "output_shape")}

    def run(inputs: Inputs, _: Pass) -> Tensor:
        x, weight = inputs[0], inputs[1]
        rank = weight.dim() - 2
        strides, dilations = given["strides"] or [1] * rank, given["dilations"] or [1] * rank
        extra, pads = given["output_padding"] or [0] * rank, given["pads"] or [0] * 2 * rank
        begins, ends = pads[:rank], pads[rank:]
        if given["output_shape"] or auto_pad.startswith("SAME"):
            extents = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
            wanted = given["output_shape"] or [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
            full = [(n - 1) * s + e for n, s, e in zip(x.shape[2:], strides, extents, strict=True)]
            totals = [f + o - w for f, o, w in zip(full, extra, wanted[-rank:], strict=True)]
            begins = [t // 2 if auto_pad == "SAME_UPPER" else t - t // 2 for t in totals]
            ends = [t - b for t, b in zip(totals, begins, strict=True)]
        elif auto_pad == "VALID":
            begins = ends = [0] * rank
        bias = inputs[2] if has_bias else None
        if begins == ends and min(begins) >= 0:
            return _TRANSPOSED[rank](x, weight, bias, strides, begins, extra, groups, dilations)
        # torch crops both sides alike: uneven ones are cut, or widened, from the whole result. The bias comes last,
        # since it counts in what is widened as well.
        y = _TRANSPOSED[rank](x, weight, None, strides, 0, 0, groups, dilations)
        y = F.pad(y, torch_pads([-b for b in begins], [o - e for o, e in zip(extra, ends, strict=True)]))
        return y if bias is None else y + bias.reshape(-1, *[1] * rank)

    return run


def _gemm(site: Site) -> Operator:
    alpha, beta = float(site.attribute("alpha", 1.0)), float(site.attribute("beta", 1.0))
    transposed_a, transposed_b = site.attribute("transA", 0), site.attribute("transB", 0)
    has_bias = site.has(2)
    plain = alpha == 1.0 and beta == 1.0

    def run(inputs: Inputs, _: Pass) -> Tensor:
        a = inputs[0].t() if transposed_a else inputs[0]
        if plain and transposed_b and (not has_bias or inputs[2].dim() == 1):
            return F.linear(a, inputs[1], inputs[2] if has_bias else None)
        product = a @ (inputs[1].t() if transposed_b else inputs[1])
        product = product if alpha == 1.0 else product * alpha
        return product + beta * inputs[2] if has_bias else product

    return run


def _matmul(_: Site) -> Operator:
    return lambda inputs, _run: torch.matmul(inputs[0], inputs[1])


def _einsum(site: Site) -> Operator:
    equation = site.attribute("equation")
    return lambda inputs, _run: torch.einsum(equation, *inputs)


OPERATORS: Mapping[str, Builder] = MappingProxyType(
    {"Conv": _conv, "ConvTranspose": _conv_transpose, "Gemm": _gemm, "MatMul": _matmul, "Einsum": _einsum}
)
"""Operator → builder."""
