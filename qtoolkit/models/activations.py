"""Activation functions by the names that recipes and checkpoints use."""

from __future__ import annotations

from typing import Literal, get_args

from torch import nn

from qtoolkit.errors import UsageError

__all__ = ["ACTIVATIONS", "Activation", "activation_module"]

Activation = Literal["silu", "relu"]

ACTIVATIONS: tuple[str, ...] = get_args(Activation)
"""Names of the activations: silu x·σ(x), relu max(x, 0)."""


def activation_module(name: str) -> nn.Module:
    """A new module that computes the activation ``name``. Raises UsageError for another name."""
    if name == "silu":
        return nn.SiLU()
    if name == "relu":
        # The batch norm before it keeps its input, not its output, for the gradient: writing over it saves memory.
        return nn.ReLU(inplace=True)
    raise UsageError(
        f"there is no activation called {name!r}",
        expected=" or ".join(ACTIVATIONS),
        found=name,
        do="give one of these names",
    )
