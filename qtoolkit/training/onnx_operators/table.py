"""All operators that an ONNX graph run in torch may hold, and the building of one node."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import onnx

from qtoolkit.training.onnx_operators import (
    activation,
    arithmetic,
    convolution,
    gathering,
    linear_quantization,
    normalization,
    pooling,
    reduction,
    resizing,
    shaping,
)
from qtoolkit.training.onnx_operators.site import Builder, Operator, Site, UnsupportedNode

__all__ = ["OPERATORS", "build_operator", "is_known"]

_FAMILIES = (
    activation,
    arithmetic,
    convolution,
    gathering,
    linear_quantization,
    normalization,
    pooling,
    reduction,
    resizing,
    shaping,
)

OPERATORS: Mapping[str, Builder] = MappingProxyType(
    {name: builder for family in _FAMILIES for name, builder in family.OPERATORS.items()}
)
"""Operator of the standard domain → builder."""
# ONNX Runtime's own forms of standard operators, from before the standard had them (or their 16-bit types).
_MICROSOFT = frozenset({"QuantizeLinear", "DequantizeLinear", "Gelu"})


def is_known(node: onnx.NodeProto) -> bool:
    """Whether there is a builder for the operator of ``node``."""
    if node.domain in ("", "ai.onnx"):
        return node.op_type in OPERATORS
    return node.domain == "com.microsoft" and node.op_type in _MICROSOFT


def build_operator(site: Site) -> Operator:
    """The function that computes the node of ``site``. Raises UnsupportedNode, with the reason, where there is none."""
    if not is_known(site.node):
        raise UnsupportedNode("unknown operator")
    return OPERATORS[site.node.op_type](site)
