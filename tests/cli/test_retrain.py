"""``qtool retrain`` at the command line."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner

from qtoolkit.cli.main import cli
from qtoolkit.graph import default_network
from qtoolkit.models.checkpoint import save_weights
from qtoolkit.models.yolopose import YoloPose, YoloPoseConfig
from qtoolkit.training import loop
from qtoolkit.training.loop import TrainResult


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
        (("net.onnx", "--images", "photos", "--fit-size", "8"), 2, "fit_size"),
        (("net.onnx", "--images", "photos", "--data", "photos"), 3, "no AP can be measured"),
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


def test_without_photos(network):
    result = _run(network)
    assert result.exit_code == 2
    assert "there are no photos to retrain on" in result.output


def test_without_a_network_the_default_one_is_taken(network, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(default_network, "default_network", lambda activation: asked.append(activation) or network)
    result = _run(
        "--images", tmp_path / "photos", "--fit-size", 64, "--seen", 0, "--threads", 1, "--out", tmp_path / "out",
        "--quiet",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert asked == ["silu"]


@pytest.fixture
def weights(tmp_path):
    (tmp_path / "n6").mkdir()
    with torch.random.fork_rng(devices=[]):
        save_weights(tmp_path / "n6" / "best.safetensors", YoloPose(YoloPoseConfig()), {"recipe": {"image_size": 192}})
    return tmp_path / "n6" / "best.safetensors"


@pytest.fixture
def trained(monkeypatch):
    """The recipes that a training was asked for; none is trained by."""
    recipes = []

    def train(recipe, progress):
        recipes.append(recipe)
        weights = recipe.out / "best.safetensors"
        return TrainResult(recipe.out, weights, recipe.images, 10, 51.5, 52.25, 60.0, 20.0, ())

    monkeypatch.setattr(loop, "train", train)
    return recipes


def test_weights_are_trained_on_with_labels(weights, trained):
    result = _run(weights, "--data", "people", "--seen", 320, "--train-size", 128, "--lr", 0.002, "--quiet")
    assert result.exit_code == 0, result.output
    (recipe,) = trained
    assert (recipe.init, recipe.activation, recipe.data) == (weights, "relu", "people")
    assert (recipe.images, recipe.image_size, recipe.lr) == (320, 128, 0.002)
    assert recipe.out == Path("runs/n6-relu")
    assert "AP 51.50, best 52.25, after 320 images" in result.stdout


@pytest.mark.parametrize(("word", "amp"), [("auto", "off"), ("bf16", "bf16")])
def test_bfloat16_for_weights_is_asked_for(weights, trained, word, amp):
    assert _run(weights, "--data", "people", "--amp", word, "--quiet").exit_code == 0
    assert trained[0].amp == amp


def test_the_device_of_weights_is_that_of_their_training(weights, trained):
    assert _run(weights, "--data", "people", "--device", "cpu", "--quiet").exit_code == 0
    assert _run(weights, "--data", "people", "--quiet").exit_code == 0
    assert [recipe.device for recipe in trained] == ["cpu", "auto"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_that_is_not_there(network, tmp_path):
    result = _run(network, "--images", tmp_path / "photos", "--device", "cuda", "--out", tmp_path / "out")
    assert "no such CUDA device" in result.output
    assert result.exit_code != 0
    assert not (tmp_path / "out").exists()


def test_retrained_weights_as_json(weights, trained):
    result = _run(weights, "--data", "people", "--quiet", "--json")
    document = json.loads(result.stdout)
    assert document["weights"] == str(Path("runs/n6-relu/best.safetensors"))
    assert (document["images"], document["ap"], document["best_ap"]) == (80000, 51.5, 52.25)
    assert trained[0].image_size == 192


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "no --data"),
        (("--data", "people", "--images", "photos", "--fit-size", "64"), "--images, --fit-size"),
        (("--data", "people", "--seen", "0"), "--seen 0"),
    ],
    ids=["no labels", "options of the other way", "a fit"],
)
def test_what_weights_cannot_be_given(weights, trained, words, says):
    result = _run(weights, *words)
    assert result.exit_code == 2
    assert says in result.output
    assert not trained
