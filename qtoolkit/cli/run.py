"""``qtool run``: the whole pipeline of a recipe."""

from __future__ import annotations

from pathlib import Path

import click

from qtoolkit.cli.options import json_option, out_option, quiet_option

__all__ = ["command"]

_EPILOG = """\
\b
Example:
  qtool run recipes/yolov8n-pose.yaml --out runs/nano

\b
A recipe holds the options of qtool quantize by their names, and paths relative to itself:
  model: models/yolov8n-pose.onnx
  data: coco
  mixed: 0.3

A recipe with kind: quantization-table makes the table of YOLO-Pose: SiLU and ReLU in float, then 16-bit, 8-bit and
mixed networks for each of its targets, with and without fine-tuning; see recipes/quantization_table_rendered.yaml."""


@click.command("run", epilog=_EPILOG)
@click.argument("recipe", type=click.Path(path_type=Path))
@out_option
@quiet_option
@json_option
def command(recipe: Path, out: Path | None, quiet: bool, as_json: bool) -> None:
    """Run what RECIPE, a YAML file, describes: the job of ``qtool quantize``, or a quantization table."""
    from qtoolkit.artifacts.table_recipe import TABLE_KIND, recipe_kind
    from qtoolkit.cli.quantize import quantize_and_print
    from qtoolkit.recipe import read_recipe

    if recipe_kind(recipe) == TABLE_KIND:
        _table(recipe, out, quiet, as_json)
    else:
        quantize_and_print(read_recipe(recipe, out=out), quiet, as_json)


def _table(path: Path, out: Path | None, quiet: bool, as_json: bool) -> None:
    from qtoolkit.artifacts.files import write_text
    from qtoolkit.artifacts.table_recipe import read_table_recipe
    from qtoolkit.cli.output import print_table
    from qtoolkit.cli.progress import show_progress
    from qtoolkit.quantization_table import make_table
    from qtoolkit.reporting.quantization_table import quantization_table, quantization_table_markdown

    recipe = read_table_recipe(path, out=out)
    with show_progress(quiet) as progress:
        table = make_table(recipe, progress)
    write_text(recipe.out / "table.md", quantization_table_markdown(table))
    if as_json:
        click.echo(table.model_dump_json())
        return
    print_table(quantization_table(table))
    click.echo()
    click.echo(f"table: {recipe.out / 'table.md'}, {recipe.out / 'table.json'}")
