"""The form of a quantized network that its runtime is fastest with."""

from __future__ import annotations

from collections.abc import Collection

import onnx

from qtoolkit.artifacts.target import Target
from qtoolkit.graph.broadcast import expand_broadcasts
from qtoolkit.graph.pad_channels import pad_channels
from qtoolkit.graph.softmax import expand_softmax
from qtoolkit.graph.upsample import expand_upsampling

__all__ = ["runtime_form"]


def runtime_form(model: onnx.ModelProto, target: Target, tail: Collection[str]) -> onnx.ModelProto:
    """``model`` rewritten as ``target`` says, with the nodes ``tail`` as its decode tail: the same but for float32's
    rounding. ``model`` itself where the target asks for nothing."""
    # Softmax behind the broadcasts, because what it writes has no shapes on record.
    model = expand_broadcasts(model, tail) if target.slow_broadcasts else model
    model = expand_softmax(model, tail) if target.slow_softmax else model
    model = expand_upsampling(model) if target.slow_upsampling else model
    return pad_channels(model, target.channel_multiple)
