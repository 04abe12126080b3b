"""``--device ssh://…``: the part of ``qtool bench`` and ``qtool eval`` that works on a board."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from qtoolkit.cli.output import print_json
from qtoolkit.cli.progress import show_progress
from qtoolkit.errors import UsageError

if TYPE_CHECKING:
    from qtoolkit.backends.board_address import BoardAddress
    from qtoolkit.bench.board_latency import BoardLatency

__all__ = ["backend_of", "bench_on_board", "board_of"]

_SAME_RUNTIME = {"ort-cpu": "onnxruntime"}
_WORKERS_PER_BATCH = 2


def board_of(device: str) -> BoardAddress | None:
    """The board ``device`` names: over ssh, or this machine where it is a Jetson and ``jetson`` is asked for.

    None for any other device. Raises UsageError for an address that cannot be used.
    """
    from qtoolkit.backends.board_address import BoardAddress, is_board_address, local_board, parse_board

    if is_board_address(device):
        return parse_board(device)
    return BoardAddress(None) if device == "jetson" and local_board() else None


def backend_of(device: str, runtime: str | None) -> dict[str, Any]:
    """What ``evaluate_network`` takes to run on ``device``. Raises UsageError for a device it cannot run on."""
    address = board_of(device)
    if address is not None:
        from qtoolkit.backends.board_runner import BATCH, BoardRunner
        from qtoolkit.graph.layer_precisions import float32_nodes

        named = _SAME_RUNTIME.get(runtime or "", runtime)
        return {
            "backend": partial(BoardRunner, device=address, runtime=named, float32_nodes=float32_nodes),
            "workers": _WORKERS_PER_BATCH * BATCH,
        }
    if device != "cpu" or runtime is not None:
        raise UsageError(
            "the network cannot be evaluated so",
            expected="--device cpu without --runtime, or --device ssh://user@host",
            found=f"--device {device}" + (f" --runtime {runtime}" if runtime else ""),
            do="build an engine and evaluate that: qtool build MODEL.onnx --target tensorrt"
            if device == "cuda"
            else "leave --runtime out, or name a board",
        )
    return {}


def bench_on_board(address: BoardAddress, options: Mapping[str, Any]) -> None:
    """Measure on a board and print, as ``qtool bench`` does for this machine; ``options`` are that command's."""
    from qtoolkit.bench.board_latency import measure_on_board
    from qtoolkit.cli.bench_networks import open_networks, write_photos

    models: tuple[Path, ...] = options["models"]
    data: Path | None = options["data"]
    with tempfile.TemporaryDirectory(prefix="qtoolkit-") as folder, show_progress(options["quiet"]) as progress:
        networks = open_networks(models, options["input_size_wh"], Path(folder))
        measured = measure_on_board(
            {name: network.path for name, network in networks.items()},
            address,
            runtime=_asked_runtime(),
            threads=options["threads"],
            runs=options["runs"],
            feeds_path=None if data is None else write_photos(data, networks, Path(folder) / "photos.npy")[1],
            progress=progress,
        )
    gmacs = {name: network.gmacs for name, network in networks.items()}
    inputs = "noise" if data is None else f"photos of {data.name}"
    (_print_json if options["as_json"] else _print_table)(measured, gmacs, inputs)


def _asked_runtime() -> str | None:
    """``--runtime``, or None where the user did not give it: its default is one of this machine."""
    context = click.get_current_context()
    if context.get_parameter_source("runtime") is ParameterSource.DEFAULT:
        return None
    runtime = str(context.params["runtime"])
    return _SAME_RUNTIME.get(runtime, runtime)


def _print_json(measured: BoardLatency, gmacs: Mapping[str, float | None], inputs: str) -> None:
    rows: list[dict[str, Any]] = [
        {"network": name, "gmacs": gmacs[name], "inputs": inputs, "latency": json.loads(result.model_dump_json())}
        for name, result in measured.results.items()
    ]
    print_json(
        {"results": rows, "board": dict(measured.board), "reconnects": measured.reconnects, "resumed": measured.resumed}
    )


def _print_table(measured: BoardLatency, gmacs: Mapping[str, float | None], inputs: str) -> None:
    from qtoolkit.cli.bench_report import print_latencies

    print_latencies(measured.results, gmacs, inputs)
    board = measured.board
    after = board.get("after") or {}
    told = {
        "JetPack": board.get("jetpack") or board.get("l4t"),
        "power mode": board.get("power_mode"),
        "jetson_clocks": None if board.get("jetson_clocks") is None else "on" if board["jetson_clocks"] else "off",
        "clocks in MHz": _listed(board.get("clocks_mhz")),
        "°C after": _listed(after.get("temperatures_c")),
        "W": _listed(board.get("power_mean_w")),
    }
    known = [f"{name}: {value}" for name, value in told.items() if value]
    click.echo("the board: " + (" · ".join(known) or "tells nothing of its power mode, clocks, temperature or power"))
    if measured.resumed:
        click.echo("an earlier call of the same command began this measurement; it was taken over")
    if measured.reconnects:
        click.echo(f"the connection was lost and made again {measured.reconnects} times; the measurement went on there")


def _listed(values: Mapping[str, float] | None) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in (values or {}).items())
