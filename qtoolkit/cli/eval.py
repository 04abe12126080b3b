"""``qtool eval``: COCO AP of one network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qtoolkit.cli.options import (
    data_option,
    head_option,
    images_option,
    input_size_option,
    json_option,
    model_argument,
    quiet_option,
    threads_option,
)
from qtoolkit.cli.output import list_skipped, print_json, print_table, skipped_records
from qtoolkit.cli.progress import one_stage, show_progress
from qtoolkit.errors import UsageError

if TYPE_CHECKING:
    from qtoolkit.data.people import People
    from qtoolkit.evaluation.evaluate import NetworkEvaluation

__all__ = ["command"]

_SHARE = click.FloatRange(0, 1)
_EPILOG = """\
\b
Examples:
  qtool eval yolov8n-pose.onnx --data coco
  qtool eval runs/yolov8n-pose/model.int8.onnx --data coco --images 300 --json
  qtool eval engines/model.int8.tensorrt.engine --data coco
  qtool eval model.int8.onnx --data coco --device ssh://nvidia@orin.local"""


@click.command("eval", epilog=_EPILOG)
@model_argument
@data_option
@head_option
@images_option
@input_size_option
@threads_option
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    metavar="DEVICE",
    help="Where a network runs: cpu, or a board at ssh://user@host[:port][/python]. An engine runs on the GPU, cuda.",
)
@click.option(
    "--runtime", metavar="NAME", help="On a board: tensorrt or onnxruntime.  [default: tensorrt where it is there]"
)
@click.option("--score-threshold", type=_SHARE, help="People with a lower score are dropped.  [default: 0.001]")
@click.option("--iou-threshold", type=_SHARE, help="Of two boxes that overlap more, one stays.  [default: 0.7]")
@click.option(
    "--save-people",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.json",
    help="Write the people as COCO results, the 20 most confident of each photo.",
)
@quiet_option
@json_option
def command(
    model: Path,
    data: Path,
    device: str,
    runtime: str | None,
    save_people: Path | None,
    quiet: bool,
    as_json: bool,
    **options: float | str | None,
) -> None:
    """Measure COCO AP, AP50, AP75, AP-M, AP-L and AR of MODEL, a pose network, on the part val of a data set.

    MODEL: an ONNX network, or an engine that `qtool build` wrote.
    """
    from qtoolkit.cli.bench_remote import backend_of
    from qtoolkit.cli.engines import check_engine_call, engine_runtime, gpu_for
    from qtoolkit.data.sources import open_data_source
    from qtoolkit.evaluation.evaluate import evaluate_network

    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if check_engine_call([model], click.get_current_context(), refused=("runtime", "threads")):
        # Before people are rendered: what is wrong with the engine, and whether there is a GPU.
        engine_runtime([model])
        gpu_for("cuda")
    else:
        given |= backend_of(device, runtime)
    if save_people is not None:
        _check_folder(save_people)
    with show_progress(quiet) as progress:
        source = open_data_source(data, parts=("val",), progress=one_stage(progress, "rendering people"))
        result = evaluate_network(model, source, progress=one_stage(progress, "evaluating"), **given)
    list_skipped(result.skipped)
    if save_people is not None:
        _write_people(save_people, result.people)
    if as_json:
        print_json({**result.record.model_dump(mode="json"), "skipped_photos": skipped_records(result.skipped)})
    else:
        _print_record(result.record)


def _check_folder(file: Path) -> None:
    from qtoolkit.artifacts.files import prepare_out_dir

    try:
        prepare_out_dir(file.parent)
    except UsageError as error:
        do = "give another file with --save-people"
        raise UsageError(error.what, expected=error.expected, found=error.found, do=do) from error


def _write_people(file: Path, people: Mapping[int, People]) -> None:
    from qtoolkit.artifacts.files import write_text
    from qtoolkit.evaluation.evaluate import coco_results

    write_text(file, json.dumps(coco_results(people)) + "\n")


def _print_record(record: NetworkEvaluation) -> None:
    from qtoolkit.reporting.tables import metrics_table

    runtime = record.runtime
    place = f"{runtime['device']} · " if runtime.get("device") else ""
    width, height = record.input_size_wh
    footer = [
        f"{place}{runtime['runtime']} {runtime['version']} · threads {runtime['threads']} · input {width}×{height} · "
        f"head {record.head} · score threshold {record.score_threshold:g} · IoU threshold {record.iou_threshold:g}",
        f"{record.data} · network {record.model_sha256[:12]} · data {record.data_sha256[:12]}",
    ]
    counts = {"images": record.images, "skipped": record.skipped}
    print_table(metrics_table({**record.metrics, **counts}, title=f"{record.model} on {record.data}", footer=footer))
