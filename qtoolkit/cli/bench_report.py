"""What ``qtool bench`` found, as tables or as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from qtoolkit.cli.output import print_json, print_table

if TYPE_CHECKING:
    from qtoolkit.bench.comparison import Comparison
    from qtoolkit.bench.latency import LatencyRun
    from qtoolkit.bench.latency_result import LatencyResult
    from qtoolkit.bench.pose_stages import StageTimes
    from qtoolkit.bench.throughput import ThroughputResult

__all__ = ["BenchReport", "print_bench", "print_comparison", "print_latencies"]


@dataclass(frozen=True)
class BenchReport:
    """All that was measured in one call; ``gmacs`` by network (None: not known), ``inputs`` in words."""

    run: LatencyRun
    gmacs: Mapping[str, float | None]
    inputs: str
    throughput: Mapping[str, ThroughputResult] = field(default_factory=dict)
    stages: Mapping[str, StageTimes] = field(default_factory=dict)
    comparisons: tuple[Comparison, ...] = ()
    energy_missing: str | None = None


def print_bench(report: BenchReport, as_json: bool) -> None:
    """Tables or JSON on stdout; on stderr what speaks against the figures."""
    if as_json:
        _print_json(report)
    else:
        _print_tables(report)


def print_comparison(comparisons: tuple[Comparison, ...], as_json: bool) -> None:
    """A comparison of two files of results, and the warning that goes with it."""
    from qtoolkit.reporting.bench_tables import comparison_lines

    click.echo("the two were not measured in turns: what differed between the occasions is in the ratio", err=True)
    if as_json:
        print_json({"comparisons": [each.model_dump(mode="json") for each in comparisons]})
    else:
        click.echo("\n".join(comparison_lines(comparisons)))


def _print_json(report: BenchReport) -> None:
    from qtoolkit.bench.environment import capture_environment
    from qtoolkit.bench.noise import noise_causes

    run = report.run
    rows: list[dict[str, Any]] = [
        {
            "network": name,
            "gmacs": report.gmacs[name],
            "inputs": report.inputs,
            "latency": json.loads(result.model_dump_json()),
        }
        for name, result in run.results.items()
    ]
    until = {"asked_pct": run.until_pct, "reached": run.reached, "half_width_pct": run.half_width_pct}
    document: dict[str, Any] = {
        "results": rows,
        "noise": {**run.noise.model_dump(mode="json"), "quiet": run.noise.quiet},
        "until": None if run.until_pct is None else {**until, "causes": _causes(run, noise_causes)},
    }
    parts = {"throughput": report.throughput.values(), "stages": report.stages.values()}
    document |= {name: [each.model_dump(mode="json") for each in part] for name, part in parts.items() if part}
    if report.comparisons:
        document["comparisons"] = [each.model_dump(mode="json") for each in report.comparisons]
    if report.energy_missing is not None:
        document["energy_missing"] = report.energy_missing
    print_json({**document, "environment": capture_environment().model_dump(mode="json")})


def _causes(run: LatencyRun, find: Any) -> list[str]:
    return [] if run.reached else list(find(run.noise, run.results.values()))


def _print_tables(report: BenchReport) -> None:
    from qtoolkit.reporting.bench_tables import (
        comparison_lines,
        noise_lines,
        stages_table,
        throughput_table,
        until_line,
    )

    results = report.run.results
    print_latencies(results, report.gmacs, report.inputs)
    click.echo("\n".join(noise_lines(report.run)))
    line = until_line(report.run)
    if line is not None:
        click.echo(line, err=not report.run.reached)
    if report.throughput:
        print_table(throughput_table(report.throughput, energy_missing=report.energy_missing))
    if report.stages:
        print_table(stages_table(report.stages))
    for text in comparison_lines(report.comparisons):
        click.echo(text)


def print_latencies(results: Mapping[str, LatencyResult], gmacs: Mapping[str, float | None], inputs: str) -> None:
    """The table of latencies and how they were measured; on stderr what did not settle."""
    from qtoolkit.quantization.assess import latency_figures
    from qtoolkit.reporting.tables import bench_table

    print_table(bench_table([(name, latency_figures(each)) for name, each in results.items()], dict(gmacs)))
    first = next(iter(results.values()))
    shapes = {shape for result in results.values() for shape in result.input_shapes.values()}
    sizes = ", ".join("×".join(map(str, shape)) for shape in sorted(shapes))
    click.echo(f"{first.count} inferences each, in turns of {first.block} · inputs: {inputs}, {sizes}")
    unstable = [name for name, result in results.items() if not result.warm_up_stable]
    if unstable:
        click.echo(f"times did not settle in the warm-up of: {', '.join(unstable)}; the machine is busy", err=True)
