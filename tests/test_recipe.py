from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from qtoolkit.errors import RecipeError, UsageError
from qtoolkit.recipe import Recipe, read_recipe

LEAST = {"model": "m.onnx", "data": "photos"}


@pytest.fixture
def write(tmp_path):
    """``write(text or fields)`` → path of recipes/small.yaml."""

    def to_file(content: str | dict[str, object]) -> Path:
        path = tmp_path / "recipes" / "small.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return path

    return to_file


class TestPaths:
    def test_they_are_relative_to_the_file(self, write):
        path = write({"model": "../nets/m.onnx", "data": "photos", "plan": "./p.yaml", "out": "out"})
        recipe = read_recipe(path)
        assert recipe.model == path.parent / "../nets/m.onnx"
        assert recipe.data == path.parent / "photos"
        assert recipe.plan == path.parent / "p.yaml"
        assert recipe.out == path.parent / "out"

    def test_absolute_ones_stay(self, write, tmp_path):
        recipe = read_recipe(write(LEAST | {"model": str(tmp_path / "m.onnx")}))
        assert recipe.model == tmp_path / "m.onnx"

    def test_the_home_folder(self, write, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        assert read_recipe(write(LEAST | {"model": "~/m.onnx"})).model == tmp_path / "home" / "m.onnx"

    def test_the_home_folder_of_nobody(self, write):
        with pytest.raises(RecipeError, match="names a home folder that is not known") as caught:
            read_recipe(write(LEAST | {"data": "~no-such-user-here/photos"}))
        assert caught.value.found == "~no-such-user-here/photos"

    def test_overrides_are_relative_to_the_working_folder(self, write):
        recipe = read_recipe(write(LEAST | {"out": "out"}), model=Path("other.onnx"), out=Path("elsewhere"))
        assert (recipe.model, recipe.out) == (Path("other.onnx"), Path("elsewhere"))

    def test_out_defaults_to_runs_and_the_name_of_the_recipe(self, write):
        assert read_recipe(write(LEAST)).out == Path("runs/small")


class TestOverrides:
    def test_they_replace_fields_unless_they_are_none(self, write):
        path = write(LEAST | {"mixed": 0.3, "threads": 2})
        recipe = read_recipe(path, mixed=0.5, threads=None, runs=0)
        assert (recipe.mixed, recipe.threads, recipe.runs) == (0.5, 2, 0)

    def test_falsy_ones_count(self, write):
        recipe = read_recipe(write(LEAST | {"runs": 50, "seed": 7, "mixed": 0.3}), runs=0, seed=0, mixed=0.0)
        assert (recipe.runs, recipe.seed, recipe.mixed) == (0, 0, 0.0)

    def test_they_are_checked_too(self, write):
        with pytest.raises(RecipeError, match="not valid at metric"):
            read_recipe(write(LEAST), metric="luck")


def test_defaults(write):
    recipe = read_recipe(write(LEAST))
    fields = recipe.model_dump(exclude={"model", "data", "out"})
    assert fields == {
        "version": 1, "target": "ort-cpu", "device": None, "wide": None, "mixed": None, "mixed_by": None, "plan": None,
        "min_ap_retention": None,
        "metric": "oks", "ranges": "mse", "effort": "balanced", "corrections": None,
        "head": None, "input_size_wh": None, "images": None,
        "calibration_images": None, "sensitivity_images": 16, "threads": None, "runs": 100, "seed": 0,
            "qat": False, "qat_images": 2000, "qat_lr": 1e-4, "qat_device": "cpu", "unlabeled": None, "labelled": None,
    }  # fmt: skip


def test_a_recipe_cannot_be_changed():
    recipe = Recipe(**LEAST, out="out")
    with pytest.raises(ValueError, match="frozen"):
        recipe.runs = 10  # type: ignore[misc]


class TestRefused:
    @pytest.mark.parametrize(
        ("fields", "place", "found"),
        [
            pytest.param({"mixd": 0.3}, "mixd", "0.3", id="unknown key"),
            pytest.param({"version": 2}, "version", "2", id="another version"),
            pytest.param({"metric": "luck"}, "metric", "'luck'", id="unknown metric"),
            pytest.param({"ranges": "max"}, "ranges", "'max'", id="unknown range estimator"),
            pytest.param({"wide": "fp8"}, "wide", "'fp8'", id="no 16-bit precision"),
            pytest.param({"mixed_by": "size"}, "mixed_by", "'size'", id="unknown budget"),
            pytest.param({"mixed": "a third"}, "mixed", "'a third'", id="text for a number"),
            pytest.param({"images": 0}, "images", "0", id="no image"),
            pytest.param({"calibration_images": -1}, "calibration_images", "-1", id="negative count"),
            pytest.param({"sensitivity_images": 0}, "sensitivity_images", "0", id="nothing to rank on"),
            pytest.param({"threads": 0}, "threads", "0", id="no thread"),
            pytest.param({"runs": -10}, "runs", "-10", id="negative runs"),
            pytest.param({"input_size_wh": [640]}, "input_size_wh.1", "[640]", id="one side"),
            pytest.param({"model": 5}, "model", "5", id="number for a path"),
        ],
    )
    def test_a_field_that_cannot_be_used_is_named(self, write, fields, place, found):
        path = write(LEAST | fields)
        with pytest.raises(RecipeError) as caught:
            read_recipe(path)
        assert caught.value.what == f"the recipe {path} is not valid at {place}"
        assert caught.value.found.startswith(f"{found} (")
        for name in Recipe.model_fields:
            assert name in caught.value.expected

    @pytest.mark.parametrize("missing", ["model", "data"])
    def test_what_is_missing_is_named(self, write, missing):
        with pytest.raises(RecipeError, match=f"is not valid at {missing}"):
            read_recipe(write({name: value for name, value in LEAST.items() if name != missing}))

    @pytest.mark.parametrize(
        "text",
        [
            pytest.param("model: [m.onnx", id="open bracket"),
            pytest.param("model: m.onnx\n\tdata: d", id="tab"),
            pytest.param("model: m.onnx\nmodel: n.onnx\n", id="a key twice"),
            pytest.param("model: !!python/object/apply:os.getcwd []", id="code"),
            pytest.param("[" * 5_000, id="brackets without end"),
        ],
    )
    def test_broken_yaml(self, write, text):
        path = write(text)
        with pytest.raises(RecipeError) as caught:
            read_recipe(path)
        assert caught.value.what == f"the recipe {path} cannot be read"
        assert caught.value.found

    def test_bytes_that_are_no_text(self, tmp_path):
        (tmp_path / "r.yaml").write_bytes(b"model: \xff\xfe\x00")
        with pytest.raises(RecipeError, match="cannot be read"):
            read_recipe(tmp_path / "r.yaml")

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(RecipeError, match=r"no\.yaml cannot be read"):
            read_recipe(tmp_path / "no.yaml")

    @pytest.mark.parametrize(("text", "found"), [("", "NoneType"), ("- a", "list"), ("text", "str")])
    def test_a_file_without_fields(self, write, text, found):
        with pytest.raises(RecipeError, match="has no fields") as caught:
            read_recipe(write(text))
        assert caught.value.found == found

    def test_a_plan_and_a_share_contradict_each_other(self, write):
        path = write(LEAST | {"plan": "p.yaml", "mixed": 0.3})
        with pytest.raises(UsageError, match="contradict each other") as caught:
            read_recipe(path)
        assert caught.value.found == f"plan {path.parent / 'p.yaml'} and mixed 0.3"
        with pytest.raises(UsageError, match="contradict each other"):
            read_recipe(write(LEAST | {"mixed": 0.0}), plan=Path("p.yaml"))

    @pytest.mark.parametrize("other", [{"plan": "p.yaml"}, {"mixed": 0.3}])
    def test_a_retention_is_a_third_way_to_a_plan(self, write, other):
        with pytest.raises(UsageError, match="contradict each other"):
            read_recipe(write(LEAST | other | {"min_ap_retention": 0.99}))
        assert read_recipe(write(LEAST | {"min_ap_retention": 0.99})).makes_plan
        assert not read_recipe(write(LEAST | {"plan": "p.yaml"})).makes_plan

    @pytest.mark.parametrize("share", [0, -0.1, 1.01])
    def test_a_retention_is_a_share(self, write, share):
        with pytest.raises(RecipeError, match="not valid at min_ap_retention"):
            read_recipe(write(LEAST | {"min_ap_retention": share}))

    def test_both_corrections_of_biases_at_once(self, write):
        with pytest.raises(UsageError, match="the same error off the same biases"):
            read_recipe(write(LEAST | {"corrections": ["bias", "bias-empirical"]}))
        assert read_recipe(write(LEAST | {"corrections": ["bias-empirical", "equalize"]})).corrections

    def test_biases_are_not_measured_on_split_layers(self, write):
        with pytest.raises(UsageError, match="layers that are split"):
            read_recipe(write(LEAST | {"corrections": ["split-scales", "bias-empirical"]}))

    @pytest.mark.parametrize("runs", [1, 5, 9])
    def test_too_few_inferences(self, write, runs):
        with pytest.raises(UsageError, match="cannot be measured with so few inferences") as caught:
            read_recipe(write(LEAST | {"runs": runs}))
        assert (caught.value.expected, caught.value.found) == ("0 for no measurement, or at least 10", str(runs))

    @pytest.mark.parametrize("runs", [0, 10])
    def test_just_enough_inferences(self, write, runs):
        assert read_recipe(write(LEAST | {"runs": runs})).runs == runs

    @pytest.mark.parametrize("text", ["1.5", "-0.1", ".nan", ".inf", "30"])
    def test_a_share_that_is_none(self, write, text):
        with pytest.raises(UsageError, match="the share of the network to keep at 16 bit cannot be used") as caught:
            read_recipe(write(f"model: m.onnx\ndata: d\nmixed: {text}\n"))
        assert caught.value.found == str(float(text.replace(".n", "n").replace(".i", "i")))
        assert caught.value.do == "give --mixed a share, not a percentage"

    @given(share=st.floats(0, 1))
    def test_every_share_from_0_to_1_is_one(self, share):
        assert Recipe(**LEAST, out="out", mixed=share).mixed == share


def test_rendered_people_are_no_path_beside_the_recipe(tmp_path):
    (tmp_path / "recipe.yaml").write_text("model: m.onnx\ndata: synthetic:20@1\n")
    recipe = read_recipe(tmp_path / "recipe.yaml")
    assert str(recipe.data) == "synthetic:20@1"
    assert recipe.model == tmp_path / "m.onnx"


class TestFineTuning:
    def test_its_photos_lie_beside_the_recipe_unless_they_are_rendered(self, tmp_path):
        path = tmp_path / "recipe.yaml"
        for written, found in (("photos", tmp_path / "photos"), ("synthetic:9@2", Path("synthetic:9@2"))):
            path.write_text(f"model: m.onnx\ndata: d\nqat: true\nunlabeled: {written}\n")
            assert read_recipe(path).unlabeled == found

    @pytest.mark.parametrize(
        ("name", "value"), [("qat_images", 0), ("qat_lr", 0), ("qat_lr", ".inf"), ("qat", "maybe")]
    )
    def test_values_that_cannot_be_used(self, tmp_path, name, value):
        (tmp_path / "recipe.yaml").write_text(f"model: m.onnx\ndata: d\n{name}: {value}\n")
        with pytest.raises(RecipeError, match=name):
            read_recipe(tmp_path / "recipe.yaml")

    def test_labels_are_learned_from_on_the_cpu(self):
        with pytest.raises(UsageError, match="labels are learned from on the CPU"):
            Recipe(model="m.onnx", data="d", out="o", qat=True, labelled="people", qat_device="cuda")
