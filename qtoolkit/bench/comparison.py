"""Is B faster than A? A ratio with its interval, and a verdict, from one run or from two files of results."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from qtoolkit.bench.latency_result import LatencyResult, Ratio, separate_p50_ratio
from qtoolkit.errors import GateFailed, InputFileError, UsageError

__all__ = [
    "Comparison",
    "SavedBench",
    "check_max_ratio",
    "compare_files",
    "compare_in_one_run",
    "differing_conditions",
    "read_bench",
    "verdict",
]

Verdict = Literal["faster", "slower", "not shown"]

# What two records must agree in for their ratio to be one of networks and not of circumstances.
_CONDITIONS = ("target", "device", "runtime", "version", "provider", "threads", "batch", "options")
_MACHINE = ("cpu", "architecture", "cores_logical", "governor")


class Comparison(BaseModel):
    """p50 of ``network`` over p50 of ``against``, with its 95 % interval.

    ``verdict`` is about ``network``: faster or slower where the interval leaves 1 out, else not shown. ``interleaved``
    says whether both were measured in turns in one run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: str
    against: str
    ratio: float
    ratio_lo: float
    ratio_hi: float
    verdict: Verdict
    interleaved: bool
    differing: dict[str, tuple[Any, Any]] = {}
    """Conditions that differ: name → (of ``against``, of ``network``); such a comparison was forced."""


class SavedBench(BaseModel):
    """A file that ``qtool bench --json`` gave, as far as a comparison needs it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    results: tuple[_SavedRow, ...]
    environment: dict[str, Any] = {}

    def row(self, network: str) -> _SavedRow | None:
        """The row of that network."""
        return next((row for row in self.results if row.network == network), None)


class _SavedRow(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    network: str
    inputs: str = ""
    latency: LatencyResult


SavedBench.model_rebuild()


def verdict(ratio: Ratio) -> Verdict:
    """What the 95 % interval of a ratio shows."""
    if ratio.ratio_hi < 1:
        return "faster"
    return "slower" if ratio.ratio_lo > 1 else "not shown"


def compare_in_one_run(results: Mapping[str, LatencyResult]) -> tuple[Comparison, ...]:
    """Each network of a run against its first."""
    first, *others = results.values()
    return tuple(
        _comparison(each, first, Ratio(ratio=each.ratio, ratio_lo=each.ratio_lo, ratio_hi=each.ratio_hi), True, {})
        for each in others
    )


def read_bench(path: str | os.PathLike[str]) -> SavedBench:
    """Read what ``qtool bench --json`` printed. Raises InputFileError for anything else."""
    try:
        saved = SavedBench.model_validate(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise InputFileError(
            f"the results in {path} cannot be read",
            expected="the output of qtool bench --json",
            found=" ".join(reason.split())[:200],
            do="write one with: qtool bench MODEL --json > results.json",
        ) from error
    if not saved.results:
        raise InputFileError(f"there are no results in {path}", expected="one network at least", found="none")
    return saved


def compare_files(first: SavedBench, second: SavedBench, *, force: bool = False) -> tuple[Comparison, ...]:
    """Networks of the same name of two files, or the only network of each, whatever it is called.

    They were not measured in turns: what differed between the two occasions (clock, neighbours, temperature) is in the
    ratio and not in its interval. Raises UsageError where no network is in both, and where their conditions differ,
    unless ``force``.
    """
    pairs = [(first.row(row.network), row) for row in second.results]
    matched = [(old, new) for old, new in pairs if old is not None]
    if not matched and len(first.results) == len(second.results) == 1:
        matched = [(first.results[0], second.results[0])]
    if not matched:
        raise UsageError(
            "the two files have no network in common",
            expected=", ".join(row.network for row in first.results),
            found=", ".join(row.network for row in second.results),
            do="compare files of the same networks, or of one network each",
        )
    return tuple(_across(old, new, first, second, force) for old, new in matched)


def _across(old: _SavedRow, new: _SavedRow, first: SavedBench, second: SavedBench, force: bool) -> Comparison:
    differing = differing_conditions(old.latency, new.latency, first.environment, second.environment)
    if old.inputs != new.inputs:
        differing["inputs"] = (old.inputs, new.inputs)
    if differing and not force:
        raise UsageError(
            f"{old.network} and {new.network} were not measured under the same conditions",
            expected="; ".join(f"{name} {before}" for name, (before, _) in differing.items()),
            found="; ".join(f"{name} {now}" for name, (_, now) in differing.items()),
            do="measure both again in one run, or give --force to compare them all the same",
        )
    ratio = separate_p50_ratio(_cycles_ms(new.latency), _cycles_ms(old.latency))
    return _comparison(new.latency, old.latency, ratio, False, differing)


def differing_conditions(
    first: LatencyResult,
    second: LatencyResult,
    first_machine: Mapping[str, Any] | None = None,
    second_machine: Mapping[str, Any] | None = None,
) -> dict[str, tuple[Any, Any]]:
    """Conditions that two measurements do not share: name → (of the first, of the second)."""
    pairs = {name: (getattr(first, name), getattr(second, name)) for name in _CONDITIONS}
    pairs["input shapes"] = (list(first.input_shapes.values()), list(second.input_shapes.values()))
    if first_machine and second_machine:
        pairs |= {name: (first_machine.get(name), second_machine.get(name)) for name in _MACHINE}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def check_max_ratio(comparisons: tuple[Comparison, ...], max_ratio: float) -> None:
    """The gate of CI. Raises GateFailed where a ratio is above ``max_ratio``, saying whether its interval is too."""
    failed = [each for each in comparisons if each.ratio > max_ratio]
    if failed:
        lines = [
            f"{each.network} takes {each.ratio:.3f} × {each.against} ({each.ratio_lo:.3f}–{each.ratio_hi:.3f}"
            f"{'' if each.ratio_lo > max_ratio else ', which does not show it: measure longer with --until'})"
            for each in failed
        ]
        raise GateFailed(
            f"{len(failed)} of {len(comparisons)} networks are slower than allowed",
            expected=f"at most {max_ratio:g} ×",
            found="; ".join(lines),
            do="mend the cause, or allow more with --max-ratio",
        )


def _cycles_ms(result: LatencyResult) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array(result.samples_ms, np.float64).reshape(-1, result.block)


def _comparison(
    network: LatencyResult,
    against: LatencyResult,
    ratio: Ratio,
    interleaved: bool,
    differing: dict[str, tuple[Any, Any]],
) -> Comparison:
    return Comparison(
        network=network.variant,
        against=against.variant,
        **ratio.model_dump(),
        verdict=verdict(ratio),
        interleaved=interleaved,
        differing=differing,
    )
