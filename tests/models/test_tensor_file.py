import pickle

import pytest
import torch
from safetensors.torch import save_file

from qtoolkit.errors import CheckpointError
from qtoolkit.models.tensor_file import check_tensors, read_safetensors, read_state_dict

TENSORS = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}


def _same(found):
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


def test_safetensors_with_their_header(tmp_path):
    save_file(TENSORS, tmp_path / "x", {"who": "me"})
    tensors, header = read_safetensors(tmp_path / "x")
    _same(tensors)
    assert header == {"who": "me"}
    _same(read_state_dict(tmp_path / "x"))


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"model": x, "epoch": 3}, lambda x: {"state_dict": x}])
@pytest.mark.parametrize("zipped", [True, False])
def test_saved_state_dicts(tmp_path, wrap, zipped):
    torch.save(wrap(TENSORS), tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    _same(read_state_dict(tmp_path / "x.pt"))


class _Trap:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was opened",))


def test_a_pickle_of_objects_is_not_opened(tmp_path):
    torch.save({"model": _Trap()}, tmp_path / "torch.pt")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(_Trap(), protocol=4))
    for name in ("torch.pt", "plain.pkl"):
        with pytest.raises(CheckpointError, match="cannot be read") as error:
            read_state_dict(tmp_path / name)
        assert "pickle" in str(error.value)
        with pytest.raises(CheckpointError, match="a pickle"):
            read_safetensors(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [(torch.zeros(3), "found: a Tensor"), ({"a": 3}, "entry 'a' is no tensor"), ({}, "found: a dict"), ([1], "a list")],
)
def test_other_content(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=message):
        read_state_dict(tmp_path / "x.pt")


@pytest.mark.parametrize("read", [read_safetensors, read_state_dict])
def test_files_that_are_none(tmp_path, read):
    (tmp_path / "text").write_text("hello, this is no file of tensors")
    (tmp_path / "empty").write_bytes(b"")
    torch.save(TENSORS, tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:500])
    for name in ("text", "empty", "cut.pt", "absent", "."):
        with pytest.raises(CheckpointError, match="cannot be read"):
            read(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"(?i)no such file"):
        read(tmp_path / "absent")


def test_many_faults_are_counted(tmp_path):
    with pytest.raises(CheckpointError) as error:
        check_tensors(tmp_path / "f", {}, {str(i): torch.zeros(1) for i in range(10)}, "a network")
    assert "expected: 10 tensors of a network" in str(error.value)
    assert "found: 0 tensors, without 0; without 1; without 2 and 7 more faults" in str(error.value)
