"""What ``qtool bench`` shows beside the latencies: throughput, stages, comparisons, and how quiet the machine was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from rich.table import Table

from qtoolkit.bench.comparison import Comparison
from qtoolkit.bench.latency import LatencyRun
from qtoolkit.bench.noise import noise_causes
from qtoolkit.bench.pose_stages import StageTimes
from qtoolkit.bench.throughput import ThroughputResult
from qtoolkit.reporting import cells
from qtoolkit.reporting.fitting_table import FittingTable, TableColumn

__all__ = ["comparison_lines", "noise_lines", "stages_table", "throughput_table", "until_line"]

RowT = TypeVar("RowT")


def throughput_table(results: Mapping[str, ThroughputResult], *, energy_missing: str | None = None) -> Table:
    """Images per second and, where a meter was read, millijoules of an image; ``energy_missing`` says why none was."""
    rows = list(results.values())
    first = rows[0]
    columns = {
        "images/s": lambda row: f"{row.images_per_second:.1f}",
        "× first": lambda row: _ratio(row.ratio, row.ratio_lo, row.ratio_hi),
        "± % of a turn": lambda row: cells.fixed(row.turn_cv_pct, 1),
        "mJ/image": lambda row: cells.fixed(row.millijoules_per_image, 1),
    }
    footer = [
        f"batch {first.batch} · {_count(first.streams, 'stream')} of {_count(first.threads or 0, 'thread')} each"
        f" · {first.seconds:.1f} s · {cells.plain(first.runtime)} {cells.plain(first.version)}"
    ]
    if first.energy_source is not None:
        footer.append(f"energy of {cells.plain(first.energy_source)}, what it uses at rest included")
    if energy_missing is not None:
        footer.append(f"no energy: {cells.plain(energy_missing)}")
    return _table(rows, columns, [row.variant for row in rows], "Throughput", footer)


def stages_table(results: Mapping[str, StageTimes]) -> Table:
    """p50 of pre-processing, inference, post-processing and of all three, per photo."""
    rows = list(results.values())
    first = rows[0]
    columns = {
        "letterbox, normalise ms": lambda row: cells.milliseconds(row.preprocess_p50_ms),
        "inference ms": lambda row: cells.milliseconds(row.inference_p50_ms),
        "decode, NMS ms": lambda row: cells.milliseconds(row.postprocess_p50_ms),
        "all ms": lambda row: cells.milliseconds(row.end_to_end_p50_ms),
        "all p99 ms": lambda row: cells.milliseconds(row.end_to_end_p99_ms),
    }
    footer = [
        f"p50 of {first.count} · {first.images} · score threshold {first.score_threshold:g} · IoU threshold "
        f"{first.iou_threshold:g} · from decoded pixels to people"
    ]
    return _table(rows, columns, [row.variant for row in rows], "Stages of an image", footer)


def comparison_lines(comparisons: Iterable[Comparison]) -> list[str]:
    """One line a comparison, and what weakens it."""
    lines = []
    for each in comparisons:
        how = "not shown to be faster or slower than" if each.verdict == "not shown" else f"{each.verdict} than"
        lines.append(
            f"{cells.plain(each.network)} is {how} {cells.plain(each.against)}: "
            f"{each.ratio:.3f} × (95 % interval {each.ratio_lo:.3f}–{each.ratio_hi:.3f})"
        )
        for name, (before, now) in each.differing.items():
            lines.append(f"  {name} differs: {cells.flat(before)} and {cells.flat(now)}")
    return lines


def until_line(run: LatencyRun) -> str | None:
    """Whether the intervals became as narrow as was asked; None where nothing was asked."""
    if run.until_pct is None:
        return None
    count = next(iter(run.results.values())).count
    found = f"±{run.half_width_pct:.2g} % after {count} inferences and {run.noise.seconds:.0f} s"
    if run.reached:
        return f"every interval is within ±{run.until_pct:g} %: {found}"
    return f"NOT within ±{run.until_pct:g} %: {found}; {'; '.join(noise_causes(run.noise, run.results.values()))}"


def noise_lines(run: LatencyRun) -> list[str]:
    """How far p50 moved from block to block and, where the machine was not quiet, what else it did."""
    moved = ", ".join(f"{each.block_cv_pct:.1f}" for each in run.results.values() if each.block_cv_pct is not None)
    lines = [f"p50 is known to ±{_rounded(run.half_width_pct)} % · medians of turns vary by {moved} %"]
    if run.noise.quiet:
        return [f"{lines[0]} · the machine was quiet"]
    return [*lines, *(f"noise: {cause}" for cause in noise_causes(run.noise))]


def _table(
    rows: Sequence[RowT],
    columns: Mapping[str, Callable[[RowT], str]],
    names: Sequence[str],
    title: str,
    footer: Sequence[str],
) -> Table:
    plain = ("",) * len(rows)
    first = tuple(cells.plain(name) for name in names)
    made = [TableColumn("network", "", first, first, plain, left=True)]
    for heading, cell in columns.items():
        texts = tuple(cell(row) for row in rows)
        made.append(TableColumn(heading, "", texts, texts, plain))
    return FittingTable(made, title=title, footer=footer)


def _ratio(ratio: float, low: float, high: float) -> str:
    return f"{ratio:.2f}" if low == high else f"{ratio:.2f} ({low:.2f}–{high:.2f})"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _rounded(percent: float) -> str:
    """Two digits below ten, none behind the point above."""
    return f"{percent:.0f}" if percent >= 9.95 else f"{percent:.1f}"
