"""Retrain weights of ours for another activation function with labels, as the paper did: train on, from these."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from qtoolkit.errors import UsageError
from qtoolkit.models.checkpoint import load_weights
from qtoolkit.training.recipe import TrainRecipe, build_train_recipe

__all__ = ["RETRAIN_FIELDS", "retrain_recipe"]

RETRAIN_FIELDS: dict[str, Any] = {
    "images": 80000,
    "batch": 16,
    "optimizer": "muon",
    "lr": 0.005,
    "lr_final": 0.02,
    "warmup_images": 1000,
    "widening": 4.0,
    "widening_kind": "ladder",
    "gains": {"box": 0.2, "keypoints": 0.5, "confidence": 0.1},
    "augmentation": {"mosaic": 0.0, "scale": 0.3, "saturation": 0.4, "value": 0.3},
    "ema_decay": 0.999,
    "eval_every": 16000,
    "eval_images": 300,
}
"""What differs from a training from nothing: those of recipes/default_network_relu.yaml."""


def retrain_recipe(weights: str | os.PathLike[str], activation: str = "relu", **given: Any) -> TrainRecipe:
    """The training that starts from ``weights``, which `qtool train` wrote, with another ``activation``.

    Size, variant and image size are those of the weights; ``given`` (not None) replaces fields of the recipe, and must
    name ``data`` and ``out``. Raises CheckpointError for a file that holds no such weights, UsageError for weights that
    have this activation already, RecipeError for a field that cannot be used.
    """
    model, metadata = load_weights(weights)
    if model.config.activation == activation:
        raise UsageError(
            f"there is nothing to replace in {weights}",
            expected=f"weights of a network whose activation is not {activation}",
            found=f"activation {model.config.activation}",
            do="go on with `qtool train --init`, or export them",
        )
    trained = metadata.get("recipe")
    size = trained.get("image_size") if isinstance(trained, dict) else None
    network = {"size": model.config.size, "lite": model.config.lite, "activation": activation, "init": Path(weights)}
    fields = RETRAIN_FIELDS | ({} if size is None else {"image_size": size}) | network
    return build_train_recipe(
        {name: str(value) if name == "init" else value for name, value in fields.items()}, **given
    )
