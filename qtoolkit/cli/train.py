"""``qtool train``: a network from labels."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qtoolkit.cli.extras import require_torch
from qtoolkit.cli.options import json_option, quiet_option
from qtoolkit.cli.output import list_skipped, print_json, skipped_records
from qtoolkit.cli.progress import show_progress

if TYPE_CHECKING:
    from qtoolkit.training.loop import TrainResult
    from qtoolkit.training.recipe import TrainRecipe

__all__ = ["command"]

_PATH = click.Path(path_type=Path)
_COUNT = click.IntRange(min=1)
_EPILOG = """\
\b
Examples:
  qtool train recipes/default_network_silu.yaml
  qtool train --data synthetic:5000@1 --images 20000 --image-size 192 --out runs/small
  qtool train recipes/default_network_relu.yaml --init runs/default_network_silu/best.safetensors
  torchrun --nproc-per-node 2 --no-python qtool train recipes/yolov5s6_pose_640.yaml

Writes best.safetensors (the averaged weights with the best AP, for `qtool export`), last.safetensors (the state to go
on from), log.jsonl and recipe.yaml. A run that was stopped goes on where it was when the same command is given
again."""


@click.command("train", epilog=_EPILOG)
@click.argument("recipe", type=_PATH, required=False)
@click.option(
    "--data", metavar="DIR|synthetic:N@S", help="Data set with a labelled part train, or N rendered images of seed S."
)
@click.option("--size", type=click.Choice(["n6", "s6", "m6", "l6"]), help="Size of the network.  [default: n6]")
@click.option("--lite/--full", default=None, help="TI's embedded variant, or the full network.  [default: full]")
@click.option("--activation", type=click.Choice(["silu", "relu"]), help="Activation.  [default: silu]")
@click.option("--init", type=_PATH, metavar="FILE", help="Start from these weights, whatever their activation.")
@click.option("--image-size", type=_COUNT, metavar="PX", help="Side of the input, a multiple of 64.")
@click.option("--images", type=_COUNT, metavar="N", help="Stop when N images have been seen.")
@click.option("--epochs", type=_COUNT, metavar="N", help="Stop after N epochs.")
@click.option("--batch", type=_COUNT, metavar="N", help="Images per batch and process.  [default: 16]")
@click.option("--accumulate", type=_COUNT, metavar="N", help="Batches per update of the weights.  [default: 1]")
@click.option(
    "--lr", type=click.FloatRange(min=0, min_open=True), help="Highest learning rate.  [default: 0.01; lite 0.0032]"
)
@click.option("--loss", type=click.Choice(["oks", "l1", "l1-scaled"]), help="Keypoint loss.  [default: oks]")
@click.option("--amp", type=click.Choice(["off", "bf16", "fp16"]), help="16-bit autocast.  [default: off]")
@click.option(
    "--eval-every", type=click.IntRange(min=0), metavar="N", help="Evaluate after every N images; 0: at the end."
)
@click.option("--eval-images", type=_COUNT, metavar="N", help="Evaluate on the first N photos.  [default: all]")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where to train.  [default: auto]")
@click.option("--threads", type=_COUNT, metavar="N", help="Threads of torch.  [default: one per core]")
@click.option("--workers", type=click.IntRange(min=0), metavar="N", help="Threads that prepare images.  [default: 1]")
@click.option("--seed", type=click.IntRange(min=0), metavar="N", help="Seed of all that is drawn.  [default: 0]")
@click.option("--resume", is_flag=True, help="Fail where there is no training to go on with.")
@click.option("--out", type=_PATH, metavar="DIR", help="Folder for all that is written.  [default: runs/NAME]")
@quiet_option
@json_option
def command(recipe: Path | None, resume: bool, quiet: bool, as_json: bool, **options: Any) -> None:
    """Train YOLO-Pose by RECIPE, whose values the options replace; without one, the smallest network on rendered
    people."""
    # Read when torch is loaded: its threads spin where they wait for each other, and take the cores from the threads
    # that prepare images and from every other process. On two busy cores that makes a step six times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    require_torch()
    from qtoolkit.training.allocator import keep_freed_memory
    from qtoolkit.training.loop import train

    keep_freed_memory()

    chosen = _recipe(recipe, options)
    with show_progress(quiet) as progress:
        result = train(chosen, progress, resume=resume)
    list_skipped(result.skipped)
    if int(os.environ.get("RANK", "0")):
        return
    if as_json:
        print_json(_document(result))
    else:
        _print_result(result)


def _recipe(path: Path | None, options: dict[str, Any]) -> TrainRecipe:
    from qtoolkit.training.recipe import DEFAULT_FIELDS, build_train_recipe, read_train_recipe

    given: dict[str, Any] = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    return build_train_recipe(DEFAULT_FIELDS, **given) if path is None else read_train_recipe(path, **given)


def _document(result: TrainResult) -> dict[str, Any]:
    return {
        "out": str(result.out),
        "weights": str(result.weights),
        "images": result.images,
        "steps": result.steps,
        "ap": result.ap,
        "best_ap": result.best_ap,
        "seconds": result.seconds,
        "images_per_second": result.images_per_second,
        "skipped": skipped_records(result.skipped),
    }


def _print_result(result: TrainResult) -> None:
    if result.ap is not None:
        click.echo(f"AP {result.ap:.2f}, best {result.best_ap:.2f}")
    click.echo(
        f"{result.images} images in {result.steps} steps, {result.seconds:.0f} s, "
        f"{result.images_per_second:.1f} images/s in training"
    )
    click.echo(f"weights: {result.weights}")
