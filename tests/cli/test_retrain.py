"""``qtool retrain`` at the command line."""

from __future__ import annotations

import json

import cv2
import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from qtoolkit.cli.main import cli


@pytest.fixture
def network(tmp_path, tiny_pose_model):
    onnx.save(tiny_pose_model(), tmp_path / "net.onnx")
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(3):
        image = np.random.default_rng(index).integers(0, 255, (48, 64, 3), np.uint8)
        cv2.imwrite(str(folder / f"{index}.jpg"), image)
    return tmp_path / "net.onnx"


def _run(*words):
    return CliRunner().invoke(cli, ["retrain", *map(str, words)])


def test_the_result_as_json(network, tmp_path):
    out = tmp_path / "out"
    result = _run(
        network, "--images", tmp_path / "photos", "--fit-size", 64, "--seen", 4, "--batch", 2, "--train-size", 64,
        "--threads", 1, "--out", out, "--quiet", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["photos"] == 3
    assert document["activations_replaced"] > 10
    assert document["ap"] == []
    assert document["model"] == str(out / "model.onnx")
    assert (out / "model.onnx").exists()


def test_the_result_in_words(network, tmp_path):
    result = _run(
        network, "--images", tmp_path / "photos", "--fit-size", 64, "--seen", 0, "--threads", 1, "--out",
        tmp_path / "out", "--quiet",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "(silu); 3 photos" in result.stdout


@pytest.mark.parametrize(
    ("words", "exit_code", "says"),
    [
        (("net.onnx",), 2, "--images"),
        (("absent.onnx", "--images", "photos"), 3, "absent.onnx"),
        (("net.onnx", "--images", "nowhere"), 3, "nowhere"),
        (("net.onnx", "--images", "photos", "--activation", "tanh"), 2, "tanh"),
    ],
)
def test_bad_input(network, tmp_path, words, exit_code, says):
    words = [str(tmp_path / word) if word in ("net.onnx", "absent.onnx", "photos") else word for word in words]
    result = _run(*words, "--out", tmp_path / "out")
    assert result.exit_code == exit_code
    assert says in result.output
    assert not (tmp_path / "out").exists()
