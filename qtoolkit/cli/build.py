"""``qtool build``: an engine for TensorRT, or a checked ONNX network for the runtimes that open those."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qtoolkit.cli.options import head_option, input_size_option, json_option, model_argument, quiet_option
from qtoolkit.cli.output import print_json, print_table
from qtoolkit.cli.progress import show_progress
from qtoolkit.errors import UsageError

if TYPE_CHECKING:
    from qtoolkit.deploy.bundle import BundleFile
    from qtoolkit.engine_build import BuildOptions, BuildResult

__all__ = ["command"]

_PATH = click.Path(path_type=Path)
_EPILOG = """\
\b
Examples:
  qtool build runs/yolov8n-pose/model.int8.onnx --target tensorrt-rtx
  qtool build model.mixed.onnx --target tensorrt --out engines
  qtool build model.float.onnx --target tensorrt-strong --nms onnx
  qtool build model.int8.onnx --target ort-cpu --bundle pose.zip

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
    "--timing-cache",
    type=_PATH,
    metavar="FILE",
    help="TensorRT: times measured in earlier builds; read and kept.  [default: timing.cache in the folder]",
)
@click.option(
    "--optimization-level",
    type=click.IntRange(0, 5),
    metavar="0-5",
    help="TensorRT from 8.6 on: 0 builds fastest, 5 searches longest.  [default: 3]",
)
@click.option(
    "--compute-capability",
    "compute_capabilities",
    multiple=True,
    metavar="X.Y",
    help="TensorRT-RTX: the cards it is for, such as 8.9; may be given again.  [default: all that it knows]",
)
@click.option(
    "--bundle",
    type=_PATH,
    metavar="FILE.zip",
    help="Also all that a machine without qtool needs to find people with it, in one zip; see docs/DEPLOY.md.",
)
@head_option
@input_size_option
@quiet_option
@json_option
def command(model: Path, bundle: Path | None, quiet: bool, as_json: bool, **options: Any) -> None:
    """Build MODEL, a float or quantized ONNX network, for a target, and say what became of its layers."""
    from qtoolkit.engine_build import BuildOptions, build

    given = BuildOptions(model=model, **{name: value for name, value in options.items() if value not in (None, ())})
    if bundle is not None:
        _check_bundle(bundle, given)
    with show_progress(quiet) as progress:
        result = build(given, progress=progress)
        written = None if bundle is None else _write_bundle(bundle, given, result)
    if as_json:
        facts = {} if written is None else {"bundle": {**asdict(written), "path": str(written.path)}}
        print_json({**result.model_dump(mode="json"), **facts})
        return
    _print_result(result)
    if written is not None:
        click.echo(f"bundle: {written.path}, {written.size_bytes / 1e6:.2f} MB, sha256 {written.sha256[:12]}")


def _check_bundle(bundle: Path, options: BuildOptions) -> None:
    """Raise UsageError, before anything is built, for what no bundle can be made of."""
    from qtoolkit.backends.targets import find_target

    if bundle.suffix.lower() != ".zip":
        raise UsageError(
            "a bundle is a zip", expected="--bundle FILE.zip", found=str(bundle), do="end its name in .zip"
        )
    target = find_target(options.target)
    if target.backend == "tensorrt-rtx" or (target.needs_engine and options.nms == "onnx"):
        raise UsageError(
            "the runner of a bundle cannot open this engine",
            expected="a TensorRT engine without suppression inside, or an ONNX network",
            found=f"--target {target.name} --nms {options.nms}",
            do="bundle the ONNX network: --target ort-cpu",
        )


def _write_bundle(bundle: Path, options: BuildOptions, result: BuildResult) -> BundleFile:
    from qtoolkit.deploy.bundle import write_bundle

    if result.record is None:
        # The head the user named is that of MODEL; suppression inside has outputs of its own.
        head = options.head if options.nms == "host" else None
        return write_bundle(result.file, bundle, head=head)
    return write_bundle(
        options.model,
        bundle,
        engine=result.file,
        sidecar=result.record,
        head=options.head,
        input_size_wh=options.input_size_wh,
    )


def _print_result(result: BuildResult) -> None:
    from qtoolkit.reporting.build_table import build_table

    print_table(build_table(result.model_dump(mode="json")))
