"""Retraining without labels from end to end on a small network: files, names, resuming, and what is refused."""

from __future__ import annotations

import json

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest

from qtoolkit.errors import DataSetError, ModelFileError, UsageError
from qtoolkit.graph.layers import find_layers
from qtoolkit.graph.load import prepare_network
from qtoolkit.training import retrain
from qtoolkit.training.retrain import retrain_network
from qtoolkit.training.retrain_options import RetrainOptions


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(6):
        noise = np.random.default_rng(index).integers(0, 255, (12, 16, 3), np.uint8)
        cv2.imwrite(str(folder / f"{index}.jpg"), cv2.resize(noise, (80, 60), interpolation=cv2.INTER_CUBIC))
    return folder


@pytest.fixture
def options(tmp_path, photos, tiny_pose_model):
    onnx.save(tiny_pose_model(), tmp_path / "net.onnx")

    def make(**changes):
        fields = {
            "model": tmp_path / "net.onnx", "images": str(photos), "out": tmp_path / "out", "fit_images": 4,
            "fit_size": 64, "rows": 2000, "steps_images": 12, "train_size": 64, "batch": 2, "threads": 1,
        }  # fmt: skip
        return RetrainOptions.model_validate(fields | changes)

    return make


def _weights(path):
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def test_inputs_outputs_and_layers_keep_their_names(options, tmp_path):
    stages = []
    result = retrain_network(options(), lambda stage, done, total: stages.append(stage))
    original, made = prepare_network(onnx.load(tmp_path / "net.onnx")), onnx.load(result.model)
    assert {"fitting layers", "fine-tuning"} <= set(stages)
    assert [(layer.name, layer.output) for layer in find_layers(made)] == [
        (layer.name, layer.output) for layer in find_layers(original)
    ]
    for side in ("input", "output"):
        assert [value.name for value in getattr(made.graph, side)] == [
            value.name for value in getattr(original.graph, side)
        ]
    kinds = [node.op_type for node in made.graph.node]
    assert kinds.count("Relu") == len(result.changes) > 10
    session = onnxruntime.InferenceSession(str(result.model), providers=["CPUExecutionProvider"])
    assert session.run(None, {"images": np.zeros((1, 3, 64, 64), np.float32)})[0].shape == (1, 56, 84)


def test_a_stopped_run_goes_on_to_the_same_weights(options, tmp_path, monkeypatch):
    whole = retrain_network(options(out=tmp_path / "whole"))
    step = retrain._Retraining._step

    def stops(self, batch, optimizer, number):
        if number == 4:
            raise KeyboardInterrupt
        return step(self, batch, optimizer, number)

    monkeypatch.setattr(retrain._Retraining, "_step", stops)
    with pytest.raises(KeyboardInterrupt):
        retrain_network(options(out=tmp_path / "parts", save_every_minutes=1e-9))
    monkeypatch.undo()
    fitted = []
    parts = retrain_network(options(out=tmp_path / "parts"), lambda stage, done, total: fitted.append(stage))
    assert "fitting layers" not in fitted
    wanted, found = _weights(whole.model), _weights(parts.model)
    assert wanted.keys() == found.keys()
    assert all(np.array_equal(wanted[name], found[name]) for name in wanted)
    images = [json.loads(line)["images"] for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert images == sorted(set(images))


def test_the_fit_alone(options, tmp_path):
    result = retrain_network(options(steps_images=0))
    assert result.model.exists()
    assert not (tmp_path / "out" / "last.safetensors").exists()


def test_a_folder_of_another_retraining_is_refused(options, tmp_path):
    retrain_network(options(steps_images=0))
    before = (tmp_path / "out" / "fitted.safetensors").read_bytes()
    with pytest.raises(UsageError, match="another training"):
        retrain_network(options(steps_images=0, seed=5))
    assert (tmp_path / "out" / "fitted.safetensors").read_bytes() == before


def test_a_network_without_anything_to_replace(options, tmp_path, tiny_pose_model):
    onnx.save(tiny_pose_model(activation="relu"), tmp_path / "relu.onnx")
    with pytest.raises(ModelFileError, match="nothing to replace"):
        retrain_network(options(model=tmp_path / "relu.onnx"))
    assert not (tmp_path / "out").exists()


def test_a_folder_without_photos(options, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataSetError):
        retrain_network(options(images=str(tmp_path / "empty")))


def test_photos_that_are_evaluated_on_are_refused(options, tmp_path, make_people):
    data = make_people()
    with pytest.raises(DataSetError, match="evaluation"):
        retrain_network(options(images=str(data / "val"), data=str(data)))
