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

import numpy as np
import onnx
from numpy.typing import NDArray

from qtoolkit.errors import UsageError
from qtoolkit.graph.channel_groups import PINNED, channel_groups, scalable_layers
from qtoolkit.graph.constants import store_constant_
from qtoolkit.graph.layers import last_layers
from qtoolkit.graph.row_scales import insert_row_scales_, rows_of
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
    channels = _Channels(copy)
    scales = channels.scales()
    if scales is None:
        raise UsageError(
            "no channel of this network can be scaled, so equalize would change nothing",
            expected="convolutions that make outputs, or have nothing between them but ReLU, Add, Concat or pooling",
            found="other functions, such as SiLU, behind every convolution",
            do="leave equalize out of --corrections; `qtool retrain` puts ReLU in place of SiLU",
        )
    for node in channels.layers:
        _scale_(channels.view, node, scales[channels.made(node)], scales[channels.groups[node.input[0]]])
    insert_row_scales_(copy, {layer: scales[ids] for layer, ids in channels.rows.items()})
    return copy


def can_be_equalized(model: onnx.ModelProto) -> bool:
    """Whether ``equalized`` would find a channel of ``model`` to scale."""
    return _Channels(model).scales(sweeps=1) is not None


class _Channels:
    """The convolutions of a network that can be scaled, and the group of each channel that they read and make.

    ``groups``: ``channel_groups``. ``rows``: layer → groups of its own, (Cout,), for what a last layer makes, since its
    scales are taken out again right behind it.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.view, last = GraphView(model), set(last_layers(model))
        self.layers, self.groups = scalable_layers(self.view), channel_groups(self.view)
        self.count = 1 + max((int(ids.max()) for ids in self.groups.values()), default=PINNED)
        self.rows: dict[str, IdArray] = {}
        for node in self.layers:
            channels = rows_of(self.view, node) if node_name(node) in last else 0
            if channels:
                self.rows[node_name(node)] = np.arange(self.count, self.count + channels)
                self.count += channels

    def made(self, node: onnx.NodeProto) -> IdArray:
        """The groups of the channels that a layer makes, (Cout,)."""
        return self.rows.get(node_name(node), self.groups[node.output[0]])

    def scales(self, sweeps: int = _SWEEPS) -> FloatArray | None:
        """The scale of each group, 1 for those that stay; None where all of them must."""
        layers = [_Magnitudes(self.view, node, self.made(node), self.groups[node.input[0]]) for node in self.layers]
        logs = np.zeros(self.count)
        for _ in range(sweeps):
            made, read = np.zeros(self.count), np.zeros(self.count)
            for layer in layers:
                layer.gather_(np.exp2(logs), made, read)
            for ids in self.rows.values():
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
        for ids in self.rows.values():
            logs[ids] = np.maximum(logs[ids], -_LARGEST_ROW_LOG2)
        return np.asarray(np.exp2(logs))


class _Magnitudes:
    """The largest |weight| of a convolution between each two of its channels, and the groups of those.

    ``values`` (G, Cout/G, Cin/G), ``made`` (G, Cout/G) and ``read`` (G, Cin/G), G the groups of the convolution.
    """

    def __init__(self, view: GraphView, node: onnx.NodeProto, made: IdArray, read: IdArray) -> None:
        weight = np.abs(np.asarray(view.constant(node.input[1]), np.float64))
        parts = int(attribute(node, "group", 1))
        self.values = weight.reshape(parts, weight.shape[0] // parts, weight.shape[1], -1).max(axis=3)
        self.made, self.read = made.reshape(parts, -1), read.reshape(parts, -1)

    def gather_(self, scales: FloatArray, made: FloatArray, read: FloatArray) -> None:
        """Raise ``made`` and ``read`` of each group to the largest weight on that side, as ``scales`` have it now."""
        values = self.values * scales[self.read][:, None, :] / scales[self.made][:, :, None]
        np.maximum.at(made, self.made, values.max(axis=2))
        np.maximum.at(read, self.read, values.max(axis=1))


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
