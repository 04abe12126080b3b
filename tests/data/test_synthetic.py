from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from qtoolkit.data.rendering.scene import DIFFICULTIES, SceneOptions
from qtoolkit.data.synthetic import PARTS, RENDERER_VERSION, SyntheticSpec, is_synthetic, parse_spec, render
from qtoolkit.errors import UsageError

_ROOT = Path(__file__).resolve().parents[2]

# (seed, index, part, size, difficulty) → SHA-256 of the decoded pixels and of the labels. Whoever changes a pixel on
# purpose raises RENDERER_VERSION and writes the new hashes here.
GOLDEN = {
    (0, 0, "val", 320): "53fbe0c8ab15a235146b5f7ada6c370cc04f70ade4d822b0211bb12eb8de9b51",
    (7, 3, "train", 320): "cf64bf6a90c15d0d09946231379fce78fbac28fb7a31b2b5f0440f23e8941959",
    (7, 12, "calib", 160): "2363dc0d01dd1eddadf19af008d9c428c02c26cc1a8836e69842d19b7654615f",
    (1, 5, "val", 480): "4453ab4dd2eade0edc0455e4fe803ebc0a251feb79a75be657c47abc9f15467c",
    (4, 20, "train", 640): "7eda64d05241cd30a1b2edc1af084845e268e9ab1e3a4da6f091d094e13af4b1",
    (3, 1, "val", 320, "hard"): "4aed13c46dec7f11dbe2a1fe09987512d34b3bfb2367d2dcd01958ac40e19210",
}


ours = pytest.mark.skipif(
    not cv2.__version__.startswith("5."), reason="the hashes are those of OpenCV 5; 4.x rounds single pixels otherwise"
)


def fingerprint(seed: int, index: int, part: str, size: int, difficulty: str = "usual") -> str:
    rendered = render(seed, index, part, size, DIFFICULTIES[difficulty])
    digest = hashlib.sha256(rendered.image.tobytes())
    digest.update(json.dumps([rendered.size_wh, rendered.annotations()]).encode())
    return digest.hexdigest()


@ours
@pytest.mark.parametrize("key", GOLDEN, ids=str)
def test_pixels_and_labels_are_those_of_every_machine(key):
    assert RENDERER_VERSION == 4
    assert fingerprint(*key) == GOLDEN[key]


@ours
def test_no_instruction_set_of_the_processor_matters():
    """The same in a process in which OpenCV may use neither its library of fast paths nor anything newer than SSE."""
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_synthetic import GOLDEN, fingerprint\n"
        "print([fingerprint(*key) for key in GOLDEN])"
    )
    slow = {
        "OPENCV_IPP": "disabled",
        "OPENCV_CPU_DISABLE": "AVX512_SKX,AVX2,FMA3,FP16,AVX",
        "OPENCV_LOG_LEVEL": "ERROR",
    }
    environment = {**os.environ, **slow, "PYTHONPATH": str(_ROOT)}
    answer = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == str(list(GOLDEN.values()))


def test_an_image_is_of_its_seed_part_and_index():
    def digest(*key):
        return hashlib.sha256(render(*key, size=64).jpeg).hexdigest()

    keys = [(seed, index, part) for seed in (0, 1) for index in (0, 1, 2) for part in PARTS]
    digests = [digest(*key) for key in keys]
    assert len(set(digests)) == len(keys)
    assert digest(*keys[-1]) == digests[-1]  # what was rendered before does not matter


def test_what_is_returned():
    rendered = next(each for each in (render(2, index) for index in range(20)) if len(each.areas) > 1)
    count = len(rendered.areas)
    height, width = rendered.image.shape[:2]
    assert rendered.size_wh == (width, height)
    assert (rendered.image.dtype, rendered.boxes_xywh.shape) == (np.uint8, (count, 4))
    assert rendered.keypoints.shape == (count, 17, 3)
    for record, keypoints in zip(rendered.annotations(), rendered.keypoints, strict=True):
        assert record["num_keypoints"] == (keypoints[:, 2] > 0).sum()
        assert record["keypoints"] == keypoints.ravel().tolist()
        assert (record["category_id"], record["iscrowd"]) == (1, 0)
        assert record["area"] <= record["bbox"][2] * record["bbox"][3]
    assert json.loads(json.dumps(rendered.annotations())) == rendered.annotations()


def test_nobody_has_empty_arrays_of_the_right_shape():
    nobody = SceneOptions(least_area_px=10_000_000)
    rendered = render(1, 1, size=64, options=nobody)
    assert rendered.boxes_xywh.shape == (0, 4)
    assert rendered.keypoints.shape == (0, 17, 3)
    assert rendered.annotations() == []


def test_how_hard_the_images_are_by_default():
    """What the shipped network was trained on: most people alone, whole and seen, some hidden, few small."""
    heights, visibility, people = drawn(DIFFICULTIES["usual"])
    assert 1.15 < people < 1.5
    assert 0.85 < (heights > 100).mean() < 0.98
    assert (visibility == 0).all(axis=1).mean() < 0.02
    assert 0.65 < (visibility == 2).mean() < 0.8
    assert 0.08 < (visibility == 1).mean() < 0.2


def test_hard_images_show_more_people_and_less_of_each():
    heights, visibility, people = drawn(DIFFICULTIES["hard"])
    usual_heights, usual_visibility, _ = drawn(DIFFICULTIES["usual"])
    assert 1.7 < people < 2.8
    assert np.median(heights) < np.median(usual_heights)
    assert (visibility == 2).mean() < (usual_visibility == 2).mean() - 0.04


def drawn(options: SceneOptions) -> tuple[np.ndarray, np.ndarray, float]:
    """Heights (P,) of the people of 120 images, visibility (P, 17), and people an image."""
    images = [render(11, index, options=options) for index in range(120)]
    heights = np.concatenate([image.boxes_xywh[:, 3] for image in images])
    visibility = np.concatenate([image.keypoints[:, :, 2] for image in images])
    return heights, visibility, len(heights) / len(images)


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("synthetic:5", SyntheticSpec(5, 0, 320)),
        ("synthetic:200@7", SyntheticSpec(200, 7, 320)),
        ("synthetic:500@7/480", SyntheticSpec(500, 7, 480)),
        ("synthetic:1000000/64", SyntheticSpec(1_000_000, 0, 64)),
        ("synthetic:5@2:hard", SyntheticSpec(5, 2, 320, "hard")),
        ("synthetic:5/64:hard", SyntheticSpec(5, 0, 64, "hard")),
    ],
)
def test_specs(text, spec):
    assert parse_spec(text) == spec
    assert parse_spec(spec.name) == spec
    assert is_synthetic(Path(text))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "many",
        "0@1",
        "5@",
        "5@-1",
        "5/",
        "5@1/320/1",
        " 5",
        "1000001",
        "5@12345678901",
        "5\n",
        "5:easy",
        "5:hard/64",
    ],
)
def test_specs_that_are_not_understood(text):
    with pytest.raises(UsageError, match="expected: synthetic:N@seed"):
        parse_spec(f"synthetic:{text}")


@pytest.mark.parametrize("size", [63, 2049])
def test_sizes_that_are_not_rendered(size):
    with pytest.raises(UsageError, match="expected: a long side of 64 to 2048 pixels"):
        parse_spec(f"synthetic:5/{size}")
    with pytest.raises(UsageError, match=f"found: {size}"):
        render(0, 0, size=size)


@pytest.mark.parametrize(("seed", "index", "part"), [(-1, 0, "val"), (0, -1, "val"), (0, 0, "test")])
def test_images_that_there_are_not(seed, index, part):
    with pytest.raises(UsageError, match="there is no such rendered image"):
        render(seed, index, part)


def test_a_path_is_no_spec():
    assert not is_synthetic("synthetic")
    assert not is_synthetic("./synthetic:5")
