"""``qtool bench``: latency of networks, measured side by side in one run."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qtoolkit.cli.options import input_size_option, json_option, quiet_option, threads_option
from qtoolkit.cli.output import print_json, print_table
from qtoolkit.cli.progress import one_stage, show_progress
from qtoolkit.errors import ModelFileError, UnavailableError, UsageError

if TYPE_CHECKING:
    from qtoolkit.bench.cost import Cost
    from qtoolkit.bench.latency_result import LatencyResult

__all__ = ["command"]

_PHOTOS = 8
_LATER_DEVICES = ("cuda", "jetson")
_EPILOG = """\
\b
Examples:
  qtool bench model.float.onnx model.int8.onnx --threads 2
  qtool bench model.float.onnx model.int8.onnx --runtime openvino-cpu
  qtool bench runs/yolov8n-pose/model.*.onnx --data coco --runs 200 --json
  qtool bench model.float.onnx model.int8.onnx --device ssh://nvidia@orin.local

Each network runs in a process of its own and has short turns, so that what else the machine does hits all alike. Ratios
are against the first network. Times are of the inference alone."""


@dataclass(frozen=True, eq=False)
class _Network:
    """A file to measure, which may be a copy with a fixed input, under the name the user knows it by."""

    path: Path
    cost: Cost


@click.command("bench", epilog=_EPILOG)
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    metavar="DEVICE",
    help="Where to measure: cpu, or a board at ssh://user@host[:port][/python].",
)
@click.option(
    "--runtime",
    default="ort-cpu",
    show_default=True,
    metavar="NAME",
    help="ort-cpu or openvino-cpu on the processor; tensorrt (where it is there) or onnxruntime on a board.",
)
@threads_option
@click.option(
    "--runs", type=click.IntRange(min=10), default=100, show_default=True, metavar="N", help="Inferences per network."
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help=f"Feed the first {_PHOTOS} photos of the part val of a data set.  [default: seeded noise]",
)
@input_size_option
@quiet_option
@json_option
def command(
    *,
    models: tuple[Path, ...],
    device: str,
    runtime: str,
    threads: int | None,
    runs: int,
    data: Path | None,
    input_size_wh: tuple[int, int] | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Measure latency (p50, p90, p99), images per second and GMACs of one or more networks, float or quantized."""
    from qtoolkit.cli.bench_remote import bench_on_board, board_of

    if (board := board_of(device)) is not None:
        return bench_on_board(board, click.get_current_context().params)
    _check_device(device)

    from qtoolkit.backends.table import runner_class
    from qtoolkit.bench.latency import measure_latency

    runner_class(runtime)

    with tempfile.TemporaryDirectory(prefix="qtoolkit-") as folder, show_progress(quiet) as progress:
        named = zip(_names(models), models, strict=True)
        networks = {
            name: _opened(path, input_size_wh, Path(folder) / f"{place}.onnx")
            for place, (name, path) in enumerate(named)
        }
        feeds = None if data is None else _write_photos(data, networks, Path(folder) / "photos.npy")
        results = measure_latency(
            {name: network.path for name, network in networks.items()},
            threads=threads,
            runs=runs,
            feeds_path=feeds,
            backend=runtime,
            progress=one_stage(progress, "measuring latency"),
        )
    gmacs = {name: network.cost.gmacs for name, network in networks.items()}
    inputs = "noise" if data is None else f"photos of {data.name}"
    (_print_json if as_json else _print_table)(results, gmacs, inputs)


def _check_device(device: str) -> None:
    if device == "cpu":
        return
    if device.partition("-")[0] in _LATER_DEVICES:
        raise UnavailableError(
            f"measuring on {device} comes with a later release",
            expected="--device cpu",
            found=f"--device {device}",
            do="measure on this machine's processor; `qtool doctor` says what it can do",
        )
    raise UsageError(
        "the device is not known",
        expected="cpu or ssh://user@host (later releases: cuda, jetson or jetson-NAME)",
        found=repr(device),
        do="choose a device with --device",
    )


def _names(paths: Sequence[Path]) -> list[str]:
    """File names, whole paths where two files share one, and a number where one file is given twice."""
    file_names = [path.name for path in paths]
    names = [path.name if file_names.count(path.name) == paths.count(path) else str(path) for path in paths]
    return [
        f"{name} #{names[: place + 1].count(name)}" if names.count(name) > 1 else name
        for place, name in enumerate(names)
    ]


def _opened(path: Path, input_size_wh: tuple[int, int] | None, copy: Path) -> _Network:
    from qtoolkit.artifacts.files import write_bytes
    from qtoolkit.bench.cost import network_cost
    from qtoolkit.evaluation.evaluate import runnable_network
    from qtoolkit.graph.load import load_network
    from qtoolkit.graph.read import read_model

    network = runnable_network(path, input_size_wh)
    if not isinstance(network, Path):
        write_bytes(copy, network.SerializeToString(deterministic=True))
        return _Network(copy, network_cost(network))
    try:
        return _Network(path, network_cost(read_model(path)))
    except ModelFileError:
        # Shapes that only folding its constants tells.
        return _Network(path, network_cost(load_network(path, allow_quantized=True)))


def _write_photos(data: Path, networks: Mapping[str, _Network], path: Path) -> Path:
    """Letterboxed photos as one array (M, 3, H, W) float32, for networks that all take such an image."""
    import numpy as np

    from qtoolkit.data.sources import open_data_source
    from qtoolkit.graph.load import NetworkInput
    from qtoolkit.quantization.feeds import image_feeds

    shapes = {shape for network in networks.values() for shape in network.cost.input_shapes.values()}
    shape = next(iter(shapes))
    if len(shapes) > 1 or len(shape) != 4:
        raise UsageError(
            "the same photos cannot be fed to these networks",
            expected="networks with one image input (1, 3, H, W) each, all of one size",
            found=", ".join(sorted(str(each) for each in shapes)),
            do="measure them one at a time, give --input-size, or leave --data out",
        )
    samples = open_data_source(data).evaluation_samples(_PHOTOS)
    network_input = NetworkInput("images", (shape[0], shape[1], shape[2], shape[3]))
    tensors = [feed["images"] for feed in image_feeds((sample.path for sample in samples), network_input)]
    with path.open("wb") as stream:
        np.save(stream, np.concatenate(tensors))
    return path


def _print_json(results: Mapping[str, LatencyResult], gmacs: Mapping[str, float], inputs: str) -> None:
    from qtoolkit.bench.environment import capture_environment

    rows: list[dict[str, Any]] = [
        {"network": name, "gmacs": gmacs[name], "inputs": inputs, "latency": json.loads(result.model_dump_json())}
        for name, result in results.items()
    ]
    print_json({"results": rows, "environment": capture_environment().model_dump(mode="json")})


def _print_table(results: Mapping[str, LatencyResult], gmacs: Mapping[str, float], inputs: str) -> None:
    from qtoolkit.quantization.assess import latency_figures
    from qtoolkit.reporting.tables import bench_table

    print_table(bench_table([(name, latency_figures(result)) for name, result in results.items()], gmacs))
    first = next(iter(results.values()))
    shapes = {shape for result in results.values() for shape in result.input_shapes.values()}
    sizes = ", ".join("×".join(map(str, shape)) for shape in sorted(shapes))
    click.echo(f"{first.count} inferences each, in turns of {first.block} · inputs: {inputs}, {sizes}")
    unstable = [name for name, result in results.items() if not result.warm_up_stable]
    if unstable:
        click.echo(f"times did not settle in the warm-up of: {', '.join(unstable)}; the machine is busy", err=True)
