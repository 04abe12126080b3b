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
  mixed: 0.3"""


@click.command("run", epilog=_EPILOG)
@click.argument("recipe", type=click.Path(path_type=Path))
@out_option
@quiet_option
@json_option
def command(recipe: Path, out: Path | None, quiet: bool, as_json: bool) -> None:
    """Run what RECIPE, a YAML file, describes; prints and writes what ``qtool quantize`` does."""
    from qtoolkit.cli.quantize import quantize_and_print
    from qtoolkit.recipe import read_recipe

    quantize_and_print(read_recipe(recipe, out=out), quiet, as_json)
