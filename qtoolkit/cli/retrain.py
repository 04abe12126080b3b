"""``qtool retrain``: another activation function, with labels or without."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qtoolkit.cli.extras import prepare_torch
from qtoolkit.cli.options import head_option, input_size_option, json_option, optional_model_argument, quiet_option
from qtoolkit.cli.output import list_skipped, print_json, skipped_records
from qtoolkit.cli.progress import show_progress
from qtoolkit.errors import UsageError

if TYPE_CHECKING:
    from qtoolkit.training.loop import TrainResult
    from qtoolkit.training.retrain import RetrainResult

__all__ = ["command"]

_PATH = click.Path(path_type=Path)
_COUNT = click.IntRange(min=1)
_WEIGHTS = ".safetensors"
_DEFAULT_IMAGES = "synthetic:500@2"
# Parameter → option, of what only a retraining without labels has.
_WITHOUT_LABELS = {
    "images": "--images",
    "max_images": "--max-images",
    "fit_images": "--fit-images",
    "fit_size": "--fit-size",
    "head": "--head",
    "input_size_wh": "--input-size",
}
_EPILOG = """\
\b
Examples:
  qtool retrain yolov8n-pose.onnx --activation relu --images photos
  qtool retrain yolov8n-pose.onnx --images photos --seen 40000 --data coco --eval-every 8000 --out runs/relu
  qtool retrain runs/train/best.safetensors --data coco

Writes model.onnx (same inputs, outputs and layer names), log.jsonl, and the states that a run which was stopped goes
on from when the same command is given again. Weights of `qtool train` are trained on with labels, and what is written
is what `qtool train` writes."""


@click.command("retrain", epilog=_EPILOG)
@optional_model_argument
@click.option("--activation", type=click.Choice(["relu"]), help="The new activation function.  [default: relu]")
@click.option(
    "--images",
    metavar="DIR",
    help="Photos to learn from: a folder, a data set, or synthetic:N@seed.  [default: none; without MODEL "
    f"{_DEFAULT_IMAGES}]",
)
@click.option("--max-images", type=_COUNT, metavar="N", help="Use N of the photos.  [default: all]")
@click.option(
    "--fit-images",
    type=_COUNT,
    metavar="N",
    help="Photos for the fit, layer by layer.  [default: what 2.5 GB hold, at most 64]",
)
@click.option("--fit-size", type=_COUNT, metavar="PX", help="Their size.  [default: about 3/4 of the input]")
@click.option(
    "--seen",
    "steps_images",
    type=click.IntRange(min=0),
    metavar="N",
    help="Images seen in the fine-tuning; 0: the fit alone.  [default: 16000; weights 80000]",
)
@click.option(
    "--train-size",
    type=_COUNT,
    metavar="PX",
    help="Their size.  [default: about 0.7 of the input; weights: as trained]",
)
@click.option("--batch", type=_COUNT, metavar="N", help="Images per step.  [default: 8; weights 16]")
@click.option(
    "--lr",
    type=click.FloatRange(min=0, min_open=True),
    help="Highest learning rate.  [default: 0.00007; weights 0.008]",
)
@click.option(
    "--data", metavar="DIR", help="Labelled data set to measure AP on, of other photos; weights: to train on."
)
@click.option(
    "--eval-every",
    type=_COUNT,
    metavar="N",
    help="Measure AP after every N images.  [default: at the end; weights 20000]",
)
@click.option("--eval-images", type=_COUNT, metavar="N", help="On the first N photos.  [default: all; weights 200]")
@head_option
@input_size_option
@click.option(
    "--amp",
    type=click.Choice(["auto", "off", "bf16"]),
    help="bfloat16 in the training.  [default: auto, where the device multiplies in it; weights: off]",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    help="Where torch computes.  [default: auto, cuda where there is one]",
)
@click.option("--threads", type=_COUNT, metavar="N", help="Threads of torch.  [default: one per core]")
@click.option("--seed", type=click.IntRange(min=0), metavar="N", help="Seed of all that is drawn.  [default: 0]")
@click.option("--out", type=_PATH, metavar="DIR", help="Folder for all that is written.  [default: runs/NAME-relu]")
@quiet_option
@json_option
def command(model: Path | None, quiet: bool, as_json: bool, **options: Any) -> None:
    """Give MODEL, any float ONNX network, ReLU activations, and teach it on plain photos to repeat what it said
    before; or give them to weights of `qtool train`, and train on with labels. Without MODEL: the default network, on
    rendered people."""
    prepare_torch()
    given = {name: value for name, value in options.items() if value is not None}
    if model is not None and model.suffix.lower() == _WEIGHTS:
        _show_training(_train_on(model, given, quiet), as_json)
        return
    result = _without_labels(model, given, quiet)
    list_skipped(result.skipped)
    if as_json:
        print_json(_document(result))
    else:
        _print_result(result)


def _without_labels(model: Path | None, given: dict[str, Any], quiet: bool) -> RetrainResult:
    from qtoolkit.graph.default_network import default_network
    from qtoolkit.training.retrain import retrain_network
    from qtoolkit.training.retrain_options import build_retrain_options

    if model is None:
        model = default_network("silu")
        given.setdefault("images", _DEFAULT_IMAGES)
    if "images" not in given:
        raise UsageError(
            "there are no photos to retrain on",
            expected="--images with the network: photos like those that it will see, without labels",
            found=f"{model}, and no --images",
            do="give --images DIR, or synthetic:500@2 for rendered people",
        )
    out = Path("runs") / f"{model.stem}-{given.get('activation', 'relu')}"
    options = build_retrain_options(**{"model": model, "out": out, **given})
    with show_progress(quiet) as progress:
        return retrain_network(options, progress)


def _train_on(weights: Path, given: dict[str, Any], quiet: bool) -> TrainResult:
    from qtoolkit.training.loop import train
    from qtoolkit.training.retrain_weights import retrain_recipe

    wrong = [option for name, option in _WITHOUT_LABELS.items() if name in given]
    wrong += ["--seen 0"] if given.get("steps_images") == 0 else []
    if wrong or "data" not in given:
        raise UsageError(
            "weights of `qtool train` are retrained with labels",
            expected="--data with a labelled part train, and options of a training",
            found=", ".join(wrong) or "no --data",
            do="export the weights and give the ONNX network, to retrain without labels"
            if wrong
            else "give --data DIR",
        )
    # The file itself is called best by `qtool train`.
    out = Path("runs") / f"{weights.resolve().parent.name}-{given.get('activation', 'relu')}"
    if given.get("amp") == "auto":
        given.pop("amp")
    names = {"steps_images": "images", "train_size": "image_size"}
    fields = {names.get(name, name): str(value) if name == "out" else value for name, value in given.items()}
    recipe = retrain_recipe(weights, **{"out": str(out), **fields})
    with show_progress(quiet) as progress:
        return train(recipe, progress)


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


def _show_training(result: TrainResult, as_json: bool) -> None:
    list_skipped(result.skipped)
    if as_json:
        facts = {"weights": str(result.weights), "images": result.images, "ap": result.ap, "best_ap": result.best_ap}
        print_json({**facts, "seconds": result.seconds, "skipped": skipped_records(result.skipped)})
        return
    if result.ap is not None:
        click.echo(f"AP {result.ap:.2f}, best {result.best_ap:.2f}, after {result.images} images")
    click.echo(f"weights: {result.weights}")
