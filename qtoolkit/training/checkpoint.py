"""The state of a training in one file, from which it goes on to the last bit as if it had not been stopped.

A safetensors file: ``model.*`` and ``ema.*`` by their names in the network, ``optimizer.KEY.*`` by the names of
the parameters; in its header the facts (JSON): recipe, hash of the data, step, what was measured so far. No pickle is
written or read. Random numbers need no state: images are a function of seed, epoch and position.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save_file
from torch import Tensor

from qtoolkit.artifacts.files import atomic_path
from qtoolkit.errors import CheckpointError, UsageError
from qtoolkit.models.tensor_file import read_safetensors

__all__ = ["TrainingState", "check_same_training", "read_state", "write_state"]

_KEY = "qtoolkit_training_state"
_VERSION = 1


class TrainingState(NamedTuple):
    """``tensors`` by name, and ``facts``: a JSON object."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def write_state(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write a state through a temporary file and a rename: at any moment the old state or the new one is there."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {_KEY: json.dumps({"version": _VERSION, **facts})}
    with atomic_path(path) as temporary:
        save_file(contiguous, temporary, metadata)


def read_state(path: str | os.PathLike[str]) -> TrainingState:
    """Read what ``write_state`` wrote.

    Raises CheckpointError for a file that is missing, no safetensors file (a pickle is not opened), or no state.
    """
    file = Path(path)
    tensors, headers = read_safetensors(file)
    try:
        facts = json.loads(headers.get(_KEY, "null"))
    except ValueError:
        facts = None
    if not isinstance(facts, dict) or facts.pop("version", None) != _VERSION:
        raise CheckpointError(
            f"the training state {file} cannot be used",
            expected="last.safetensors of a training by this version of qtoolkit",
            found="a safetensors file that holds no state of a training, or of another version",
            do="give the folder of a training with --out, or another one to begin anew; nothing was overwritten",
        )
    return TrainingState(tensors, facts)


def check_same_training(path: Path, facts: Mapping[str, Any], fields: Mapping[str, Any], data_sha256: str) -> None:
    """Refuse to go on with the state ``path`` (its ``facts``) of another recipe or other data.

    ``fields`` are the recipe's ``outcome_fields``. Raises UsageError naming each field that differs and both values.
    """
    saved = facts.get("recipe", {})
    differing = [
        f"{name} {saved.get(name)!r}, now {fields.get(name)!r}"
        for name in sorted({*saved, *fields})
        if saved.get(name) != fields.get(name)
    ]
    if not differing and facts.get("data_sha256") != data_sha256:
        differing.append("other photos or labels under the same name")
    if differing:
        raise UsageError(
            f"the folder {path.parent} holds the state of another training",
            expected="the recipe and the data that it was begun with",
            found="; ".join(differing),
            do="give another folder with --out, or remove this one; nothing was overwritten",
        )
