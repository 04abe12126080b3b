"""The folder of a retraining: the states it goes on from, the network, the log; and whose they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from qtoolkit.artifacts.files import prepare_out_dir, sha256_file
from qtoolkit.training.checkpoint import TrainingState, check_same_training, read_state, write_state
from qtoolkit.training.journal import Journal
from qtoolkit.training.retrain_options import RetrainOptions

__all__ = ["RetrainFolder"]

_TUNING_ONLY = ("steps_images", "train_size", "batch", "lr", "amp")


class RetrainFolder:
    """What lies in ``options.out``: ``model``, ``log``, the state after the fit and the one of the fine-tuning.

    Made without writing anything. Raises CheckpointError for files that are no states, UsageError where they are those
    of another retraining: other photos, network or options. A fit serves any fine-tuning.
    """

    def __init__(self, options: RetrainOptions, photos_sha256: str) -> None:
        self.model, self.log = options.out / "model.onnx", options.out / "log.jsonl"
        self._out = options.out
        self._fitted, self._tuned = options.out / "fitted.safetensors", options.out / "last.safetensors"
        self._recipe = options.outcome_fields() | {"model_sha256": sha256_file(options.model)}
        self._photos_sha256 = photos_sha256
        self.tuned = self._read(self._tuned.name, ())
        self.fitted = self._read(self._fitted.name, () if self.tuned else _TUNING_ONLY)

    def prepare(self) -> None:
        """Make the folder. Raises UsageError where it cannot be written."""
        prepare_out_dir(self._out)

    def save_fitted(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> TrainingState:
        """Write the state behind the fit, ``facts`` being JSON values, and return it."""
        self.fitted = self._write(self._fitted.name, tensors, facts)
        return self.fitted

    def save_tuned(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write the state of the fine-tuning."""
        self.tuned = self._write(self._tuned.name, tensors, facts)

    def open_log(self, step: int) -> Journal:
        """The log, for a run that goes on behind ``step``; it begins with what is known of the fit."""
        journal = Journal(self.log, step)
        if step == 0 and self.fitted is not None:
            facts = self.fitted.facts
            journal.add("fit", 0, facts.get("fit", {}))
            for seen, variant in (("-1", "original"), ("0", "fitted")):
                if seen in facts["ap"]:
                    journal.add("evaluate", 0, {"images": 0, "variant": variant, "ap": facts["ap"][seen]})
        return journal

    def _write(self, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> TrainingState:
        full = {"recipe": self._recipe, "data_sha256": self._photos_sha256, **facts}
        write_state(self._out / name, tensors, full)
        return TrainingState(dict(tensors), full)

    def _read(self, name: str, ignored: tuple[str, ...]) -> TrainingState | None:
        path = self._out / name
        if not path.exists():
            return None
        state = read_state(path)
        # Their contents are compared, by hash: the same files elsewhere are the same.
        same_photos = state.facts.get("data_sha256") == self._photos_sha256
        ignored = (*ignored, "model", *(("images",) if same_photos else ()))
        saved, now = (
            {key: value for key, value in recipe.items() if key not in ignored}
            for recipe in (state.facts.get("recipe", {}), self._recipe)
        )
        check_same_training(path, {**state.facts, "recipe": saved}, now, self._photos_sha256)
        return state
