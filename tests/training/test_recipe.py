"""Training recipes: what they may say, and those that are shipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from qtoolkit.errors import RecipeError, UsageError
from qtoolkit.training.recipe import DEFAULT_FIELDS, build_train_recipe, read_train_recipe

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
PUBLISHED = {
    "yolov5s6_pose_640": ("s6", False, 640),
    "yolov5s6_pose_960": ("s6", False, 960),
    "yolov5s6_pose_1280": ("s6", False, 1280),
    "yolov5m6_pose_960": ("m6", False, 960),
    "yolov5l6_pose_960": ("l6", False, 960),
    "yolov5s6_pose_640_ti_lite": ("s6", True, 640),
    "yolov5s6_pose_960_ti_lite": ("s6", True, 960),
    "yolov5s6_pose_1280_ti_lite": ("s6", True, 1280),
    "yolov5m6_pose_640_ti_lite": ("m6", True, 640),
    "yolov5m6_pose_960_ti_lite": ("m6", True, 960),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_there_is_a_recipe_for_each_published_row(name):
    recipe = read_train_recipe(RECIPES / f"{name}.yaml")
    assert (recipe.size, recipe.lite, recipe.image_size) == PUBLISHED[name]
    assert recipe.activation == ("relu" if recipe.lite else "silu")
    assert recipe.epochs == 300
    assert recipe.batch * recipe.accumulate == 64
    assert recipe.base_lr == (0.0032 if recipe.lite else 0.01)
    assert recipe.augmentation.mosaic == 1
    assert Path(recipe.data) == RECIPES / "coco"
    assert recipe.out == Path("runs") / name


def test_the_default_network_is_trained_from_nothing_then_on_and_then_with_relu():
    start = read_train_recipe(RECIPES / "default_network_silu_start.yaml")
    assert (start.size, start.lite, start.activation, start.init) == ("n6", True, "silu", None)
    silu = read_train_recipe(RECIPES / "default_network_silu.yaml")
    relu = read_train_recipe(RECIPES / "default_network_relu.yaml")
    assert (silu.size, silu.activation, silu.image_size) == ("n6", "silu", 320)
    assert (relu.size, relu.activation, relu.image_size) == ("n6", "relu", 320)
    assert silu.init is not None and relu.init is not None
    assert silu.init.is_file() and relu.init.is_file()
    assert (silu.init.stem, relu.init.stem) == ("default_network_silu_start", "default_network_silu")
    assert silu.lite == relu.lite
    assert relu.images < silu.images
    assert relu.base_lr < silu.base_lr
    end = read_train_recipe(RECIPES / "default_network_relu_end.yaml")
    assert (end.size, end.lite, end.activation, end.image_size) == ("n6", True, "relu", 320)
    assert (
        end.init is not None
        and end.init.resolve() == RECIPES.parent / "runs" / "default_network_relu" / "best.safetensors"
    )
    assert end.base_lr < relu.base_lr


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_paths_are_beside_the_recipe_but_rendered_people_are_none(tmp_path):
    file = _write(tmp_path / "a.yaml", "kind: train\ndata: people\ninit: w.safetensors\nimages: 10\n")
    recipe = read_train_recipe(file)
    assert Path(recipe.data) == tmp_path / "people"
    assert recipe.init == tmp_path / "w.safetensors"
    assert recipe.out == Path("runs/a")
    assert read_train_recipe(file, data="synthetic:5@1").data == "synthetic:5@1"


def test_options_replace_fields_and_the_other_budget():
    recipe = build_train_recipe(DEFAULT_FIELDS, epochs=3, size=None, lite=True)
    assert (recipe.epochs, recipe.images, recipe.size, recipe.lite) == (3, None, "n6", True)


def test_an_image_size_replaces_the_phases(tmp_path):
    file = _write(tmp_path / "a.yaml", "{kind: train, data: x, images: 9, sizes: [[0.5, 64], [0.5, 128]]}")
    assert read_train_recipe(file).largest_size == 128
    assert read_train_recipe(file, image_size=192).size_at(0) == 192


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("kind: train\ndata: x", UsageError, "images or epochs, one of them"),
        ("kind: train\ndata: x\nimages: 5\nepochs: 5", UsageError, "images 5, epochs 5"),
        ("kind: train\nimages: 5", RecipeError, "not valid at data"),
        ("kind: train\ndata: x\nimages: 5\nrate: 3", RecipeError, "not valid at rate"),
        ("kind: train\ndata: x\nimages: 5\nlr: -1", RecipeError, "not valid at lr"),
        ("kind: train\ndata: x\nimages: 5\nlr: .nan", RecipeError, "not valid at lr"),
        ("kind: train\ndata: x\nimages: 5\nimage_size: 100", UsageError, "multiple of 64"),
        ("kind: train\ndata: x\nimages: 5\nsizes: [[0.5, 64]]", UsageError, "do not make up the whole run"),
        ("kind: train\ndata: x\nimages: 5\nsizes: [[1.0, 63]]", UsageError, "multiple of 64"),
        ("kind: train\ndata: x\nimages: 5\naugmentation: {mosaic: 2}", RecipeError, "augmentation.mosaic"),
        ("model: x.onnx\ndata: y", RecipeError, "no training recipe"),
        ("- 1", RecipeError, "no training recipe"),
        ("kind: train\nkind: train", RecipeError, "given twice"),
    ],
)
def test_what_a_recipe_must_not_say(tmp_path, text, error, message):
    with pytest.raises(error, match=message):
        read_train_recipe(_write(tmp_path / "bad.yaml", text))


def test_a_recipe_that_is_not_there(tmp_path):
    with pytest.raises(RecipeError, match="cannot be read"):
        read_train_recipe(tmp_path / "none.yaml")


def test_what_does_not_decide_the_weights_is_no_part_of_the_outcome():
    one = build_train_recipe(DEFAULT_FIELDS, workers=3, out="a", threads=1)
    two = build_train_recipe(DEFAULT_FIELDS, workers=0, out="b", device="cpu")
    assert one.outcome_fields() == two.outcome_fields()
    assert one.outcome_fields() != build_train_recipe(DEFAULT_FIELDS, seed=1).outcome_fields()
