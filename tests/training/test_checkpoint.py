"""The state of a training as a file."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from qtoolkit.errors import CheckpointError, UsageError
from qtoolkit.training.checkpoint import check_same_training, read_state, write_state

TENSORS = {
    "model.a": torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last),
    "optimizer.step.a": torch.tensor(3.0),
}


def test_what_is_written_is_read(tmp_path):
    write_state(tmp_path / "s", TENSORS, {"step": 3, "best_ap": None})
    state = read_state(tmp_path / "s")
    assert state.facts == {"step": 3, "best_ap": None}
    assert state.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(state.tensors[name], tensor) for name, tensor in TENSORS.items())


def test_a_failure_leaves_the_old_state(tmp_path):
    write_state(tmp_path / "s", TENSORS, {"step": 3})
    with pytest.raises(TypeError):
        write_state(tmp_path / "s", TENSORS, {"step": object()})
    assert read_state(tmp_path / "s").facts["step"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_safetensors_of_something_else_are_no_state(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "s")
    with pytest.raises(CheckpointError, match="holds no state of a training"):
        read_state(tmp_path / "s")


def test_a_pickle_is_not_opened(tmp_path):
    torch.save({"model": torch.zeros(1)}, tmp_path / "s")
    with pytest.raises(CheckpointError, match=r"a pickle[\s\S]*is not"):
        read_state(tmp_path / "s")


def test_a_part_of_a_file_is_an_error(tmp_path):
    write_state(tmp_path / "s", TENSORS, {"step": 3})
    (tmp_path / "s").write_bytes((tmp_path / "s").read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_state(tmp_path / "s")


def test_what_differs_is_named_with_both_values(tmp_path):
    facts = {"recipe": {"lr": 0.01, "size": "n6"}, "data_sha256": "a"}
    check_same_training(tmp_path / "s", facts, {"lr": 0.01, "size": "n6"}, "a")
    with pytest.raises(UsageError, match=r"lr 0\.01, now 0\.02; size 'n6', now 's6'"):
        check_same_training(tmp_path / "s", facts, {"lr": 0.02, "size": "s6"}, "a")
    with pytest.raises(UsageError, match="other photos or labels"):
        check_same_training(tmp_path / "s", facts, facts["recipe"], "b")
