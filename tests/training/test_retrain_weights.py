"""The recipe of a retraining with labels: from the weights, and as recipes/default_network_relu.yaml."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from qtoolkit.errors import CheckpointError, RecipeError, UsageError
from qtoolkit.models.checkpoint import save_weights
from qtoolkit.models.yolopose import YoloPose, YoloPoseConfig
from qtoolkit.training.retrain_weights import RETRAIN_FIELDS, retrain_recipe

_RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "default_network_relu.yaml"


@pytest.fixture
def weights(tmp_path):
    def make(**config):
        with torch.random.fork_rng(devices=[]):
            model = YoloPose(YoloPoseConfig(**config))
        save_weights(tmp_path / "best.safetensors", model, {"recipe": {"image_size": 192}})
        return tmp_path / "best.safetensors"

    return make


def test_the_network_is_that_of_the_weights(weights):
    path = weights(size="n6", lite=True)
    recipe = retrain_recipe(path, data="people", out="runs/relu")
    assert (recipe.size, recipe.lite, recipe.activation, recipe.init) == ("n6", True, "relu", path)
    assert recipe.image_size == 192
    assert (recipe.data, recipe.out) == ("people", Path("runs/relu"))


def test_the_schedule_is_that_of_the_recipe(weights):
    published = yaml.safe_load(_RECIPE.read_text())
    assert {name: published.get(name) for name in RETRAIN_FIELDS} == RETRAIN_FIELDS
    made = retrain_recipe(weights(), data="people", out="out").model_dump()
    for name, value in RETRAIN_FIELDS.items():
        assert made[name] == (made[name] | value if isinstance(value, dict) else value)


def test_values_that_are_given_win(weights):
    recipe = retrain_recipe(weights(), data="people", out="out", images=160, lr=0.01, image_size=64, seed=None)
    assert (recipe.images, recipe.lr, recipe.image_size, recipe.seed) == (160, 0.01, 64, 0)


def test_what_is_refused(weights, tmp_path):
    with pytest.raises(UsageError, match="activation relu"):
        retrain_recipe(weights(activation="relu"), data="people", out="out")
    with pytest.raises(RecipeError, match="batch"):
        retrain_recipe(weights(), data="people", out="out", batch=0)
    (tmp_path / "pickle.safetensors").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(CheckpointError):
        retrain_recipe(tmp_path / "pickle.safetensors", data="people", out="out")
