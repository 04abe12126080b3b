from __future__ import annotations

import json
import os

import yaml


def test_a_recipe_gives_what_quantize_gives(network, people, tmp_path, qtool, finished):
    recipe = {"mixed": 0.3, "metric": "sqnr", "runs": 0, "threads": 1, "sensitivity_images": 2}
    # Paths in a recipe are relative to it.
    paths = {"model": os.path.relpath(network, tmp_path), "data": "people"}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe | paths))
    result = qtool("run", tmp_path / "tiny.yaml", "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    of_quantize = json.loads((finished[1] / "scorecard.json").read_text())
    assert document["scorecard"]["rows"] == of_quantize["rows"]
    assert document["scorecard"]["settings"] == of_quantize["settings"]
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_missing_recipe(tmp_path, qtool):
    result = qtool("run", tmp_path / "no.yaml")
    assert result.exit_code == 3
    assert f"the recipe {tmp_path / 'no.yaml'} cannot be read" in result.stderr


def test_an_unknown_key_names_itself_and_the_known_ones(tmp_path, qtool):
    (tmp_path / "r.yaml").write_text("model: m.onnx\ndata: d\nmixd: 0.3\n")
    result = qtool("run", tmp_path / "r.yaml")
    assert result.exit_code == 3
    assert "is not valid at mixd" in result.stderr
    assert "mixed_by" in result.stderr


def test_a_share_above_1_in_a_recipe(tmp_path, qtool):
    (tmp_path / "r.yaml").write_text("model: m.onnx\ndata: d\nmixed: 1.5\n")
    assert qtool("run", tmp_path / "r.yaml").exit_code == 2
