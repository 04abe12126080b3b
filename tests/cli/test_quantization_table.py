from __future__ import annotations

import json
import shutil

import onnx
import pytest
import yaml

from qtoolkit.artifacts.quantization_table import PUBLISHED, QuantizationTable
from qtoolkit.artifacts.scorecard import Scorecard
from qtoolkit.artifacts.table_recipe import read_table_recipe
from qtoolkit.errors import InputFileError, RecipeError


@pytest.fixture(scope="module")
def table(tmp_path_factory, tiny_pose_model, make_data_set):
    """``table(**fields)`` → path of a recipe on tiny networks, SiLU and ReLU."""
    folder = tmp_path_factory.mktemp("table")
    for activation in ("silu", "relu"):
        onnx.save(tiny_pose_model(activation), folder / f"{activation}.onnx")
    make_data_set(folder / "people")

    def write(**fields):
        document = {
            "kind": "quantization-table", "silu": "silu.onnx", "relu": "relu.onnx", "data": "people", "metric": "sqnr",
            "sensitivity_images": 2, "threads": 1, **fields,
        }  # fmt: skip
        path = folder / "table.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    return write


def test_a_row_for_each_precision_of_each_target(table, tmp_path, qtool):
    out = tmp_path / "out"
    result = qtool("run", table(targets=["tidl", "tensorrt"]), "--out", out)
    assert result.exit_code == 0, result.stderr
    found = QuantizationTable.read(out / "table.json")
    names = ["float SiLU", "float ReLU", "16bit", "int8", "mixed", "16bit", "int8", "mixed"]
    assert [row.name for row in found.rows] == names
    assert [row.target for row in found.rows] == ["", "", *["tidl"] * 3, *["tensorrt"] * 3]
    assert (found.silu.name, found.relu.name) == ("silu.onnx", "relu.onnx")
    card = Scorecard.read(out / "tidl" / "scorecard.json")
    assert [row.figures for row in found.rows[1:5]] == list(card.rows)
    assert all(row.published == PUBLISHED[row.name] for row in found.rows)
    assert found.rows[3].published.ap is None, "the 8-bit figure is not published"
    page = (out / "table.md").read_text()
    assert "| mixed | tidl |" in page
    assert "63.8" in page and "60.6" in page
    assert "Quantization table" in result.stdout

    # A second time nothing is computed again, and a run without labels of ours is the same table.
    again = qtool("run", table(targets=["tidl", "tensorrt"]), "--out", out, "--json")
    assert json.loads(again.stdout) == json.loads((out / "table.json").read_text())


def test_errors(table, tmp_path, qtool):
    result = qtool("run", table(targets=["abacus"]), "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "the target is not known" in result.stderr
    assert not (tmp_path / "out").exists()
    with pytest.raises(RecipeError, match="not valid at colour"):
        read_table_recipe(table(colour="red"))
    with pytest.raises(RecipeError, match="not valid at targets"):
        read_table_recipe(table(targets=[]))
    with pytest.raises(InputFileError, match="cannot be read"):
        QuantizationTable.read(shutil.copy(table(), tmp_path / "x.json"))
