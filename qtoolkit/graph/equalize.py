"""Cross-layer equalization: channels between convolutions are scaled until the weights on both sides are alike.

::

    W₁' = W₁ / s,  b₁' = b₁ / s,  W₂' = W₂ · s      s = √(r₁ / r₂)

for each channel, r₁ the largest |W₁| that makes it and r₂ the largest |W₂| that reads it. ReLU hands a positive scale
on, so both layers together compute what they did, and one step for all channels of a weight serves each of them better.
Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019), section 4.1.

Nothing reads the rows of the last layers but arithmetic in float, so there a Mul by s, one number a channel, takes the
place of W₂, and s makes all rows as large as the largest: boxes, scores and keypoints of one convolution are far apart.
This one holds whatever the activation functions are.

Bias absorption (section 4.1.3 there) is left out: what it takes off the bias in front of a ReLU is missing in the zeros
that the next convolution is padded with, so it is exact for none with a kernel larger than 1.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from qtoolkit.errors import UsageError
from qtoolkit.graph.channel_groups import PINNED, channel_groups, scalable_layers
from qtoolkit.graph.constants import store_constant_
from qtoolkit.graph.row_scales import insert_row_scales_
from qtoolkit.graph.view import GraphView, attribute, node_name

__all__ = ["can_be_equalized", "equalized"]

FloatArray = NDArray[np.float64]
IdArray = NDArray[np.int64]

_SWEEPS = 200
_CLOSE_ENOUGH = 0.01
# Far from where float32 ends, whatever the weights were.
_LARGEST_LOG2 = 20.0
# A row without weights worth mentioning must not drive its bias beyond the integers that hold it.
_LARGEST_ROW_LOG2 = 10.0


def equalized(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of ``model`` (prepared, float) in which weights on both sides of a channel are alike.

    Rules:

    - outputs are the same but for the rounding of float32;
    - channels that must be scaled together (``channel_groups``) get one scale, by the largest weight on each side; they
      are found together for the whole network, not pair by pair;
    - channels without weights on one side stay (a dead one, whose bias would grow without bound);
    - a weight or bias that another node reads too is copied first; names of nodes and activations stay;
    - behind each last convolution over an image stands a Mul, ``LAYER/rows``, by the scales of its rows, and the
      convolution's own output is called ``OUTPUT/rows``.

    Raises UsageError where no channel can be scaled, as where the last layers are no convolutions, and SiLU is behind
    all others.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    rows = insert_row_scales_(copy)
    view = GraphView(copy)
    layers, groups = scalable_layers(view), channel_groups(view)
    scales = _scales(view, layers, groups, rows)
    if scales is None:
        raise UsageError(
            "no channel of this network can be scaled, so equalize would change nothing",
            expected="convolutions that make outputs, or have nothing between them but ReLU, Add, Concat or pooling",
            found="other functions, such as SiLU, behind every convolution",
            do="leave equalize out of --corrections; `qtool retrain` puts ReLU in place of SiLU",
        )
    for node in layers:
        made, name = scales[groups[node.output[0]]], rows.get(node_name(node))
        _scale_(view, node, made, scales[groups[node.input[0]]])
        factors = view.initializer(name) if name is not None else None
        if factors is not None:
            factors.CopyFrom(numpy_helper.from_array(made.reshape(1, -1, 1, 1).astype(np.float32), name))
    return copy


def can_be_equalized(model: onnx.ModelProto) -> bool:
    """Whether ``equalized`` would find a channel of ``model`` to scale."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    rows = insert_row_scales_(copy)
    view = GraphView(copy)
    return _scales(view, scalable_layers(view), channel_groups(view), rows, sweeps=1) is not None


class _Magnitudes:
    """The largest |weight| of a convolution between each two of its channels, and the groups of those.

    ``values`` (G, Cout/G, Cin/G), ``made`` (G, Cout/G) and ``read`` (G, Cin/G), G the groups of the convolution.
    """

    def __init__(self, view: GraphView, node: onnx.NodeProto, groups: Mapping[str, IdArray]) -> None:
        weight = np.abs(np.asarray(view.constant(node.input[1]), np.float64))
        parts = int(attribute(node, "group", 1))
        self.values = weight.reshape(parts, weight.shape[0] // parts, weight.shape[1], -1).max(axis=3)
        self.made = groups[node.output[0]].reshape(parts, -1)
        self.read = groups[node.input[0]].reshape(parts, -1)

    def gather_(self, scales: FloatArray, made: FloatArray, read: FloatArray) -> None:
        """Raise ``made`` and ``read`` of each group to the largest weight on that side, as ``scales`` have it now."""
        values = self.values * scales[self.read][:, None, :] / scales[self.made][:, :, None]
        np.maximum.at(made, self.made, values.max(axis=2))
        np.maximum.at(read, self.read, values.max(axis=1))


def _scales(
    view: GraphView,
    nodes: Sequence[onnx.NodeProto],
    groups: dict[str, IdArray],
    rows: Container[str],
    sweeps: int = _SWEEPS,
) -> FloatArray | None:
    """The scale of each group, 1 for those that stay; None where all of them must.

    The channels that the layers ``rows`` make get groups of their own in ``groups``.
    """
    count = 1 + max((int(ids.max()) for ids in groups.values()), default=PINNED)
    ends = []
    for node in nodes:
        if node_name(node) in rows:
            ends.append(np.arange(count, count + groups[node.output[0]].size))
            groups[node.output[0]], count = ends[-1], count + ends[-1].size
    layers, logs = [_Magnitudes(view, node, groups) for node in nodes], np.zeros(count)
    for _ in range(sweeps):
        made, read = np.zeros(count), np.zeros(count)
        for layer in layers:
            layer.gather_(np.exp2(logs), made, read)
        for ids in ends:
            # As if each were read by a weight as large as the largest of all rows.
            read[ids] = made[ids].max()
        free = (made > 0) & (read > 0)
        free[PINNED] = False
        if not free.any():
            return None
        # Both ends of a weight move at once: each goes half of the way, lest they pass each other.
        step = np.log2(made[free] / read[free]) / 4
        logs[free] += step
        if float(np.abs(step).max()) < _CLOSE_ENOUGH:
            break
    logs = np.clip(logs, -_LARGEST_LOG2, _LARGEST_LOG2)
    for ids in ends:
        logs[ids] = np.maximum(logs[ids], -_LARGEST_ROW_LOG2)
    return np.asarray(np.exp2(logs))


def _scale_(view: GraphView, node: onnx.NodeProto, made: FloatArray, read: FloatArray) -> None:
    """Write the scales of the channels that ``node`` makes ``(Cout,)`` and reads ``(Cin,)`` into its constants."""
    weight = np.asarray(view.constant(node.input[1]))
    parts, kernel = int(attribute(node, "group", 1)), (1,) * (weight.ndim - 2)
    inputs = np.repeat(read.reshape(parts, -1), weight.shape[0] // parts, axis=0)
    factors = (inputs / made[:, None]).reshape(*weight.shape[:2], *kernel)
    if bool(np.any(factors != 1)):
        store_constant_(view, node, 1, (weight * factors).astype(weight.dtype))
    if len(node.input) > 2 and node.input[2] and bool(np.any(made != 1)):
        bias = np.asarray(view.constant(node.input[2]))
        store_constant_(view, node, 2, (bias / made).astype(bias.dtype))
