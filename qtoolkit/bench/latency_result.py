"""The record of one measured latency, with everything it depends on, and the statistics behind it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from qtoolkit.bench.measured_record import MeasuredRecord

__all__ = [
    "LatencyResult",
    "Ratio",
    "half_width_pct",
    "mean_ratio",
    "p50_interval_ms",
    "p50_ratio",
    "percentiles_ms",
    "separate_p50_ratio",
]

_RESAMPLES = 1000


class Ratio(BaseModel):
    """p50 of a variant over p50 of the first variant of the run, with its 95 % bootstrap interval."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ratio: float
    ratio_lo: float
    ratio_hi: float


class LatencyResult(MeasuredRecord):
    """Latency of one variant on one target. All times are those of ``infer`` alone, by a monotonic clock, in ms."""

    input_size_wh: tuple[int, int] | None
    """Width and height of an image input (B, C, H, W); None for any other input."""
    inputs: str
    """Where the inputs came from: ``file`` or ``seed N``."""
    warm_up_s: float
    warm_up_count: int
    warm_up_stable: bool
    """Whether the last two groups of the warm-up agreed within 3 %."""
    count: int
    block: int
    """Inferences in a row before the next variant had its turn."""
    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    min_ms: float
    ratio: float
    ratio_lo: float
    ratio_hi: float
    p50_lo_ms: float | None = None
    """95 % bootstrap interval of p50, over blocks; None in records of older releases."""
    p50_hi_ms: float | None = None
    block_cv_pct: float | None = None
    """Standard deviation of the medians of the blocks over their mean: how far the figure moves within the run."""
    idle_cpu_pct: float
    """Highest processor time, in percent of one core, this variant's process used while another one was measured."""
    block_medians_ms: tuple[float, ...] = Field(repr=False)
    samples_ms: tuple[float, ...] = Field(repr=False)

    @property
    def images_per_second(self) -> float:
        """Throughput at this batch, one inference after the other."""
        return self.batch * 1e3 / self.mean_ms

    @property
    def half_width_pct(self) -> float:
        """The wider of p50's and the ratio's interval, as ± percent of the figure; infinite where there is none."""
        if self.p50_lo_ms is None or self.p50_hi_ms is None:
            return float("inf")
        of_p50 = half_width_pct(self.p50_ms, self.p50_lo_ms, self.p50_hi_ms)
        return max(of_p50, half_width_pct(self.ratio, self.ratio_lo, self.ratio_hi))

    def summary(self) -> dict[str, Any]:
        """The record as JSON values without the single samples, for scorecards."""
        of_older = {name for name in ("p50_lo_ms", "p50_hi_ms", "block_cv_pct") if getattr(self, name) is None}
        return self.model_dump(mode="json", exclude={"samples_ms", "block_medians_ms", *of_older})


def percentiles_ms(samples_ms: NDArray[np.float64]) -> dict[str, float]:
    """``p50_ms``, ``p90_ms``, ``p99_ms`` (linear interpolation), ``mean_ms`` and ``min_ms`` of samples of any shape."""
    p50, p90, p99 = np.percentile(samples_ms, [50, 90, 99])
    return {
        "p50_ms": float(p50),
        "p90_ms": float(p90),
        "p99_ms": float(p99),
        "mean_ms": float(samples_ms.mean()),
        "min_ms": float(samples_ms.min()),
    }


def p50_ratio(samples_ms: NDArray[np.float64], first_ms: NDArray[np.float64], *, seed: int = 0) -> Ratio:
    """median(samples) / median(first) and its 95 % interval by a paired block bootstrap.

    Both are (cycles, block) float64 milliseconds; row *i* of both was measured in the same cycle, so a cycle is drawn
    for both at once: drift that hit both does not widen the interval, and the neighbours within a block, which are
    not independent, are not treated as if they were. Source: Künsch, The jackknife and the bootstrap for general
    stationary observations, 1989 (blocks); Efron & Tibshirani, An Introduction to the Bootstrap, 1993 (percentiles).
    """
    draws = _draws(len(first_ms), np.random.default_rng(seed))
    ratios = [np.median(samples_ms[draw]) / np.median(first_ms[draw]) for draw in draws]
    low, high = np.percentile(ratios, [2.5, 97.5])
    ratio = float(np.median(samples_ms) / np.median(first_ms))
    return Ratio(ratio=ratio, ratio_lo=float(low), ratio_hi=float(high))


def p50_interval_ms(samples_ms: NDArray[np.float64], *, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the median of (cycles, block) float64 milliseconds, by a bootstrap over the cycles."""
    draws = _draws(len(samples_ms), np.random.default_rng(seed))
    low, high = np.percentile([np.median(samples_ms[draw]) for draw in draws], [2.5, 97.5])
    return float(low), float(high)


def separate_p50_ratio(samples_ms: NDArray[np.float64], first_ms: NDArray[np.float64], *, seed: int = 0) -> Ratio:
    """As ``p50_ratio`` for two measurements that were not interleaved: each one's cycles are drawn for themselves.

    The numbers of cycles may differ. What differed between the two occasions is not in the interval.
    """
    rng = np.random.default_rng(seed)
    mine, firsts = _draws(len(samples_ms), rng), _draws(len(first_ms), rng)
    ratios = [np.median(samples_ms[a]) / np.median(first_ms[b]) for a, b in zip(mine, firsts, strict=True)]
    low, high = np.percentile(ratios, [2.5, 97.5])
    ratio = float(np.median(samples_ms) / np.median(first_ms))
    return Ratio(ratio=ratio, ratio_lo=float(low), ratio_hi=float(high))


def mean_ratio(values: NDArray[np.float64], firsts: NDArray[np.float64], *, seed: int = 0) -> Ratio:
    """mean(values) / mean(firsts) and its 95 % interval; both (turns,), turn *i* of both from one cycle."""
    draws = _draws(len(firsts), np.random.default_rng(seed))
    low, high = np.percentile(values[draws].mean(axis=1) / firsts[draws].mean(axis=1), [2.5, 97.5])
    return Ratio(ratio=float(values.mean() / firsts.mean()), ratio_lo=float(low), ratio_hi=float(high))


def half_width_pct(figure: float, low: float, high: float) -> float:
    """Half of an interval in percent of the figure."""
    return 100.0 * (high - low) / 2 / figure if figure > 0 else float("inf")


def _draws(cycles: int, rng: np.random.Generator) -> NDArray[np.int64]:
    return rng.integers(cycles, size=(_RESAMPLES, cycles))
