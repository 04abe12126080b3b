"""``qtool retrain``: another activation function, without labels."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qtoolkit.cli.extras import require_torch
from qtoolkit.cli.options import head_option, input_size_option, json_option, model_argument, quiet_option
from qtoolkit.cli.output import list_skipped, print_json, skipped_records
from qtoolkit.cli.progress import show_progress

if TYPE_CHECKING:
    from qtoolkit.training.retrain import RetrainResult

__all__ = ["command"]

_PATH = click.Path(path_type=Path)
_COUNT = click.IntRange(min=1)
_EPILOG = """\
\b
Examples:
  qtool retrain yolov8n-pose.onnx --activation relu --images photos
  qtool retrain yolov8n-pose.onnx --images photos --seen 40000 --data coco --eval-every 8000 --out runs/relu

Writes model.onnx (same inputs, outputs and layer names), log.jsonl, and the states that a run which was stopped goes
on from when the same command is given again. To retrain weights of `qtool train` with labels, give them to
`qtool train recipes/default_network_relu.yaml --init FILE`."""


@click.command("retrain", epilog=_EPILOG)
@model_argument
@click.option("--activation", type=click.Choice(["relu"]), help="The new activation function.  [default: relu]")
@click.option(
    "--images", required=True, metavar="DIR", help="Photos to learn from: a folder, a data set, or synthetic:N@seed."
)
@click.option("--max-images", type=_COUNT, metavar="N", help="Use N of the photos.  [default: all]")
@click.option("--fit-images", type=_COUNT, metavar="N", help="Photos for the fit, layer by layer.  [default: 64]")
@click.option("--fit-size", type=_COUNT, metavar="PX", help="Their size.  [default: 3/4 of the input]")
@click.option(
    "--seen", "steps_images", type=click.IntRange(min=0), metavar="N",
    help="Images seen in the fine-tuning; 0: the fit alone.  [default: 8000]",
)  # fmt: skip
@click.option("--train-size", type=_COUNT, metavar="PX", help="Their size.  [default: about 2/3 of the input]")
@click.option("--batch", type=_COUNT, metavar="N", help="Images per step.  [default: 8]")
@click.option("--lr", type=click.FloatRange(min=0, min_open=True), help="Highest learning rate.  [default: 0.0002]")
@click.option("--data", metavar="DIR", help="Labelled data set to measure AP on, of other photos.")
@click.option("--eval-every", type=_COUNT, metavar="N", help="Measure AP after every N images.  [default: at the end]")
@click.option("--eval-images", type=_COUNT, metavar="N", help="Measure on the first N photos.  [default: all]")
@head_option
@input_size_option
@click.option("--threads", type=_COUNT, metavar="N", help="Threads of torch.  [default: one per core]")
@click.option("--seed", type=click.IntRange(min=0), metavar="N", help="Seed of all that is drawn.  [default: 0]")
@click.option("--out", type=_PATH, metavar="DIR", help="Folder for all that is written.  [default: runs/NAME-relu]")
@quiet_option
@json_option
def command(model: Path, quiet: bool, as_json: bool, **options: Any) -> None:
    """Give MODEL, any float ONNX network, ReLU activations, and teach it on plain photos to repeat what it said
    before."""
    # As in `qtool train`: waiting threads must not spin while others want the core.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    require_torch()
    from qtoolkit.training.retrain import retrain_network
    from qtoolkit.training.retrain_options import RetrainOptions

    given = {name: value for name, value in options.items() if value is not None}
    chosen = RetrainOptions.model_validate({"model": model, "out": Path("runs") / f"{model.stem}-relu", **given})
    with show_progress(quiet) as progress:
        result = retrain_network(chosen, progress)
    list_skipped(result.skipped)
    if as_json:
        print_json(_document(result))
    else:
        _print_result(result)


def _document(result: RetrainResult) -> dict[str, Any]:
    return {
        "model": str(result.model),
        "activations_replaced": len(result.changes),
        "photos": result.photos,
        "ap_original": result.ap.get(-1),
        "ap": [{"images": seen, "ap": ap} for seen, ap in sorted(result.ap.items()) if seen >= 0],
        "seconds": round(result.seconds, 1),
        "skipped": skipped_records(result.skipped),
    }


def _print_result(result: RetrainResult) -> None:
    kinds = ", ".join(sorted({change.kind for change in result.changes}))
    click.echo(f"{len(result.changes)} activation functions replaced ({kinds}); {result.photos} photos")
    for seen, ap in sorted(result.ap.items()):
        label = {-1: "the original", 0: "fitted layer by layer"}.get(seen, f"after {seen} images")
        click.echo(f"AP {ap:.2f} {label}")
    click.echo(f"network: {result.model}")
