"""``qtool sensitivity``: which layers suffer from 8 bit, and which of them deserve 16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qtoolkit.cli.options import build_recipe, json_option, optional_model_argument, quiet_option, recipe_options
from qtoolkit.cli.output import list_skipped, print_json, print_table, skipped_records
from qtoolkit.cli.progress import show_progress

__all__ = ["command"]

_EPILOG = """\
\b
Examples:
  qtool sensitivity --mixed 0.3
  qtool sensitivity yolov8n-pose.onnx --data coco --mixed 0.3
  qtool sensitivity yolov8n-pose.onnx --data coco --metric sqnr --top 50

Writes sensitivity.json and, with --mixed, plan.yaml: edit it by hand, and apply it with qtool quantize --plan FILE."""


@click.command("sensitivity", epilog=_EPILOG)
@optional_model_argument
@recipe_options
@click.option("--top", type=click.IntRange(min=1), default=20, show_default=True, metavar="N", help="Layers to print.")
@quiet_option
@json_option
def command(model: Path | None, top: int, quiet: bool, as_json: bool, **options: Any) -> None:
    """Rank the layers of MODEL by what 8 bit costs each alone; with --mixed, choose those to keep at 16 bit."""
    recipe = build_recipe(model, options)

    from qtoolkit.pipeline import calibrate_stage, open_run, rank_stage, select_stage

    with show_progress(quiet) as progress:
        run = open_run(recipe, progress)
        sensitivity = rank_stage(run, calibrate_stage(run))
        plan = select_stage(run, sensitivity)
    list_skipped(run.skipped)
    if as_json:
        print_json(
            {
                "out": str(run.out),
                "sensitivity": sensitivity.model_dump(mode="json"),
                "plan": None if plan is None else plan.model_dump(mode="json"),
                "skipped": skipped_records(run.skipped),
            }
        )
        return

    from qtoolkit.cli.quantize import plan_line
    from qtoolkit.reporting.tables import sensitivity_table

    print_table(sensitivity_table(sensitivity, plan, top))
    click.echo()
    click.echo(f"ranking: {run.out / 'sensitivity.json'}")
    if plan is None:
        click.echo("plan: none; give --mixed 0.3 to have the layers for 16 bit chosen")
    else:
        click.echo(plan_line(plan, run.out / "plan.yaml"))
