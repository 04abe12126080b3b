"""``qtool train`` at the command line."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from click.testing import Result

from qtoolkit.data.skeletons import COCO17
from qtoolkit.models.checkpoint import save_weights
from qtoolkit.models.yolopose import YoloPose, YoloPoseConfig

_SMALL = (
    "--lite", "--image-size", 64, "--images", 4, "--batch", 2, "--threads", 1, "--workers", 0, "--device", "cpu",
)  # fmt: skip


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Four images of noise, one person in each."""
    root = tmp_path / "labelled"
    (root / "train").mkdir(parents=True)
    images, people = [], []
    for index in range(1, 5):
        noise = np.random.default_rng(index).integers(0, 256, (60, 80, 3), np.uint8)
        cv2.imwrite(str(root / "train" / f"{index}.png"), noise)
        images.append({"id": index, "file_name": f"{index}.png", "width": 80, "height": 60})
        keypoints = [value for k in range(17) for value in (25 + k, 10 + 2 * k, 2)]
        people.append(
            {"id": index, "image_id": index, "category_id": 1, "bbox": [20, 5, 30, 45], "area": 900, "iscrowd": 0,
             "num_keypoints": 17, "keypoints": keypoints}
        )  # fmt: skip
    category = {"id": 1, "name": "person", "keypoints": list(COCO17.keypoint_names), "skeleton": []}
    document = {"images": images, "annotations": people, "categories": [category]}
    (root / "train.json").write_text(json.dumps(document))
    part = "{images: train, annotations: train.json}"
    (root / "dataset.yaml").write_text(f"kind: coco-keypoints\ntrain: {part}\nval: {part}\n")
    return root


def test_a_training_as_json_and_again(labelled, tmp_path, qtool):
    words = ("train", "--data", labelled, "--out", tmp_path / "run", *_SMALL, "--json")
    result = qtool(*words)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert (document["images"], document["steps"], document["skipped"]) == (4, 2, [])
    assert Path(document["weights"]).exists()
    assert "training" in result.stderr
    again = json.loads(qtool(*words).stdout)
    assert again["best_ap"] == document["best_ap"]


def test_a_training_by_a_recipe_as_text(labelled, tmp_path, qtool):
    recipe = tmp_path / "small.yaml"
    recipe.write_text("kind: train\ndata: labelled\nlite: true\nimage_size: 64\nimages: 90\nthreads: 1\nworkers: 0\n")
    out = tmp_path / "run"
    result = qtool("train", recipe, "--out", out, "--images", 2, "--batch", 2, "--device", "cpu", "--quiet")
    assert result.exit_code == 0, result.output
    assert "AP 0.00, best 0.00" in result.stdout
    assert "2 images in 1 steps" in result.stdout
    assert f"weights: {out / 'best.safetensors'}" in result.stdout
    assert not result.stderr


@pytest.mark.parametrize(
    ("words", "exit_code", "message"),
    [
        pytest.param(["--resume"], 2, "no training to go on with", id="nothing to go on with"),
        pytest.param(["--image-size", 100], 2, "multiple of 64", id="image size"),
        pytest.param(["--images", 0], 2, "0 is not in the range", id="no images"),
        pytest.param(["--init", "none.safetensors"], 3, "no such file", id="no weights"),
    ],
)
def test_what_cannot_be_trained(labelled, tmp_path, qtool, words, exit_code, message):
    result = qtool("train", "--data", labelled, "--out", tmp_path / "run", *_SMALL, *words)
    assert result.exit_code == exit_code
    assert message in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_recipe_of_the_pipeline_is_none(tmp_path, qtool):
    (tmp_path / "r.yaml").write_text("model: a.onnx\ndata: b\n")
    result = qtool("train", tmp_path / "r.yaml")
    assert result.exit_code == 3
    assert "no training recipe" in result.stderr


def _change_person(root: Path, **changes: object) -> None:
    document = json.loads((root / "train.json").read_text())
    document["annotations"][1].update(changes)
    (root / "train.json").write_text(json.dumps(document))


def _empty_set(root: Path) -> None:
    (root / "train.json").write_text(json.dumps({"images": [], "annotations": [], "categories": []}))


def _nobody(root: Path) -> None:
    document = json.loads((root / "train.json").read_text())
    (root / "train.json").write_text(json.dumps(document | {"annotations": []}))


def _no_photo(root: Path) -> None:
    for photo in (root / "train").iterdir():
        photo.write_bytes(b"")


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """An output folder that holds something already."""
    out = tmp_path / "run"
    out.mkdir()
    (out / "best.safetensors").write_bytes(b"the weights of a better day")
    (out / "recipe.yaml").write_text("kind: train\n")
    return out


def _train_in_vain(qtool: Callable[..., Result], data: Path, out: Path, *words: object) -> str:
    """What a training says that must end with exit code 3 and leave ``out`` as it was."""
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    result = qtool("train", "--data", data, "--out", out, *_SMALL, *words)
    assert result.exit_code == 3, result.output
    assert result.stderr.startswith("qtool: error: ")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    return result.stderr


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(lambda root: _change_person(root, bbox=[float("nan"), 5, 30, 45]), "bbox is NaN or", id="NaN box"),
        pytest.param(
            lambda root: _change_person(root, keypoints=[float("nan")] * 51), "keypoints is NaN or infinite",
            id="NaN keypoints",
        ),
        pytest.param(
            lambda root: _change_person(root, bbox=[70, 5, 30, 45]), "the box reaches outside its image", id="outside"
        ),
        pytest.param(
            lambda root: _change_person(root, bbox=[-40, 5, 30, 45]), "the box reaches outside its image", id="left"
        ),
        pytest.param(lambda root: _change_person(root, bbox=[20, 5, 0, 45]), "the box has no area", id="empty box"),
        pytest.param(lambda root: _change_person(root, area=0), "the area is zero", id="no area"),
        pytest.param(
            lambda root: _change_person(root, keypoints=[1, 2, 2] * 16), "keypoints holds 48 values, expected 51",
            id="16 keypoints",
        ),
        pytest.param(_empty_set, "there is no image", id="empty set"),
        pytest.param(_nobody, "labels nobody", id="nobody"),
        pytest.param(_no_photo, "4 images, none of them usable", id="no photo"),
    ],
)  # fmt: skip
def test_labels_that_nothing_can_be_learned_from(labelled, kept, qtool, damage, message):
    damage(labelled)
    assert message in _train_in_vain(qtool, labelled, kept)


class _Trap:
    """Leaves a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


def test_weights_of_another_architecture(labelled, kept, tmp_path, qtool):
    save_weights(tmp_path / "full.safetensors", YoloPose(YoloPoseConfig(lite=False)), {})
    said = _train_in_vain(qtool, labelled, kept, "--init", tmp_path / "full.safetensors")
    assert "are of another network" in said
    assert "expected: a n6 lite with 17 keypoints" in said
    assert "found: a n6 with 17 keypoints" in said


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_weights_that_are_a_pickle_are_not_opened(labelled, kept, tmp_path, qtool, save):
    mark = tmp_path / "opened"
    save({"model": _Trap(mark)}, tmp_path / "weights.pt")
    said = _train_in_vain(qtool, labelled, kept, "--init", tmp_path / "weights.pt")
    assert "a pickle (torch.save), which may run code when it is opened and is not" in said
    assert not mark.exists()


def test_a_state_that_is_a_pickle_is_not_opened(labelled, kept, tmp_path, qtool):
    mark = tmp_path / "opened"
    torch.save({"model": _Trap(mark)}, kept / "last.safetensors")
    assert "which may run code when it is opened and is not" in _train_in_vain(qtool, labelled, kept)
    assert not mark.exists()
