"""The state and the log of a fine-tuning, and whose they are."""

from __future__ import annotations

import json

import pytest
import torch

from qtoolkit.errors import CheckpointError, UsageError
from qtoolkit.training.state_folder import StateFolder

RECIPE = {"lr": 0.1, "images": 8}


def test_what_was_saved_is_found_again(tmp_path):
    first = StateFolder(tmp_path / "state", RECIPE, "photos")
    assert first.tuned is None
    first.save_tuned({"model.a": torch.tensor([1.0, 2.0])}, {"step": 3})
    first.open_log(0).add("train", 3, {"rest": 0.5})
    again = StateFolder(tmp_path / "state", RECIPE, "photos")
    assert again.tuned.facts["step"] == first.tuned.facts["step"] == 3
    assert again.tuned.tensors["model.a"].tolist() == [1.0, 2.0]
    again.open_log(3)
    assert [json.loads(line) for line in again.log.read_text().splitlines()] == [
        {"event": "train", "step": 3, "rest": 0.5}
    ]


@pytest.mark.parametrize(
    ("recipe", "photos", "message"),
    [(RECIPE | {"lr": 0.2}, "photos", r"lr 0\.1, now 0\.2"), (RECIPE, "others", "other photos")],
)
def test_another_training_is_refused(tmp_path, recipe, photos, message):
    StateFolder(tmp_path, RECIPE, "photos").save_tuned({}, {"step": 0})
    with pytest.raises(UsageError, match=message):
        StateFolder(tmp_path, recipe, photos)


def test_a_file_that_is_no_state(tmp_path):
    (tmp_path / "last.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError):
        StateFolder(tmp_path, RECIPE, "photos")
