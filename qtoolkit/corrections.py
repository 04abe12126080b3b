"""The corrections of post-training quantization by name: what each does, and which an effort takes by itself."""

from __future__ import annotations

from typing import Literal

__all__ = ["CORRECTIONS", "NEEDS_TORCH", "Correction", "Effort", "default_corrections"]

Correction = Literal["silu-pairs", "output-ranges", "split-scales", "bias", "blocks"]
Effort = Literal["fast", "balanced", "best"]

CORRECTIONS: dict[Correction, str] = {
    "silu-pairs": "the two ranges around a SiLU on integers are searched together",
    "output-ranges": "8-bit ranges are searched by the error they cause at the network's outputs",
    "split-scales": "layers whose rows are unlike are written in parts, each with a scale of its own (tidl)",
    "bias": "what rounded weights add to the mean output is taken off the biases, by the float network's channel means",
    "blocks": "weights and scales of the first blocks are learned, straight through the rounding",
}
"""Name → what it does, in the order in which they are applied."""

NEEDS_TORCH: frozenset[Correction] = frozenset({"blocks"})
"""Those that learn, and so need the extra ``train``."""

_OF_EFFORT: dict[Effort, frozenset[Correction]] = {
    "fast": frozenset(),
    "balanced": frozenset({"silu-pairs"}),
    "best": frozenset({"silu-pairs", "blocks"}),
}


def default_corrections(effort: Effort, corrects_bias: bool) -> frozenset[Correction]:
    """What ``effort`` takes where nothing is chosen by hand; ``corrects_bias`` as in ``artifacts.target``."""
    return _OF_EFFORT[effort] | (frozenset({"bias"}) if corrects_bias else frozenset())
