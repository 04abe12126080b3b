"""A folder with the state and the log of one fine-tuning, which goes on from there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from qtoolkit.artifacts.files import prepare_out_dir
from qtoolkit.training.checkpoint import TrainingState, check_same_training, read_state, write_state
from qtoolkit.training.journal import Journal

__all__ = ["StateFolder"]


class StateFolder:
    """``last.safetensors``, ``log.jsonl`` in ``folder``, which is made; ``recipe`` (JSON values) and the hash of the
    photos say whose they are.

    Raises CheckpointError for a file that is no state, UsageError for one of another training, or a folder that cannot
    be written.
    """

    def __init__(self, folder: Path, recipe: Mapping[str, Any], photos_sha256: str) -> None:
        self.log = folder / "log.jsonl"
        self._state = prepare_out_dir(folder) / "last.safetensors"
        self._facts = {"recipe": dict(recipe), "data_sha256": photos_sha256}
        self.tuned: TrainingState | None = None
        if self._state.exists():
            self.tuned = read_state(self._state)
            check_same_training(self._state, self.tuned.facts, recipe, photos_sha256)

    def save_tuned(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write the state; ``facts`` are JSON values."""
        full = {**self._facts, **facts}
        write_state(self._state, tensors, full)
        self.tuned = TrainingState(dict(tensors), full)

    def open_log(self, step: int) -> Journal:
        """The log, for a run that goes on behind ``step``."""
        return Journal(self.log, step)
