"""``qtool train`` at the command line."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from qtoolkit.data.skeletons import COCO17

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
