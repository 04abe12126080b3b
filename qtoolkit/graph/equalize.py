"""Cross-layer equalization: channels between convolutions are scaled until the weights on both sides are alike.

::

    W₁' = W₁ / s,  b₁' = b₁ / s,  W₂' = W₂ · s      s = √(r₁ / r₂)

for each channel, r₁ the largest |W₁| that makes it and r₂ the largest |W₂| that reads it. ReLU hands a positive scale
on, so both layers together compute what they did, and one step for all channels of a weight serves each of them better.
Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019), section 4.1.

Bias absorption (section 4.1.3 there) is left out: what it takes off the bias in front of a ReLU is missing in the zeros
that the next convolution is padded with, so it is exact for none with a kernel larger than 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from qtoolkit.errors import UsageError
from qtoolkit.graph.channel_groups import PINNED, channel_groups, scalable_layers
from qtoolkit.graph.constants import store_constant_
from qtoolkit.graph.view import GraphView, attribute

__all__ = ["can_be_equalized", "equalized"]

FloatArray = NDArray[np.float64]
IdArray = NDArray[np.int64]

_SWEEPS = 200
_CLOSE_ENOUGH = 0.01
# Far from where float32 ends, whatever the weights were.
_LARGEST_LOG2 = 20.0


def equalized(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of ``model`` (prepared, float) in which weights on both sides of a channel are alike.

    Rules:

    - outputs are the same but for the rounding of float32;
    - channels that must be scaled together (``channel_groups``) get one scale, by the largest weight on each side; they
      are found together for the whole network, not pair by pair;
    - channels without weights on one side stay (a dead one, whose bias would grow without bound);
    - a weight or bias that another node reads too is copied first; names of nodes and activations stay.

    Raises UsageError where no channel can be scaled, as in a network of SiLU.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    view = GraphView(copy)
    layers, groups = scalable_layers(view), channel_groups(view)
    scales = _scales([_Magnitudes(view, node, groups) for node in layers])
    if scales is None:
        raise UsageError(
            "no channel of this network can be scaled, so equalize would change nothing",
            expected="convolutions behind one another with nothing between but ReLU, Add, Concat or pooling",
            found="other functions, such as SiLU, behind every convolution",
            do="leave equalize out of --corrections; `qtool retrain` puts ReLU in place of SiLU",
        )
    for node in layers:
        _scale_(view, node, scales[groups[node.output[0]]], scales[groups[node.input[0]]])
    return copy


def can_be_equalized(model: onnx.ModelProto) -> bool:
    """Whether ``equalized`` would find a channel of ``model`` to scale."""
    view = GraphView(model)
    groups = channel_groups(view)
    return _scales([_Magnitudes(view, node, groups) for node in scalable_layers(view)], sweeps=1) is not None


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


def _scales(layers: Sequence[_Magnitudes], sweeps: int = _SWEEPS) -> FloatArray | None:
    """The scale of each group, 1 for those that stay; None where all of them must."""
    count = 1 + max((int(ids.max()) for layer in layers for ids in (layer.made, layer.read)), default=PINNED)
    logs = np.zeros(count)
    for _ in range(sweeps):
        made, read = np.zeros(count), np.zeros(count)
        for layer in layers:
            layer.gather_(np.exp2(logs), made, read)
        free = (made > 0) & (read > 0)
        free[PINNED] = False
        if not free.any():
            return None
        # Both ends of a weight move at once: each goes half of the way, lest they pass each other.
        step = np.log2(made[free] / read[free]) / 4
        logs[free] += step
        if float(np.abs(step).max()) < _CLOSE_ENOUGH:
            break
    return np.asarray(np.exp2(np.clip(logs, -_LARGEST_LOG2, _LARGEST_LOG2)))


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
