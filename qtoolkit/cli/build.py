"""``qtool build``: an engine for TensorRT, or a checked ONNX network for the runtimes that open those."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qtoolkit.cli.options import head_option, input_size_option, json_option, model_argument, quiet_option
from qtoolkit.cli.output import print_json, print_table
from qtoolkit.cli.progress import show_progress

if TYPE_CHECKING:
    from qtoolkit.engine_build import BuildResult

__all__ = ["command"]

_PATH = click.Path(path_type=Path)
_EPILOG = """\
\b
Examples:
  qtool build runs/yolov8n-pose/model.int8.onnx --target tensorrt-rtx
  qtool build model.mixed.onnx --target tensorrt --out engines --timing-cache engines/timing.cache
  qtool build model.float.onnx --target tensorrt-strong --nms onnx
  qtool build model.int8.onnx --target ort-cpu --json

Quantize for the same target first: qtool quantize MODEL --data DIR --target tensorrt. Engines of tensorrt and
tensorrt-strong are built on the GPU that runs them; those of tensorrt-rtx on any processor, ahead of time."""


@click.command("build", epilog=_EPILOG)
@model_argument
@click.option(
    "--target",
    required=True,
    metavar="T",
    help="tensorrt (8.5 to 10), tensorrt-strong (10, 11), tensorrt-rtx, ort-cpu or openvino-cpu.",
)
@click.option("--out", type=_PATH, metavar="DIR", help="Folder for what is built.  [default: runs/engines]")
@click.option(
    "--nms",
    type=click.Choice(["host", "onnx"]),
    help="Where suppression runs: on the host behind the network, or inside it.  [default: host]",
)
@click.option("--workspace-mb", type=click.IntRange(min=1), metavar="N", help="TensorRT: memory for layers, MiB.")
@click.option(
    "--timing-cache", type=_PATH, metavar="FILE", help="TensorRT: times measured in earlier builds; read and kept."
)
@click.option(
    "--compute-capability",
    "compute_capabilities",
    multiple=True,
    metavar="X.Y",
    help="TensorRT-RTX: the cards it is for, such as 8.9; may be given again.  [default: all that it knows]",
)
@head_option
@input_size_option
@quiet_option
@json_option
def command(model: Path, quiet: bool, as_json: bool, **options: Any) -> None:
    """Build MODEL, a float or quantized ONNX network, for a target, and say what became of its layers."""
    from qtoolkit.engine_build import BuildOptions, build

    given = {name: value for name, value in options.items() if value not in (None, ())}
    with show_progress(quiet) as progress:
        result = build(BuildOptions(model=model, **given), progress=lambda stage: progress(stage, 0, 1))
    if as_json:
        print_json(result.model_dump(mode="json"))
    else:
        _print_result(result)


def _print_result(result: BuildResult) -> None:
    from qtoolkit.reporting.build_table import build_table

    print_table(build_table(result.model_dump(mode="json")))
