"""``qtool bench --device jetson…`` without the board: modelled latencies, marked as such."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from qtoolkit.cli.output import print_json, print_table

if TYPE_CHECKING:
    from qtoolkit.bench.modelled import RunPrecision
    from qtoolkit.bench.roofline import ModelledLatency

__all__ = ["bench_modelled", "list_devices_option", "precision_option"]

_PRECISIONS = ["as-written", "fp16", "int8"]


def _list_devices(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if not wanted or context.resilient_parsing:
        return
    from rich.table import Table

    from qtoolkit.bench.jetson_devices import jetson_devices

    table = Table("device", "GPU", "SMs", "MHz", "GB/s", "int8", "the values were", box=None, pad_edge=False)
    for each in jetson_devices():
        int8 = "yes" if any(precision.value == "int8" for precision in each.precisions) else "no"
        row = (each.label, each.generation, str(each.sms), f"{each.gpu_mhz:g}", f"{each.bandwidth_gbs:g}", int8)
        table.add_row(*row, each.checked)
    print_table(table)
    click.echo("\ncpu: this machine. jetson: jetson-orin-nano-8gb-super. Without @MODE the first mode listed.")
    click.echo(
        "Latencies on a Jetson are modelled, not measured; docs/JETSON_MODEL.md says how, and how wrong they are."
    )
    context.exit()


list_devices_option = click.option(
    "--list-devices", is_flag=True, is_eager=True, expose_value=False, callback=_list_devices,
    help="List the devices and their power modes, and do nothing else.",
)  # fmt: skip

precision_option = click.option(
    "--precision", "precisions", multiple=True, type=click.Choice(_PRECISIONS), default=("as-written",),
    show_default=True,
    help="On a modelled device: the precisions in the file, fp32 run in fp16, or everything in int8; may be repeated.",
)  # fmt: skip


def bench_modelled(
    models: Mapping[str, Path],
    device: str,
    precisions: tuple[str, ...],
    input_size_wh: tuple[int, int] | None,
    as_json: bool,
) -> None:
    """Model the latency of networks (name → file) on a Jetson and print it. Nothing is run."""
    from qtoolkit.bench.jetson_devices import find_jetson
    from qtoolkit.bench.modelled import model_networks
    from qtoolkit.graph.load import load_network

    found = find_jetson(device)
    networks = {
        name: load_network(path, input_size_wh=input_size_wh, allow_quantized=True) for name, path in models.items()
    }
    latencies = model_networks(networks, found, cast("tuple[RunPrecision, ...]", precisions))
    (_print_json if as_json else _print_table)(latencies)


def _print_json(latencies: Mapping[str, ModelledLatency]) -> None:
    from qtoolkit.bench.modelled import modelled_figures
    from qtoolkit.bench.roofline import fitted_model

    first = next(iter(latencies.values()))
    rows: list[dict[str, Any]] = [
        {
            "network": name,
            "gmacs": each.gmacs,
            "latency": modelled_figures(each, first).model_dump(mode="json"),
            "remarks": list(each.remarks),
        }
        for name, each in latencies.items()
    ]
    print_json({"results": rows, "model": fitted_model().model_dump(mode="json")})


def _print_table(latencies: Mapping[str, ModelledLatency]) -> None:
    from qtoolkit.bench.modelled import model_conditions, modelled_figures
    from qtoolkit.reporting.tables import bench_table

    first = next(iter(latencies.values()))
    figures = [(name, modelled_figures(each, first)) for name, each in latencies.items()]
    print_table(bench_table(figures, {name: each.gmacs for name, each in latencies.items()}))
    click.echo(f"modelled, not measured: {model_conditions()}")
    for remark in dict.fromkeys(remark for each in latencies.values() for remark in each.remarks):
        click.echo(remark)
