import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from qtoolkit.errors import CheckpointError
from qtoolkit.models.checkpoint import load_weights, save_weights
from qtoolkit.models.yolopose import YoloPose, YoloPoseConfig

CONFIG = {"lite": True, "activation": "relu", "keypoint_count": 4}


@pytest.fixture
def saved(make_network, tmp_path):
    model = make_network(**CONFIG)
    save_weights(tmp_path / "best.safetensors", model, {"ap": 61.5, "recipe": {"image_size": 192}})
    return model, tmp_path / "best.safetensors"


def _rewrite(path, change):
    """The file again, after ``change(tensors, header)``."""
    with safe_open(path, framework="pt") as stream:
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        header = json.loads(stream.metadata()["qtoolkit_weights"])
    change(tensors, header)
    save_file(tensors, path, {"qtoolkit_weights": json.dumps(header)})


def test_there_and_back(saved):
    model, path = saved
    found, metadata = load_weights(path)
    assert metadata == {"ap": 61.5, "recipe": {"image_size": 192}}
    assert found.config == YoloPoseConfig(**CONFIG)
    assert not found.training
    assert all(torch.equal(tensor, found.state_dict()[name]) for name, tensor in model.state_dict().items())
    x = torch.rand(1, 3, 64, 64)
    assert all(torch.equal(a, b) for a, b in zip(model(x), found(x), strict=True))


def test_half_a_file(saved, tmp_path):
    model, path = saved
    save_weights(tmp_path / "half.safetensors", model, {"ap": 1.0}, half=True)
    assert (tmp_path / "half.safetensors").stat().st_size < 0.55 * path.stat().st_size
    found, _ = load_weights(tmp_path / "half.safetensors")
    for name, tensor in model.state_dict().items():
        rounded = tensor.half().float() if tensor.dim() == 4 else tensor
        assert torch.equal(found.state_dict()[name], rounded)
        assert found.state_dict()[name].dtype == tensor.dtype


def test_equal_weights_give_equal_bytes(saved, tmp_path):
    model, path = saved
    again = model.to(memory_format=torch.channels_last)
    save_weights(tmp_path / "again", again, {"recipe": {"image_size": 192}, "ap": 61.5})
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_loading_draws_no_random_numbers(saved):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    load_weights(saved[1])
    assert torch.equal(torch.rand(4), expected)


def test_a_failed_write_leaves_the_old_file(saved):
    model, path = saved
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save_weights(path, model, {"ap": object()})
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, header: tensors.pop("heads.0.box.bias"), "without heads.0.box.bias"),
        (lambda tensors, header: tensors.update(more=torch.zeros(1)), "with more, which it does not have"),
        (
            lambda tensors, header: tensors.update(anchors=torch.zeros(3, 3, 2)),
            r"of shape \(3, 3, 2\) where \(4, 3, 2\)",
        ),
        (lambda tensors, header: tensors["anchors"].fill_(torch.nan), "with NaN or infinity in anchors"),
        (lambda tensors, header: header["config"].update(size="s6"), "tensors of a s6-lite with 4 keypoints"),
        (lambda tensors, header: header.update(version=9), "expected: version 1\n  found: 9"),
        (lambda tensors, header: header["config"].update(size="x6"), "no YOLO-Pose network has this size"),
        (lambda tensors, header: header.pop("config"), "the header of .* cannot be used"),
    ],
    ids=["missing", "unknown", "shape", "nan", "architecture", "version", "size", "header"],
)
def test_faults_are_named(saved, change, message):
    _rewrite(saved[1], change)
    with pytest.raises(CheckpointError, match=message) as error:
        load_weights(saved[1])
    assert error.value.exit_code == 3
    assert str(saved[1]) in str(error.value)


def test_weights_of_another_program(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="holds no weights of a network of qtoolkit") as error:
        load_weights(tmp_path / "other.safetensors")
    assert "format" in str(error.value)


def test_one_reading_of_double_weights_is_float32(make_network, tmp_path):
    save_weights(tmp_path / "w", make_network(**CONFIG).double())
    found, metadata = load_weights(tmp_path / "w")
    assert metadata == {}
    assert {parameter.dtype for parameter in found.parameters()} == {torch.float32}
    assert isinstance(found, YoloPose)
