"""Measuring until the intervals are narrow, or saying that they are not and why."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qtoolkit.bench.latency import LatencyRun, measure_run
from qtoolkit.bench.noise import noise_causes
from qtoolkit.errors import UsageError

Lasting = Callable[..., dict[str, Path]]


def measure(variants: dict[str, Path], kind: str, **options: Any) -> LatencyRun:
    settings: dict[str, Any] = {"runs": 20, "block": 2, "warmup_s": 0.0, "timeout_s": 30.0, **options}
    return measure_run(variants, backend=f"stand_ins:{kind}", **settings)


def test_steady_times_are_enough_at_once(lasting: Lasting) -> None:
    run = measure(lasting(a=0.004, b=0.002), "Timed", until_pct=5.0, limit_s=20.0)
    assert run.reached is True and run.half_width_pct <= 5.0
    assert run.noise.seconds < 15


def test_restless_times_are_measured_on_until_the_limit(lasting: Lasting) -> None:
    began = time.perf_counter()
    run = measure(lasting(a=0.001), "Restless", until_pct=0.01, limit_s=1.5)
    assert run.reached is False and run.half_width_pct > 0.01
    assert run.results["a"].count > 20
    assert 1.5 <= time.perf_counter() - began < 10
    assert noise_causes(run.noise, run.results.values())


def test_more_inferences_make_the_interval_narrower(lasting: Lasting) -> None:
    few = measure(lasting(a=0.001), "Restless")
    many = measure(lasting(a=0.001), "Restless", until_pct=few.half_width_pct / 2, limit_s=20.0)
    assert few.reached is None
    assert many.reached is True
    assert many.results["a"].count > few.results["a"].count


def test_a_fixed_number_asks_for_nothing(lasting: Lasting) -> None:
    run = measure(lasting(a=0.0), "Timed")
    result = run.results["a"]
    assert run.until_pct is None and run.reached is None
    assert result.count == 20
    assert result.p50_lo_ms is not None and result.p50_hi_ms is not None
    assert result.p50_lo_ms <= result.p50_ms <= result.p50_hi_ms
    assert result.block_cv_pct is not None and result.block_cv_pct >= 0


@pytest.mark.parametrize(
    "changed", [{"until_pct": 0.0}, {"until_pct": 100.0}, {"until_pct": 1.0, "limit_s": -1.0}], ids=str
)
def test_what_cannot_be_asked(changed: dict[str, Any], lasting: Lasting) -> None:
    with pytest.raises(UsageError, match="until its intervals are so narrow"):
        measure(lasting(a=0.0), "Timed", **changed)
