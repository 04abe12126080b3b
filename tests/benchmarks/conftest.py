"""The scripts of benchmarks/ are no package: their folders are put on the path, as Python does when it runs them."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

_BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
for _folder in (_BENCHMARKS, _BENCHMARKS / "peers", _BENCHMARKS / "peers" / "quantizers"):
    if str(_folder) not in sys.path:
        sys.path.append(str(_folder))


@pytest.fixture
def confident_network(tiny_pose_model) -> onnx.ModelProto:
    """The tiny network made sure of what it sees, so that there are people to rank layers by and to agree on."""
    model = tiny_pose_model("relu")
    for tensor in model.graph.initializer:
        raised = re.fullmatch(r"head\.(score|keypoints)\.\d\.1\.bias", tensor.name)
        if raised:
            bias = numpy_helper.to_array(tensor).copy()
            bias[slice(None) if raised[1] == "score" else slice(2, None, 3)] += {"score": 1, "keypoints": 3}[raised[1]]
            tensor.CopyFrom(numpy_helper.from_array(bias, tensor.name))
    return model


@pytest.fixture
def add_unlabelled() -> Callable[[Path, list[bytes]], Path]:
    """``add_unlabelled(data, images)`` → the data set with a part unlabeled, ``more``, of these PNG files."""

    def add(data: Path, images: list[bytes]) -> Path:
        (data / "more").mkdir()
        for number, content in enumerate(images):
            (data / "more" / f"{number}.png").write_bytes(content)
        text = (data / "dataset.yaml").read_text()
        (data / "dataset.yaml").write_text(f"{text}\nunlabeled: {{images: more}}\n")
        return data

    return add
