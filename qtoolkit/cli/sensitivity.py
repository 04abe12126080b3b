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
  qtool sensitivity yolov8n-pose.onnx --data coco --mixed-by latency --frontier

Writes sensitivity.json and, with --mixed, plan.yaml: edit it by hand, and apply it with qtool quantize --plan FILE."""


@click.command("sensitivity", epilog=_EPILOG)
@optional_model_argument
@recipe_options
@click.option("--top", type=click.IntRange(min=1), default=20, show_default=True, metavar="N", help="Layers to print.")
@click.option("--frontier", is_flag=True, help="Measure plans from all-8-bit to all-16-bit; writes frontier.json.")
@quiet_option
@json_option
def command(model: Path | None, top: int, frontier: bool, quiet: bool, as_json: bool, **options: Any) -> None:
    """Rank the layers of MODEL by what 8 bit costs each alone; with --mixed, choose those to keep at 16 bit."""
    recipe = build_recipe(model, options)

    from qtoolkit.pipeline import calibrate_stage, frontier_stage, open_run, rank_stage, select_stage

    with show_progress(quiet) as progress:
        run = open_run(recipe, progress)
        quantizer = calibrate_stage(run)
        sensitivity = rank_stage(run, quantizer)
        plan = select_stage(run, quantizer, sensitivity)
        front = frontier_stage(run, quantizer, sensitivity) if frontier else None
    list_skipped(run.skipped)
    if as_json:
        print_json(
            {
                "out": str(run.out),
                "sensitivity": sensitivity.model_dump(mode="json"),
                "plan": None if plan is None else plan.model_dump(mode="json"),
                "frontier": None
                if front is None
                else front.model_dump(mode="json", exclude={"points": {"__all__": {"plan"}}}),
                "skipped": skipped_records(run.skipped),
            }
        )
        return

    from qtoolkit.cli.quantize import plan_line
    from qtoolkit.reporting.tables import frontier_table, sensitivity_table

    print_table(sensitivity_table(sensitivity, plan, top))
    click.echo()
    times = [row.added_ms for row in sensitivity.layers if row.added_ms is not None]
    if times:
        faster = sum(time < 0 for time in times)
        click.echo(f"16 bit is faster than 8 on {faster} of {len(times)} layers here; those cost the budget nothing")
    if front is not None:
        print_table(frontier_table(front))
        click.echo()
        click.echo(f"frontier: {run.out / 'frontier.json'}")
    click.echo(f"ranking: {run.out / 'sensitivity.json'}")
    if plan is None:
        click.echo("plan: none; give --mixed 0.3 to have the layers for 16 bit chosen")
    else:
        click.echo(plan_line(plan, run.out / "plan.yaml"))
