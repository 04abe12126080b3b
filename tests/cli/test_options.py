from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtoolkit.backends.targets import TARGETS
from qtoolkit.cli import eval as eval_module
from qtoolkit.cli import quantize, sensitivity
from qtoolkit.cli.options import InputSize, NameList, build_recipe
from qtoolkit.errors import UsageError
from qtoolkit.evaluation.decode import DEFAULT_SCORE_THRESHOLD
from qtoolkit.evaluation.nms import DEFAULT_IOU_THRESHOLD
from qtoolkit.graph import default_network
from qtoolkit.recipe import DEFAULT_CALIBRATION_IMAGES, DEFAULT_DATA, Recipe

_SIDES = st.integers(1, 99_999)


def _option(command: click.Command, name: str) -> click.Option:
    return next(each for each in command.params if isinstance(each, click.Option) and each.name == name)


def _ship(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Have a file that stands for the default network in ``folder``."""
    monkeypatch.setattr(default_network, "_FOLDER", folder)
    path = folder / "yolopose_n6_relu_320.onnx"
    path.touch()
    return path


class TestInputSize:
    @pytest.mark.parametrize(
        ("text", "size_wh"),
        [("640", (640, 640)), ("640x480", (640, 480)), ("32X64", (32, 64)), ("8×16", (8, 16)), (" 320 ", (320, 320))],
    )
    def test_width_comes_first(self, text, size_wh):
        assert InputSize().convert(text, None, None) == size_wh

    @pytest.mark.parametrize("text", ["0", "640x0", "-640", "640x", "x480", "640x480x3", "big", "", "6.5", "1234567"])
    def test_anything_else_is_a_usage_error(self, text):
        with pytest.raises(click.BadParameter, match="is not a size: give 640 for a square, or 640x480"):
            InputSize().convert(text, None, None)

    @given(_SIDES, _SIDES)
    def test_every_size_comes_back(self, width, height):
        assert InputSize().convert(f"{width}x{height}", None, None) == (width, height)

    @given(st.text(max_size=20))
    def test_any_text_is_a_size_or_a_usage_error(self, text):
        try:
            size = InputSize().convert(text, None, None)
        except click.BadParameter:
            return
        assert len(size) == 2
        assert min(size) >= 1


class TestRecipeOptions:
    """Names, choices and defaults are the recipe's: what the help says is what happens."""

    @pytest.mark.parametrize("command", [quantize.command, sensitivity.command], ids=["quantize", "sensitivity"])
    def test_every_option_is_a_field_of_the_recipe(self, command):
        own = {"quiet", "as_json", "top", "frontier", "help"}
        assert {each.name for each in command.params} - own <= set(Recipe.model_fields)

    def test_quantize_has_an_option_for_every_field(self):
        assert set(Recipe.model_fields) - {each.name for each in quantize.command.params} == {"version"}

    @pytest.mark.parametrize("name", ["mixed_by", "metric", "wide", "ranges"])
    def test_choices(self, name):
        allowed = Recipe.model_fields[name].annotation
        values = {value for part in (get_args(allowed) or (allowed,)) for value in get_args(part) or (part,)}
        assert set(_option(quantize.command, name).type.choices) == values - {type(None)}

    @pytest.mark.parametrize("name", ["target", "metric", "ranges", "sensitivity_images", "runs", "seed"])
    def test_defaults_in_the_help(self, name):
        said = re.search(r"\[default: (.*)\]", _option(quantize.command, name).help)
        assert said is not None
        assert said[1] == str(Recipe.model_fields[name].default)

    def test_the_help_names_every_target(self):
        assert all(name in _option(quantize.command, "target").help for name in TARGETS)

    def test_thresholds_of_eval_in_the_help(self):
        assert f"[default: {DEFAULT_SCORE_THRESHOLD}]" in _option(eval_module.command, "score_threshold").help
        assert f"[default: {DEFAULT_IOU_THRESHOLD}]" in _option(eval_module.command, "iou_threshold").help


class TestBuildRecipe:
    def test_out_is_runs_and_the_name_of_the_network(self):
        recipe = build_recipe(Path("nets/yolo.v8.onnx"), {"data": Path("coco"), "out": None})
        assert recipe.out == Path("runs/yolo.v8")

    def test_options_that_were_not_given_are_the_recipes(self):
        recipe = build_recipe(Path("m.onnx"), {"data": Path("coco"), "metric": None, "mixed": 0.0, "seed": 0})
        assert recipe == Recipe(model=Path("m.onnx"), data=Path("coco"), out=Path("runs/m"), mixed=0.0)

    def test_without_a_network_the_default_one_and_rendered_people(self, monkeypatch, tmp_path):
        shipped = _ship(monkeypatch, tmp_path)
        recipe = build_recipe(None, {"data": None, "mixed": 0.3, "calibration_images": None})
        assert recipe == Recipe(
            model=shipped, data=DEFAULT_DATA, out=Path("runs/yolopose_n6_relu_320"), mixed=0.3,
            calibration_images=DEFAULT_CALIBRATION_IMAGES,
        )  # fmt: skip

    def test_what_is_given_replaces_each_default(self, monkeypatch, tmp_path):
        shipped = _ship(monkeypatch, tmp_path)
        assert build_recipe(None, {"calibration_images": 7}).calibration_images == 7
        own = build_recipe(None, {"data": Path("coco"), "out": Path("o")})
        assert (own.model, own.data, own.out, own.calibration_images) == (shipped, Path("coco"), Path("o"), None)

    def test_a_network_without_data(self):
        with pytest.raises(UsageError, match="nothing to calibrate on and to evaluate on"):
            build_recipe(Path("m.onnx"), {"data": None})

    def test_the_help_and_the_message_name_the_default(self):
        assert f"without MODEL {DEFAULT_DATA}]" in _option(quantize.command, "data").help
        assert f"and --data {DEFAULT_CALIBRATION_IMAGES}]" in _option(quantize.command, "calibration_images").help
        with pytest.raises(UsageError, match=str(DEFAULT_DATA)):
            build_recipe(Path("m.onnx"), {})

    @pytest.mark.parametrize("share", [1.5, -0.1, float("nan"), float("inf")])
    def test_a_share_outside_0_to_1(self, share):
        with pytest.raises(UsageError, match="share of the network to keep at 16 bit"):
            build_recipe(Path("m.onnx"), {"data": Path("coco"), "mixed": share})


class TestNameList:
    @pytest.mark.parametrize(("text", "names"), [("none", ()), ("b", ("b",)), ("b, a", ("b", "a"))])
    def test_names_with_commas(self, text, names):
        assert NameList(["a", "b"]).convert(text, None, None) == names

    @pytest.mark.parametrize("text", ["", "c", "a,a", "none,a", "a,"])
    def test_anything_else_is_a_usage_error(self, text):
        with pytest.raises(click.UsageError, match=r"not one of a, b|stands twice"):
            NameList(["a", "b"]).convert(text, None, None)
