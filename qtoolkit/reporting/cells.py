"""How one figure is written: its decimals, its unit, and the mark that tells a modelled latency from a measured one.

None is ``–``: not measured, or not to be had. A modelled figure carries ``~`` in every cell, and its p50 the error band
and the word ``modelled`` too. Text from files (names of networks, layers, notes) passes through :func:`plain` first.
"""

from __future__ import annotations

from typing import Any

from qtoolkit.artifacts.scorecard import LatencyFigures, ScorecardRow

__all__ = [
    "MISSING",
    "bits",
    "fixed",
    "flat",
    "layers_16bit",
    "milliseconds",
    "p50",
    "p90",
    "p99",
    "percent",
    "plain",
    "precisions",
    "ratio",
    "share",
    "short_hash",
    "throughput",
]

MISSING = "–"
_HASH_DIGITS = 12


def plain(text: str) -> str:
    """``text`` on one line, with a replacement character for what could steer a terminal (such as an escape code)."""
    return "".join(letter if letter.isprintable() else "�" for letter in " ".join(text.split()))


def fixed(value: float | None, decimals: int = 2) -> str:
    """``value`` with a fixed number of decimals; ``–`` for None. What is not a number stays visible as ``nan``."""
    return MISSING if value is None else f"{value:.{decimals}f}"


def share(value: float | None) -> str:
    """A share from 0 to 1 as whole percent; what is neither nothing nor all is never written as 0 % or 100 %."""
    if value is None:
        return MISSING
    if 0 < value < 0.005:
        return "<1 %"
    if 0.995 <= value < 1:
        return ">99 %"
    return f"{100 * value:.0f} %"


def percent(value: float | None, decimals: int = 1) -> str:
    """A ratio as percent without its sign, for columns that have it in their title."""
    return MISSING if value is None else f"{100 * value:.{decimals}f}"


def milliseconds(value: float) -> str:
    """A time in ms, without its unit: one decimal from 10 ms on, two below, three below 1 ms."""
    return f"{value:.{1 if value >= 10 else 2 if value >= 1 else 3}f}"


def short_hash(digest: str) -> str:
    """The first twelve digits of a hash; ``–`` for none."""
    return plain(digest)[:_HASH_DIGITS] or MISSING


def bits(row: ScorecardRow) -> str:
    """Bits of weights and activations, the lowest in use: ``8/8``."""
    return f"{row.weights_bits}/{row.activation_bits}"


def layers_16bit(row: ScorecardRow, of_macs: str = " of MACs") -> str:
    """Layers at 16 bit: ``22/72 (31 % of MACs)``; the bracket is left out where there are none."""
    count = f"{row.layers_16bit}/{row.layers_total}"
    return f"{count} ({share(row.macs_16bit_share)}{of_macs})" if row.layers_16bit else count


def precisions(row: ScorecardRow) -> str:
    """Number of layers at each precision, most first: ``int8 50, int16 22``."""
    by_count = sorted(row.precisions.items(), key=lambda each: (-each[1], each[0]))
    return ", ".join(f"{plain(name)} {count}" for name, count in by_count if count) or MISSING


def p50(latency: LatencyFigures | None) -> str:
    """Median in ms: ``45.2`` if measured, else ``~12.3 ±6 % modelled``; ``±?`` where the model has no error band."""
    if latency is None:
        return MISSING
    if latency.measured:
        return milliseconds(latency.p50_ms)
    band = "±?" if latency.error_band_pct is None else f"±{latency.error_band_pct:g} %"
    return f"~{milliseconds(latency.p50_ms)} {band} modelled"


def p90(latency: LatencyFigures | None) -> str:
    """90th percentile in ms; ``~`` before a modelled one, ``–`` where the model tells none."""
    return MISSING if latency is None or latency.p90_ms is None else _mark(latency) + milliseconds(latency.p90_ms)


def p99(latency: LatencyFigures | None) -> str:
    """99th percentile in ms; ``~`` before a modelled one, ``–`` where the model tells none."""
    return MISSING if latency is None or latency.p99_ms is None else _mark(latency) + milliseconds(latency.p99_ms)


def throughput(latency: LatencyFigures | None) -> str:
    """Images per second at the stated batch; ``~`` before a modelled one."""
    return MISSING if latency is None else f"{_mark(latency)}{latency.images_per_second:.1f}"


def ratio(latency: LatencyFigures | None, interval: bool = True) -> str:
    """p50 over the float network's with its interval: ``0.65 (0.63–0.67)``; ``~`` before a modelled one."""
    if latency is None or latency.ratio is None:
        return MISSING
    low, high = latency.ratio_lo, latency.ratio_hi
    value = f"{_mark(latency)}{latency.ratio:.2f}"
    # The float network against itself has an interval without width: not worth the room.
    if not interval or low is None or high is None or low == high:
        return value
    return f"{value} ({low:.2f}–{high:.2f})"


def flat(value: Any) -> str:
    """A value of free JSON (an option, a fact about the machine) on one line."""
    if value is None or value in ("", [], (), {}):
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{plain(str(name))} {flat(each)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return " ".join(flat(each) for each in value)
    return plain(str(value))


def _mark(latency: LatencyFigures) -> str:
    return "" if latency.measured else "~"
