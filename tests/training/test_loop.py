"""A whole training: what it writes, that it learns, and that one that was killed goes on to the last bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from qtoolkit.data.sources import open_data_source
from qtoolkit.errors import CheckpointError, DataSetError, QtoolError, UsageError
from qtoolkit.models.checkpoint import load_weights
from qtoolkit.training.journal import read_journal
from qtoolkit.training.loop import BEST_FILE, LOG_FILE, RECIPE_FILE, STATE_FILE, train
from qtoolkit.training.recipe import TrainRecipe, build_train_recipe

_ROOT = Path(__file__).resolve().parents[2]
_FIELDS = {
    "lite": True,
    "image_size": 64,
    "batch": 2,
    "images": 12,
    "log_every": 4,
    "workers": 0,
    "device": "cpu",
    "lr": 0.01,
    "warmup_images": 4,
    "threads": 1,
}
_KILLED = """
import os, signal, sys
from qtoolkit.data.sources import open_data_source
from qtoolkit.training.loop import train
from qtoolkit.training.recipe import build_train_recipe

def kill(stage, done, total):
    if stage == "training" and done == {at}:
        os.kill(os.getpid(), signal.SIGKILL)

train(build_train_recipe({fields!r}), kill, source=open_data_source({data!r}))
"""


class _Stopped(Exception):
    """What stands for Ctrl-C or a crash."""


def _recipe(out: Path, **fields) -> TrainRecipe:
    return build_train_recipe({**_FIELDS, "data": "people", "out": str(out), **fields})


def _stop_at(images: int):
    def progress(stage, done, total):
        if stage == "training" and done == images:
            raise _Stopped

    return progress


def _log(out: Path) -> list[dict]:
    timed = ("seconds", "images_per_second")
    return [{name: value for name, value in line.items() if name not in timed} for line in read_journal(out / LOG_FILE)]


def _assert_same_run(one: Path, other: Path) -> None:
    for name in (STATE_FILE, BEST_FILE):
        first, second = load_file(one / name), load_file(other / name)
        assert first.keys() == second.keys()
        assert all(torch.equal(tensor, second[key]) for key, tensor in first.items()), name
    assert _log(one) == _log(other)


@pytest.fixture
def source(make_people):
    return open_data_source(make_people(train=7, val=2))


def test_what_a_training_writes(source, tmp_path):
    seen = []
    result = train(_recipe(tmp_path / "run"), lambda *facts: seen.append(facts), source=source)
    assert sorted(path.name for path in result.out.iterdir()) == sorted([BEST_FILE, STATE_FILE, LOG_FILE, RECIPE_FILE])
    assert (result.images, result.steps) == (12, 6)
    assert result.ap == result.best_ap == 0
    lines = read_journal(result.out / LOG_FILE)
    assert [(line["event"], line["images"]) for line in lines] == [
        ("train", 4),
        ("train", 8),
        ("train", 12),
        ("eval", 12),
    ]
    assert set(lines[0]["loss"]) == {"box", "objectness", "keypoints", "confidence"}
    assert lines[-1]["ap"] == 0
    model, facts = load_weights(result.out / BEST_FILE)
    assert model.config.lite
    assert facts["images"] == 12
    assert facts["recipe"]["image_size"] == 64
    written = yaml.safe_load((result.out / RECIPE_FILE).read_text())
    assert build_train_recipe(written) == _recipe(tmp_path / "run")
    assert ("training", 12, 12) in seen
    assert any(stage.startswith("evaluating") for stage, _, _ in seen)


def test_threads_that_prepare_images_change_nothing(source, tmp_path):
    train(_recipe(tmp_path / "a"), source=source)
    train(_recipe(tmp_path / "b", workers=2), source=source)
    _assert_same_run(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="plain"),
        pytest.param({"optimizer": "adamw", "lr": 0.001}, id="adamw"),
        pytest.param({"optimizer": "muon", "lr": 0.01}, id="muon"),
        pytest.param({"accumulate": 2, "images": 16, "log_every": 12}, id="accumulated, in the middle of an interval"),
        pytest.param({"sizes": [[0.5, 64], [0.5, 128]], "close_mosaic": 0.3, "eval_every": 6}, id="phases"),
    ],
)
def test_a_run_that_was_stopped_goes_on_to_the_last_bit(source, tmp_path, fields):
    train(_recipe(tmp_path / "whole", **fields), source=source)
    stopped = _recipe(tmp_path / "stopped", save_every_minutes=1e-9, **fields)
    with pytest.raises(_Stopped):
        train(stopped, _stop_at(8), source=source)
    assert not (tmp_path / "stopped" / BEST_FILE).exists() or fields.get("eval_every")
    train(stopped, source=source, resume=True)
    _assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_a_run_that_was_killed_goes_on_to_the_last_bit(make_people, tmp_path):
    data = make_people(train=7, val=2)
    train(_recipe(tmp_path / "whole"), source=open_data_source(data))
    recipe = _recipe(tmp_path / "killed", save_every_minutes=1e-9)
    program = _KILLED.format(at=8, fields=recipe.model_dump(mode="json"), data=str(data))
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, check=False, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert json.loads(_header(tmp_path / "killed" / STATE_FILE))["step"] == 3
    train(recipe, source=open_data_source(data))
    _assert_same_run(tmp_path / "whole", tmp_path / "killed")
    assert not list((tmp_path / "killed").glob(".*"))


def _header(path: Path) -> str:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as stream:
        return stream.metadata()["qtoolkit_training_state"]


def test_a_finished_run_is_not_run_again(source, tmp_path):
    first = train(_recipe(tmp_path / "run"), source=source)
    before = (tmp_path / "run" / STATE_FILE).read_bytes()
    seen = []
    second = train(_recipe(tmp_path / "run"), lambda *facts: seen.append(facts), source=source)
    assert not [stage for stage, _, _ in seen if stage == "training"]
    assert (second.best_ap, second.images) == (first.best_ap, first.images)
    assert (tmp_path / "run" / STATE_FILE).read_bytes() == before


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_folder_of_another_training_is_left_alone(source, tmp_path):
    train(_recipe(tmp_path / "run"), source=source)
    before = _bytes(tmp_path / "run")
    with pytest.raises(UsageError, match=r"another training[\s\S]*lr 0\.01, now 0\.02; seed 0, now 1"):
        train(_recipe(tmp_path / "run", lr=0.02, seed=1), source=source)
    assert _bytes(tmp_path / "run") == before


def test_other_data_under_the_same_name_is_another_training(make_people, tmp_path):
    train(_recipe(tmp_path / "run"), source=open_data_source(make_people(train=7)))
    with pytest.raises(UsageError, match="other photos or labels"):
        train(_recipe(tmp_path / "run"), source=open_data_source(make_people(train=6, name="others")))


@pytest.mark.parametrize("content", [b"PK\x03\x04 a torch.save file", b"\x80\x04 a pickle", b"", b"noise" * 100])
def test_a_state_that_is_none_is_an_error_and_stays(source, tmp_path, content):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / STATE_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=STATE_FILE):
        train(_recipe(folder), source=source)
    assert _bytes(folder) == {STATE_FILE: content}


def test_resume_needs_something_to_go_on_with(source, tmp_path):
    with pytest.raises(UsageError, match="no training to go on with"):
        train(_recipe(tmp_path / "run"), source=source, resume=True)
    assert not (tmp_path / "run").exists()


def test_bad_labels_end_a_training_before_anything_is_written(make_people, tmp_path):
    def damage(document):
        document["annotations"][0]["area"] = 0

    with pytest.raises(DataSetError, match="the area is zero"):
        train(_recipe(tmp_path / "run"), source=open_data_source(make_people(change=damage)))
    assert not (tmp_path / "run").exists()


def test_weights_of_another_network_cannot_be_started_from(source, tmp_path):
    first = train(_recipe(tmp_path / "lite", images=2), source=source)
    with pytest.raises(CheckpointError, match=r"another network[\s\S]*a n6 with 17[\s\S]*a n6 lite with 17"):
        train(_recipe(tmp_path / "full", lite=False, init=str(first.weights)), source=source)
    assert not (tmp_path / "full").exists()


def test_relu_starts_from_the_weights_of_silu(source, tmp_path):
    first = train(_recipe(tmp_path / "silu", images=4), source=source)
    fields = {"activation": "relu", "init": str(first.weights), "images": 2, "ema_decay": 0.0}
    second = train(_recipe(tmp_path / "relu", **fields, lr=1e-9, warmup_images=0), source=source)
    silu, relu = load_weights(first.weights)[0], load_weights(second.weights)[0]
    assert relu.config.activation == "relu"
    for name, parameter in silu.named_parameters():
        assert torch.allclose(parameter, dict(relu.named_parameters())[name], atol=1e-5), name


def test_a_loss_that_is_no_number_ends_the_training(source, tmp_path):
    with pytest.raises(QtoolError, match="diverged"):
        train(_recipe(tmp_path / "run", lr=1e12, warmup_images=0, clip_norm=0, images=40), source=source)


def test_fp16_needs_cuda(source, tmp_path):
    with pytest.raises(UsageError, match="fp16 is for training on CUDA"):
        train(_recipe(tmp_path / "run", amp="fp16", device="cpu"), source=source)


def test_bf16_trains(source, tmp_path):
    result = train(_recipe(tmp_path / "run", amp="bf16", images=4), source=source)
    assert all(tensor.dtype != torch.bfloat16 for tensor in load_file(result.weights).values())


def test_without_labels_to_evaluate_with_the_last_weights_are_kept(make_people, tmp_path):
    root = make_people()
    (root / "dataset.yaml").write_text("kind: coco-keypoints\ntrain: {images: train, annotations: train.json}\n")
    result = train(_recipe(tmp_path / "run", images=4), source=open_data_source(root))
    assert result.ap is None
    assert result.weights.exists()
