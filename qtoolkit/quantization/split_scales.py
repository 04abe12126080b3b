"""The correction ``split-scales``: rows of one weight that are unlike each other get scales of their own.

Where a target has one scale a weight tensor (``tidl``), the row with the largest weight decides for all: rows of
box sizes beside rows of scores in one layer of the head, or a single channel that is ten times as large. Such a layer
is written as two or three convolutions and a Concat (``graph.split_rows``), its rows grouped by their largest magnitude
(``numerics.row_groups``). A plan names the layer as before, and all its parts have its precision. Targets with a scale
a channel have nothing to split.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qtoolkit.artifacts.target import Target
from qtoolkit.graph.layers import Structure
from qtoolkit.graph.qdq import LayerWeights
from qtoolkit.graph.split_rows import RowSplit, order_readers
from qtoolkit.numerics.affine import IntegerGrid, QuantParams, weight_params
from qtoolkit.numerics.row_groups import row_groups

__all__ = ["find_splits", "grouped_params", "grouped_weights"]


def find_splits(structure: Structure, target: Target) -> dict[str, RowSplit]:
    """Layer → how it is split, of those whose rows are unlike and may change their order; none where weights have a
    scale for each channel anyway."""
    found: dict[str, RowSplit] = {}
    for name, layer in structure.layers.items():
        weight = structure.view.constant(layer.weight)
        if target.per_channel_weights or layer.op_type != "Conv" or layer.group != 1 or weight is None:
            continue
        node = structure.view.producer(layer.output)
        bias_is_constant = layer.bias is not None or node is None or len(node.input) < 3
        groups = row_groups(np.abs(weight).reshape(len(weight), -1).max(axis=1))
        readers = None if name in structure.last else order_readers(structure, layer)
        if len(groups) > 1 and bias_is_constant and (name in structure.last or readers is not None):
            found[name] = RowSplit(groups, readers)
    return found


def grouped_params(weight: NDArray[np.floating], grid: IntegerGrid, split: RowSplit) -> QuantParams:
    """Parameters of ``weight`` (Cout, …) with one scale a group, written as one a channel."""
    scale = np.ones(len(weight), np.float32)
    for rows in split.groups:
        scale[rows] = weight_params(weight[rows], grid, None).scale
    return QuantParams(scale, np.zeros(len(weight), grid.dtype), grid, 0)


def grouped_weights(
    weight: NDArray[np.floating],
    params: QuantParams,
    bias: NDArray[np.floating] | None,
    input_scale: float | None,
    split: RowSplit,
) -> LayerWeights:
    """``LayerWeights.quantized`` for each group by itself; scales are written as one a channel."""
    parts = []
    for rows in split.groups:
        own = QuantParams(params.scale[rows[0]], params.zero_point[rows[0]], params.grid, None)
        parts.append(LayerWeights.quantized(weight[rows], own, None if bias is None else bias[rows], input_scale))
    back = np.argsort(split.order)
    scale = np.concatenate([np.full(len(r), p.params.scale) for r, p in zip(split.groups, parts, strict=True)])[back]
    whole = QuantParams(scale.astype(np.float32), np.zeros(len(scale), params.grid.dtype), params.grid, 0)
    integers = np.concatenate([part.weight for part in parts])[back]
    biases, grids = [p.bias for p in parts if p.bias is not None], [p.bias_params for p in parts if p.bias_params]
    if len(biases) < len(parts):
        return LayerWeights(integers, whole)
    bias_scale = np.concatenate([np.full(len(b), g.scale) for b, g in zip(biases, grids, strict=True)])[back]
    bias_params = QuantParams(bias_scale.astype(np.float32), np.zeros(len(scale), np.int32), grids[0].grid, 0)
    return LayerWeights(integers, whole, np.concatenate(biases)[back], bias_params)
