"""``qtool export``: weights as an ONNX network, or suppression inside an ONNX network."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qtoolkit.cli.extras import require_torch
from qtoolkit.cli.options import InputSize, head_option, json_option
from qtoolkit.cli.output import print_json
from qtoolkit.errors import UsageError

if TYPE_CHECKING:
    from qtoolkit.evaluation.end_to_end import EndToEndFile
    from qtoolkit.training.export_checkpoint import ExportedNetwork

__all__ = ["command"]

_PATH = click.Path(path_type=Path)
_SHARE = click.FloatRange(0, 1)
_ACTIVATIONS = click.Choice(["silu", "relu"])
_ONNX = ".onnx"
_FOR_WEIGHTS = {
    "opset": "--opset",
    "architecture": "--architecture",
    "activation": "--activation",
    "side_activation": "--side-activation",
    "half_storage": "--half-storage",
}
_EPILOG = """\
\b
Examples:
  qtool export runs/train/best.safetensors --size 320 --out n6.onnx
  qtool export runs/train/best.safetensors --opset 21 --end-to-end --score-threshold 0.25
  qtool export yolov5s6_pose_ti_lite.pt --architecture s6-lite --size 640
  qtool export yolov8n-pose.onnx --end-to-end

Weights are written only where torch and ONNX Runtime agree on a random image. Outputs with --end-to-end: boxes (N, 4)
as x1, y1, x2, y2, scores (N), keypoints (N, K, 3), in pixels of the input, most confident first."""


@click.command("export", epilog=_EPILOG)
@click.argument("source", type=_PATH, metavar="WEIGHTS|MODEL.onnx")
@click.option(
    "--out", type=_PATH, metavar="FILE.onnx|DIR", help="File, or folder for it.  [default: beside what is exported]"
)
@click.option(
    "--size",
    "input_size_wh",
    type=InputSize(),
    metavar="WxH",
    help="Input size in pixels, multiples of 64.  [default: that of the training, or 320]",
)
@click.option("--opset", type=int, metavar="17..21", help="ONNX opset; int16 networks need 21.  [default: 17]")
@click.option(
    "--half-storage",
    is_flag=True,
    default=None,
    help="Store large weights as fp16, half the file; the network computes in float32 all the same.",
)
@click.option("--end-to-end", is_flag=True, help="Put non-maximum suppression inside.")
@click.option("--score-threshold", type=_SHARE, help="Inside: people with a lower score go.  [default: 0.001]")
@click.option("--iou-threshold", type=_SHARE, help="Inside: of two boxes that overlap more, one stays.  [default: 0.7]")
@click.option("--architecture", metavar="ARCH", help="Read TI's released weights of s6, m6, l6, s6-lite or m6-lite.")
@click.option(
    "--activation", type=_ACTIVATIONS, help="Of TI's weights.  [default: silu, relu in a lite network, as released]"
)
@click.option(
    "--side-activation", type=_ACTIVATIONS, help="Of their pooling and keypoint head.  [default: silu, as released]"
)
@head_option
@json_option
def command(
    source: Path,
    out: Path | None,
    end_to_end: bool,
    score_threshold: float | None,
    iou_threshold: float | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Write WEIGHTS (of `qtool train`, or TI's released ones) as a float ONNX network; or put non-maximum suppression
    inside any ONNX pose network, float or quantized."""
    given = {name: value for name, value in options.items() if value is not None}
    named = {"score_threshold": score_threshold, "iou_threshold": iou_threshold}
    thresholds = {name: value for name, value in named.items() if value is not None}
    is_network = source.suffix.lower() == _ONNX
    _check_options(is_network, end_to_end, given, thresholds)
    result: EndToEndFile | ExportedNetwork
    if is_network:
        from qtoolkit.evaluation.end_to_end import write_end_to_end

        target = _target(source, out, f"{source.stem}.end-to-end{_ONNX}")
        result = write_end_to_end(source, target, thresholds=thresholds, **given)
    else:
        # As in `qtool train`: torch reads it when it is loaded.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        require_torch()
        from qtoolkit.training.export_checkpoint import export_weights

        target = _target(source, out, f"{source.stem}{_ONNX}")
        result = export_weights(source, target, end_to_end=end_to_end, thresholds=thresholds, **given)
    if as_json:
        print_json({**asdict(result), "path": str(result.path)})
    else:
        click.echo("\n".join(_lines(result)))


def _check_options(is_network: bool, end_to_end: bool, given: dict[str, Any], thresholds: dict[str, float]) -> None:
    if is_network and not end_to_end:
        raise UsageError(
            "the network is ONNX already",
            expected="weights, or --end-to-end to put non-maximum suppression inside the network",
            found="an ONNX network without --end-to-end",
            do="give --end-to-end",
        )
    wrong = [option for name, option in _FOR_WEIGHTS.items() if name in given] if is_network else []
    wrong += ["--head"] if not is_network and "head" in given else []
    if wrong:
        raise UsageError(
            f"{wrong[0]} does not go with {'an ONNX network' if is_network else 'weights'}",
            expected="options of what is exported",
            found=", ".join(wrong),
            do=f"leave {wrong[0]} out",
        )
    if thresholds and not end_to_end:
        raise UsageError(
            "thresholds are for suppression inside the network",
            expected="--end-to-end with them",
            found=", ".join(f"--{name.replace('_', '-')} {value:g}" for name, value in thresholds.items()),
            do="give --end-to-end, or leave them out",
        )
    if not {"activation", "side_activation"}.isdisjoint(given) and "architecture" not in given:
        raise UsageError(
            "weights of `qtool train` name their activation themselves",
            expected="--architecture with --activation and --side-activation",
            found="no --architecture",
            do="leave these options out",
        )


def _target(source: Path, out: Path | None, name: str) -> Path:
    """The file to write, its folder made and writable."""
    from qtoolkit.artifacts.files import prepare_out_dir

    if out is None:
        return prepare_out_dir(source.parent) / name if source.parent.is_dir() else source.with_name(name)
    if out.suffix.lower() == _ONNX and not out.is_dir():
        return prepare_out_dir(out.parent) / out.name
    return prepare_out_dir(out) / name


def _lines(result: EndToEndFile | ExportedNetwork) -> list[str]:
    from qtoolkit.evaluation.end_to_end import EndToEndFile

    width, height = result.input_size_wh
    facts = [f"input {width}×{height}", f"opset {result.opset}", f"{result.size_bytes / 1e6:.2f} MB"]
    if isinstance(result, EndToEndFile):
        facts.append(f"suppression behind a {result.head} head")
        return [str(result.path), " · ".join(facts)]
    facts = [f"{result.architecture} {result.activation}", *facts, f"{result.gmacs:.3f} GMACs"]
    facts.append(f"{result.parameters / 1e6:.2f} M parameters")
    if result.end_to_end:
        facts.append("suppression inside")
    lines = [
        str(result.path),
        " · ".join(facts),
        f"torch and ONNX Runtime differ by {result.relative_error:.1e} at most",
    ]
    if result.storage_error is not None:
        lines.append(f"weights are stored as fp16, which changes outputs by {result.storage_error:.1e} at most")
    return lines
