import dataclasses
import json

import pytest

from qtoolkit.errors import UsageError
from qtoolkit.models.yolopose_config import SIZES, YoloPoseConfig, config_of_architecture


def test_there_and_back_through_json():
    config = YoloPoseConfig("m6", True, "relu", 14, "ti", "silu")
    assert YoloPoseConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert YoloPoseConfig.from_json({}) == YoloPoseConfig()


def test_it_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        YoloPoseConfig().size = "s6"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", "x6"),
        ("size", ["n6"]),
        ("lite", "yes"),
        ("activation", "mish"),
        ("keypoint_count", 0),
        ("keypoint_count", True),
        ("keypoint_count", 17.0),
        ("head_order", "other"),
        ("side_activation", "mish"),
        ("depth", 3),
    ],
)
def test_what_no_network_has(field, value):
    with pytest.raises(UsageError, match=f"no YOLO-Pose network has this {field}") as error:
        YoloPoseConfig.from_json({field: value})
    assert repr(value) in str(error.value)


@pytest.mark.parametrize(
    ("size", "channels", "repeats"),
    [
        ("n6", [16, 32, 64, 128, 192, 256], (1, 3)),
        ("s6", [32, 64, 128, 256, 384, 512], (1, 3)),
        ("m6", [48, 96, 192, 384, 576, 768], (2, 6)),
        ("l6", [64, 128, 256, 512, 768, 1024], (3, 9)),
    ],
)
def test_multiples(size, channels, repeats):
    config = YoloPoseConfig(size)
    assert [config.channels(base) for base in (64, 128, 256, 512, 768, 1024)] == channels
    assert (config.repeats(3), config.repeats(9)) == repeats


@pytest.mark.parametrize("name", [f"{size}{ending}" for size in SIZES for ending in ("", "-lite")])
def test_names_of_architectures(name):
    config = config_of_architecture(name)
    assert config.architecture == name
    assert config.activation == ("relu" if config.lite else "silu")


@pytest.mark.parametrize("name", ["s6-", "s6-pose", "", "lite"])
def test_unknown_architectures(name):
    with pytest.raises(UsageError, match="no architecture called") as error:
        config_of_architecture(name)
    assert "s6-lite" in str(error.value)
