"""Retraining without labels from end to end on a small network: files, names, resuming, and what is refused."""

from __future__ import annotations

import json

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from qtoolkit.errors import DataSetError, ModelFileError, QtoolError, UnavailableError, UsageError
from qtoolkit.graph.layers import find_layers
from qtoolkit.graph.load import prepare_network
from qtoolkit.training import fine_tuning
from qtoolkit.training.retrain import retrain_network
from qtoolkit.training.retrain_options import RetrainOptions, build_retrain_options


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
            "device": "cpu",
        }  # fmt: skip
        return RetrainOptions.model_validate(fields | changes)

    return make


def _weights(path):
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def _log(folder):
    """The lines of the log without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines]


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


@pytest.mark.parametrize(
    ("stage", "at", "minutes"),
    [
        ("fitting layers", 5, 3.0),
        ("fine-tuning", 8, 3.0),
        ("fine-tuning", 2, 1e-9),
        ("fine-tuning", 8, 1e-9),
        ("fine-tuning", 12, 1e-9),
    ],
    ids=["in the fit", "before any state", "behind one step", "behind three steps", "at the last step"],
)
def test_a_stopped_run_goes_on_to_the_same_weights(options, tmp_path, stage, at, minutes):
    def stops(name, done, total):
        if (name, done) == (stage, at):
            raise KeyboardInterrupt

    whole = retrain_network(options(out=tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        retrain_network(options(out=tmp_path / "parts", save_every_minutes=minutes), stops)
    stages = []
    parts = retrain_network(options(out=tmp_path / "parts"), lambda name, done, total: stages.append(name))
    assert ("fitting layers" in stages) == (stage == "fitting layers")
    wanted, found = _weights(whole.model), _weights(parts.model)
    assert wanted.keys() == found.keys()
    assert all(np.array_equal(wanted[name], found[name]) for name in wanted)
    assert _log(tmp_path / "whole") == _log(tmp_path / "parts")


def test_the_log_begins_with_the_fit_and_holds_every_ap(options, tmp_path, make_people):
    fields = {"data": str(make_people()), "eval_every": 6}
    result = retrain_network(options(**fields))
    assert set(result.ap) == {-1, 0, 6, 12}
    lines = _log(tmp_path / "out")
    assert [(line["event"], line.get("variant"), line.get("images")) for line in lines] == [
        ("fit", None, None),
        ("evaluate", "original", 0),
        ("evaluate", "fitted", 0),
        ("evaluate", "retrained", 6),
        ("train", None, 12),
        ("evaluate", "retrained", 12),
    ]
    fit = lines[0]
    assert fit["fit_images"] == 4
    assert 0 < fit["error"] == pytest.approx(np.mean(list(fit["layers"].values())))
    stages = []
    again = retrain_network(options(**fields), lambda name, done, total: stages.append(name))
    assert again.ap == result.ap
    assert stages == []
    assert _log(tmp_path / "out") == lines


def test_a_finished_run_writes_a_network_that_was_removed(options):
    first = retrain_network(options(steps_images=4))
    content = first.model.read_bytes()
    first.model.unlink()
    assert retrain_network(options(steps_images=4)).model.read_bytes() == content


def test_a_fit_serves_any_fine_tuning_but_no_fine_tuning_another(options, tmp_path):
    retrain_network(options(steps_images=0))
    stages = []
    retrain_network(options(steps_images=4), lambda name, done, total: stages.append(name))
    assert set(stages) == {"fine-tuning"}
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(UsageError, match=r"lr 7e-05, now 0\.001"):
        retrain_network(options(steps_images=4, lr=0.001))
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_the_same_files_elsewhere_are_the_same(options, tmp_path, photos):
    first = retrain_network(options(steps_images=4))
    photos.rename(tmp_path / "moved")
    (tmp_path / "net.onnx").rename(tmp_path / "renamed.onnx")
    stages = []
    retrain_network(
        options(steps_images=4, images=str(tmp_path / "moved"), model=tmp_path / "renamed.onnx"),
        lambda name, done, total: stages.append(name),
    )
    assert stages == []
    assert first.model.exists()


def test_the_fit_alone(options, tmp_path):
    result = retrain_network(options(steps_images=0))
    assert result.model.exists()
    assert not (tmp_path / "out" / "last.safetensors").exists()
    assert [line["event"] for line in _log(tmp_path / "out")] == ["fit"]


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


def test_data_without_labels(options, tmp_path, photos):
    with pytest.raises(DataSetError, match="no AP can be measured"):
        retrain_network(options(data=str(photos)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["fit_size", "train_size"])
def test_a_size_that_the_network_does_not_run_at(options, tmp_path, option):
    with pytest.raises(UsageError, match=f"--{option.replace('_', '-')}"):
        retrain_network(options(**{option: 40}))
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_that_is_not_there(options, tmp_path):
    with pytest.raises(UnavailableError, match="no such CUDA device"):
        retrain_network(options(device="cuda"))
    assert not (tmp_path / "out").exists()


def test_a_run_may_go_on_on_another_device(options):
    assert "device" not in options(device="cpu").outcome_fields()
    retrain_network(options(steps_images=4, device="auto"))
    stages = []
    retrain_network(options(steps_images=4, device="cpu"), lambda name, done, total: stages.append(name))
    assert stages == []


def test_a_loss_that_is_no_number_leaves_the_state(options, tmp_path, monkeypatch):
    retrain_network(options(steps_images=0))
    monkeypatch.setattr(fine_tuning.math, "isfinite", lambda value: False)
    with pytest.raises(QtoolError, match="lower --lr"):
        retrain_network(options())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "fitted.safetensors",
        "log.jsonl",
        "model.onnx",
    ]


def test_options_that_cannot_be_used():
    with pytest.raises(UsageError, match="fit_size"):
        build_retrain_options(model="a.onnx", images="photos", out="out", fit_size=8)
