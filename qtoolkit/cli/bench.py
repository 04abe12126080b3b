"""``qtool bench``: latency of networks, measured side by side in one run."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from qtoolkit.cli.bench_modelled import bench_modelled, list_devices_option, precision_option
from qtoolkit.cli.bench_networks import PHOTOS, at_batch, network_names, open_networks, write_photos
from qtoolkit.cli.engines import build_engines, check_engine_call, engine_runtime, gpu_for
from qtoolkit.cli.options import head_option, input_size_option, json_option, quiet_option, threads_option
from qtoolkit.cli.progress import StageProgress, one_stage, show_progress
from qtoolkit.errors import UnavailableError, UsageError

if TYPE_CHECKING:
    from qtoolkit.bench.energy import EnergyMeter
    from qtoolkit.bench.pose_stages import StageTimes
    from qtoolkit.bench.throughput import ThroughputResult
    from qtoolkit.cli.bench_report import BenchReport

__all__ = ["command"]

_MODELLED = frozenset({"models", "device", "precisions", "input_size_wh", "quiet", "as_json"})
_ON_A_BOARD = _MODELLED - {"precisions"} | {"runtime", "threads", "runs", "data"}
_ON_A_GPU = _ON_A_BOARD - {"runtime", "threads"} | {"until_pct", "limit_s", "compare", "force", "max_ratio"}
_EPILOG = """\
\b
Examples:
  qtool bench model.float.onnx model.int8.onnx --threads 2
  qtool bench model.float.onnx model.int8.onnx --runtime openvino-cpu
  qtool bench runs/yolov8n-pose/model.*.onnx --data coco --runs 200 --json
  qtool bench engines/model.int8.tensorrt.engine engines/model.mixed.tensorrt.engine
  qtool bench model.float.onnx model.int8.onnx --device jetson
  qtool bench model.float.onnx model.int8.onnx --device ssh://nvidia@orin.local
  qtool bench model.int8.onnx --until 1% --batch 4 --streams 2 --stages --data coco
  qtool bench --compare model.float.onnx model.int8.onnx --max-ratio 0.8
  qtool bench --compare before.json after.json

Each network runs in a process of its own and has short turns, so that what else the machine does hits all alike. Ratios
are against the first network. Times are of the inference alone."""


if TYPE_CHECKING:
    _PercentType = click.ParamType[float]
else:
    # Older versions of click cannot be subscripted.
    _PercentType = click.ParamType


class _Percent(_PercentType):
    """``1%`` or ``1``: percent."""

    name = "PCT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            percent = float(str(value).strip().removesuffix("%"))
        except ValueError:
            percent = -1.0
        if not 0 < percent < 100:
            self.fail(f"{value!r} is not a share: give, for example, 1%.", param, ctx)
        return percent


@click.command("bench", epilog=_EPILOG)
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    metavar="DEVICE",
    help="Measured: cpu, cuda (TensorRT; engines run there by themselves), ssh://user@host[:port][/python], a board. "
    "Modelled: jetson[-NAME][@MODE].",
)
@list_devices_option
@precision_option
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
    "--until", "until_pct", type=_Percent(), metavar="PCT%", help="Go on until p50 and ratio are known to ± so much."
)
@click.option(
    "--limit",
    "limit_s",
    type=click.FloatRange(min=0),
    metavar="S",
    help="Seconds after which --until gives up.  [default: 60]",
)
@click.option("--batch", type=click.IntRange(min=1), metavar="N", help="Also images per second, N images at a time.")
@click.option(
    "--streams", type=click.IntRange(min=1), metavar="N", help="Also images per second, N inferences at once."
)
@click.option("--energy", is_flag=True, help="Also the energy of an image, where the machine measures it.")
@click.option("--stages", is_flag=True, help="Also letterbox and normalise, decode and NMS, and all together.")
@click.option("--compare", is_flag=True, help="Say whether the second MODEL is faster; also two files of --json.")
@click.option("--force", is_flag=True, help="With --compare: files of different conditions too.")
@click.option(
    "--max-ratio",
    type=click.FloatRange(min=0, min_open=True),
    metavar="R",
    help="End with exit code 1 where a network takes more than R times the first one's time.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help=f"Feed the first {PHOTOS} photos of the part val of a data set.  [default: seeded noise]",
)
@head_option
@input_size_option
@quiet_option
@json_option
def command(
    *,
    models: tuple[Path, ...],
    device: str,
    compare: bool,
    force: bool,
    max_ratio: float | None,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure latency (p50, p90, p99), images per second and GMACs of one or more networks, float or quantized.

    MODEL: an ONNX network, or an engine that `qtool build` wrote.
    """
    from qtoolkit.cli.bench_remote import bench_on_board, board_of

    context = click.get_current_context()
    if check_engine_call(models, context):
        device = "cuda"
    if (board := board_of(device)) is not None:
        _check_options(context, _ON_A_BOARD)
        return bench_on_board(board, context.params)
    if device.startswith("jetson"):
        _check_options(context, _MODELLED)
        named = dict(zip(network_names(models), models, strict=True))
        return bench_modelled(named, device, options["precisions"], options["input_size_wh"], as_json)
    _check_options(context, _ON_A_GPU if device == "cuda" else frozenset(context.params) - {"precisions"}, device)
    options.pop("precisions")
    _check_compare(models, compare, force, max_ratio)

    from qtoolkit.bench.comparison import check_max_ratio, compare_files, compare_in_one_run, read_bench
    from qtoolkit.cli.bench_report import print_bench, print_comparison

    if _are_results(models):
        comparisons = compare_files(*(read_bench(path) for path in models), force=force)
        print_comparison(comparisons, as_json)
    else:
        with show_progress(quiet) as progress:
            report = _measured(models, device, progress, **options)
        comparisons = compare_in_one_run(report.run.results)
        print_bench(replace(report, comparisons=comparisons if compare else ()), as_json)
    if max_ratio is not None:
        check_max_ratio(comparisons, max_ratio)


def _measured(
    models: Sequence[Path],
    device: str,
    progress: StageProgress,
    *,
    runtime: str,
    threads: int | None,
    input_size_wh: tuple[int, int] | None,
    data: Path | None,
    **options: Any,
) -> BenchReport:
    from qtoolkit.backends.table import runner_class
    from qtoolkit.bench.latency import DEFAULT_LIMIT_S, measure_run
    from qtoolkit.cli.bench_report import BenchReport

    if device == "cuda":
        runtime = engine_runtime(models)
    gpu = gpu_for(device)
    runner_class(runtime)
    meter, energy_missing = _meter(options["energy"])
    where: dict[str, Any] = {"threads": threads, "backend": runtime}
    with tempfile.TemporaryDirectory(prefix="qtoolkit-") as folder:
        networks = open_networks(models, input_size_wh, Path(folder))
        paths = {name: network.path for name, network in networks.items()}
        if gpu is not None:
            paths = build_engines(paths, Path(folder), gpu, progress)
        photos, feeds = ([], None) if data is None else write_photos(data, networks, Path(folder) / "photos.npy")
        run = measure_run(
            paths,
            runs=options["runs"],
            until_pct=options["until_pct"],
            limit_s=DEFAULT_LIMIT_S if options["limit_s"] is None else options["limit_s"],
            feeds_path=feeds,
            progress=one_stage(progress, "measuring latency"),
            **where,
        )
        throughput = _throughput(paths, Path(folder), options, meter, progress, where)
        stages = _stages(paths, photos, options, progress, where)
    return BenchReport(
        run=run,
        gmacs={name: network.gmacs for name, network in networks.items()},
        inputs="noise" if data is None else f"photos of {data.name}",
        throughput=throughput,
        stages=stages,
        energy_missing=energy_missing,
    )


def _throughput(
    paths: Mapping[str, Path],
    folder: Path,
    options: Mapping[str, Any],
    meter: EnergyMeter | None,
    progress: StageProgress,
    where: Mapping[str, Any],
) -> Mapping[str, ThroughputResult]:
    batch, streams = options["batch"], options["streams"]
    if not (batch or streams or options["energy"]):
        return {}
    from qtoolkit.bench.throughput import measure_throughput

    return measure_throughput(
        at_batch(paths, batch, folder, where["threads"]) if batch else paths,
        streams=streams or 1,
        meter=meter,
        progress=one_stage(progress, "measuring throughput"),
        **where,
    )


def _stages(
    paths: Mapping[str, Path],
    photos: Sequence[Path],
    options: Mapping[str, Any],
    progress: StageProgress,
    where: Mapping[str, Any],
) -> Mapping[str, StageTimes]:
    if not options["stages"]:
        return {}
    from qtoolkit.bench.pose_stages import measure_stages

    runs, head = options["runs"], options["head"]
    return measure_stages(paths, photos, head=head, runs=runs, progress=one_stage(progress, "timing stages"), **where)


def _meter(wanted: bool) -> tuple[EnergyMeter | None, str | None]:
    """The meter, or why there is none."""
    if not wanted:
        return None, None
    from qtoolkit.bench.energy import open_energy_meter

    try:
        return open_energy_meter(), None
    except UnavailableError as error:
        return None, f"{error.what}: {error.found}; {error.do}"


def _are_results(models: Sequence[Path]) -> bool:
    return all(path.suffix.lower() == ".json" for path in models)


def _check_compare(models: Sequence[Path], compare: bool, force: bool, max_ratio: float | None) -> None:
    results = [path for path in models if path.suffix.lower() == ".json"]
    if compare and (len(models) != 2 or len(results) == 1):
        raise UsageError(
            "this cannot be compared",
            expected="two networks, or two files of results (.json)",
            found=", ".join(map(str, models)),
            do="give --compare A B",
        )
    if results and not compare:
        raise UsageError(
            "a file of results is no network",
            expected="networks (.onnx)",
            found=", ".join(map(str, results)),
            do="give --compare with two files of results",
        )
    if force and not (compare and results):
        raise UsageError(
            "--force is for files of results", expected="--compare A.json B.json", found="--force", do="leave it out"
        )
    if max_ratio is not None and len(models) < 2:
        raise UsageError(
            "a ratio needs two networks", expected="a first network and others", found="one", do="name both"
        )


def _check_options(context: click.Context, accepted: Collection[str], device: str = "") -> None:
    """Raise UsageError where an option was given that means nothing on this device, rather than ignore it."""
    names = {each.name: each.opts[0] for each in context.command.params if each.name is not None}
    given = [
        names[name]
        for name in context.params
        if name not in accepted and context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]
    if given:
        known = sorted(names[name] for name in accepted if names.get(name, "").startswith("--"))
        raise UsageError(
            f"these options cannot be used with --device {device or context.params['device']}",
            expected=f"some of {', '.join(known)}",
            found=", ".join(given),
            do="leave them out, or measure on another device",
        )
