"""The corrections of post-training quantization by name: what each does, and which an effort takes by itself."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from qtoolkit.errors import UsageError

__all__ = ["CORRECTIONS", "NEEDS_TORCH", "Correction", "Effort", "check_corrections", "default_corrections"]

Correction = Literal[
    "equalize", "silu-pairs", "output-ranges", "split-scales", "bias", "bias-empirical", "blocks", "rounding"
]
Effort = Literal["fast", "balanced", "best"]

CORRECTIONS: dict[Correction, str] = {
    "equalize": "channels are scaled so that weights on both sides are alike, through ReLU; rows of last layers too",
    "silu-pairs": "the two ranges around a SiLU on integers are searched together",
    "output-ranges": "8-bit ranges are searched by the error they cause at the network's outputs",
    "split-scales": "layers whose rows are unlike are written in parts, each with a scale of its own (tidl)",
    "bias": "what rounded weights add to the mean output is taken off the biases, by the float network's channel means",
    "bias-empirical": "layer by layer, biases take off what everything rounded so far adds to the mean output",
    "blocks": "weights and scales of the first blocks are learned, straight through the rounding",
    "rounding": "which way each weight is rounded is learned, unit by unit through the whole network",
}
"""Name → what it does, in the order in which they are applied."""

NEEDS_TORCH: frozenset[Correction] = frozenset({"blocks", "rounding"})
"""Those that learn, and so need the extra ``train``."""

_OF_EFFORT: dict[Effort, frozenset[Correction]] = {
    "fast": frozenset(),
    "balanced": frozenset({"silu-pairs"}),
    "best": frozenset({"silu-pairs", "blocks"}),
}


def default_corrections(effort: Effort, of_target: Collection[Correction] = ()) -> frozenset[Correction]:
    """What is corrected where nothing is chosen by hand: by the effort, and on every effort by the target."""
    return _OF_EFFORT[effort] | frozenset(of_target)


def check_corrections(chosen: Collection[Correction]) -> None:
    """Raise UsageError for corrections that take the same error off twice, or cannot see each other's work."""
    if {"bias", "bias-empirical"} <= set(chosen):
        raise UsageError(
            "two corrections would take the same error off the same biases",
            expected="one of bias and bias-empirical, which measures what bias computes",
            found="both",
            do="leave one of them out of --corrections",
        )
    if {"split-scales", "bias-empirical"} <= set(chosen):
        raise UsageError(
            "biases cannot be measured on layers that are split",
            expected="split-scales with bias, or bias-empirical without split-scales",
            found="split-scales and bias-empirical",
            do="give --corrections split-scales,bias",
        )
