"""``qtool quantize``: the main job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qtoolkit.cli.extras import prepare_torch
from qtoolkit.cli.options import (
    build_recipe,
    json_option,
    optional_model_argument,
    quiet_option,
    recipe_options,
    runs_option,
)
from qtoolkit.cli.output import list_skipped, print_json, print_table, skipped_records
from qtoolkit.cli.progress import show_progress

if TYPE_CHECKING:
    from qtoolkit.artifacts.plan import PrecisionPlan
    from qtoolkit.pipeline import QuantizeResult
    from qtoolkit.recipe import Recipe

__all__ = ["command", "plan_line", "quantize_and_print"]

_EPILOG = """\
\b
Examples:
  qtool quantize --mixed 0.3
  qtool quantize yolov8n-pose.onnx --data coco --mixed 0.3
  qtool quantize yolov8n-pose.onnx --data coco --plan plan.yaml --out runs/mine
  qtool quantize yolov8n-pose.onnx --data coco --qat --unlabeled photos
  qtool quantize --qat --labelled synthetic:2000@2

Calibrates on the part calib of the data set and measures on val. Without MODEL: the network that comes with qtool, on
rendered people unless --data says otherwise. Writes model.float.onnx, model.16bit.onnx, model.int8.onnx and, with
--mixed or --plan, model.mixed.onnx; with --qat model.int8-qat.onnx and model.mixed-qat.onnx; scorecard.json, plan.yaml,
sensitivity.json, report.md, report.html. A run that was stopped goes on where it was when the same command is given
again."""


@click.command("quantize", epilog=_EPILOG)
@optional_model_argument
@recipe_options
@click.option(
    "--plan",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Apply this precision plan (YAML), and rank nothing.",
)
@click.option("--qat", is_flag=True, default=None, help="Fine-tune the 8-bit and the mixed network too (needs torch).")
@click.option(
    "--unlabeled",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Photos that --qat and --effort best learn from, without labels: a folder, a data set, or synthetic:N@seed.  "
    "[default: the part "
    "unlabeled of the data, else the photos calibrated on]",
)
@click.option(
    "--labelled",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="A data set to fine-tune on with the labels of its part train: for networks of `qtool train`.",
)
@click.option(
    "--qat-images", type=click.IntRange(min=1), metavar="N", help="Images seen in the fine-tuning.  [default: 2000]"
)
@click.option(
    "--qat-lr",
    type=click.FloatRange(min=0, min_open=True),
    metavar="RATE",
    help="Its highest learning rate.  [default: 0.0001]",
)
@click.option(
    "--qat-device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where torch computes it.  [default: cpu]"
)
@runs_option
@quiet_option
@json_option
def command(model: Path | None, quiet: bool, as_json: bool, **options: Any) -> None:
    """Make 16-bit, 8-bit and mixed networks of MODEL, an ONNX pose network, and measure accuracy, cost and latency."""
    quantize_and_print(build_recipe(model, options), quiet, as_json)


def quantize_and_print(recipe: Recipe, quiet: bool, as_json: bool) -> None:
    """Run the pipeline, write the report, print scorecard and plan."""
    if recipe.qat or recipe.learns_corrections:
        prepare_torch()
    if recipe.qat:
        from qtoolkit.training.distributed import pick_device

        pick_device(recipe.qat_device)

    from qtoolkit.pipeline import quantize
    from qtoolkit.reporting.page import write_report

    with show_progress(quiet) as progress:
        result = quantize(recipe, progress)
    report, page = write_report(result.out, result.scorecard, result.sensitivity, result.plan)
    list_skipped(result.skipped)
    if as_json:
        print_json(_document(result))
    else:
        _print_result(result, (report, page))


def plan_line(plan: PrecisionPlan, path: Path) -> str:
    """What a plan chose, and where it is, in one line."""
    wide = plan.layers_16bit
    kinds = ", ".join(sorted({plan.layers[name].value for name in wide})) or "none"
    return f"plan: {len(wide)} of {len(plan.layers)} layers at 16 bit ({kinds}); {path}"


def _document(result: QuantizeResult) -> dict[str, Any]:
    return {
        "out": str(result.out),
        "scorecard": json.loads(result.scorecard.to_json()),
        "plan": None if result.plan is None else result.plan.model_dump(mode="json"),
        "skipped": skipped_records(result.skipped),
    }


def _print_result(result: QuantizeResult, reports: tuple[Path, ...]) -> None:
    from qtoolkit.reporting.tables import scorecard_table

    print_table(scorecard_table(result.scorecard))
    click.echo()
    if result.plan is not None:
        click.echo(plan_line(result.plan, result.out / "plan.yaml"))
    networks = ", ".join(row.file for row in result.scorecard.rows)
    click.echo(f"networks in {result.out}: {networks}")
    click.echo(f"report: {', '.join(str(path) for path in reports)}")
