"""Statistics of latencies."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from qtoolkit.bench.latency_result import LatencyResult, p50_ratio, percentiles_ms

RESULT = LatencyResult(
    variant="int8",
    target="ort-cpu",
    device="a processor",
    runtime="onnxruntime",
    version="1.0",
    provider="CPUExecutionProvider",
    threads=2,
    batch=4,
    input_size_wh=(640, 480),
    input_shapes={"images": (4, 3, 480, 640)},
    inputs="seed 0",
    options={},
    model_sha256="0" * 64,
    warm_up_s=1.0,
    warm_up_count=10,
    warm_up_stable=True,
    count=2,
    block=1,
    p50_ms=20.0,
    p90_ms=28.0,
    p99_ms=29.8,
    mean_ms=20.0,
    min_ms=10.0,
    ratio=0.6,
    ratio_lo=0.5,
    ratio_hi=0.7,
    idle_cpu_pct=0.0,
    block_medians_ms=(10.0, 30.0),
    samples_ms=(10.0, 30.0),
)


def test_percentiles_of_one_to_a_hundred_and_one() -> None:
    found = percentiles_ms(np.arange(1.0, 102.0).reshape(1, 101)[:, ::-1])
    assert found == {"p50_ms": 51.0, "p90_ms": 91.0, "p99_ms": 100.0, "mean_ms": 51.0, "min_ms": 1.0}


def test_the_first_variant_against_itself_is_exactly_one() -> None:
    samples_ms = np.random.default_rng(0).random((10, 10)) + 1
    assert p50_ratio(samples_ms, samples_ms).model_dump() == {"ratio": 1.0, "ratio_lo": 1.0, "ratio_hi": 1.0}


def test_drift_that_hits_both_variants_does_not_widen_the_interval() -> None:
    """The clock rate falls by half during the run; each cycle's ratio stays 0.7."""
    drift = np.linspace(1, 2, 20)[:, None]
    rng = np.random.default_rng(1)
    first = drift * (10 + 0.01 * rng.standard_normal((20, 10)))
    second = drift * (7 + 0.01 * rng.standard_normal((20, 10)))
    found = p50_ratio(second, first)
    assert found.ratio == pytest.approx(0.7, abs=0.01)
    assert found.ratio_hi - found.ratio_lo < 0.02
    unpaired = np.percentile(first, 75) / np.percentile(first, 25)
    assert unpaired > 1.3


def test_the_interval_covers_the_true_ratio_about_19_times_in_20() -> None:
    covered = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        first = rng.lognormal(0, 0.1, (20, 5))
        second = 0.8 * rng.lognormal(0, 0.1, (20, 5))
        found = p50_ratio(second, first, seed=seed)
        covered += found.ratio_lo <= 0.8 <= found.ratio_hi
    assert 34 <= covered <= 40


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 8), st.integers(1, 5), st.floats(0.1, 10), st.integers(0, 1000))
def test_the_ratio_scales_with_the_variant_and_lies_in_its_interval_when_blocks_agree(
    cycles: int, block: int, factor: float, seed: int
) -> None:
    first = np.tile(np.random.default_rng(seed).random(block) + 1, (cycles, 1))
    found = p50_ratio(first * factor, first)
    assert found.ratio == pytest.approx(factor)
    assert found.ratio_lo == pytest.approx(factor) and found.ratio_hi == pytest.approx(factor)


def test_the_same_samples_give_the_same_interval() -> None:
    rng = np.random.default_rng(2)
    first, second = rng.random((10, 4)) + 1, rng.random((10, 4)) + 1
    assert p50_ratio(second, first) == p50_ratio(second, first)


def test_throughput_is_at_the_stated_batch() -> None:
    assert RESULT.images_per_second == 200.0


def test_a_summary_leaves_out_the_samples_and_keeps_the_conditions() -> None:
    summary = RESULT.summary()
    assert "samples_ms" not in summary and "block_medians_ms" not in summary
    assert summary["measured"] is True
    assert summary["input_size_wh"] == [640, 480]


def test_a_record_survives_json_and_cannot_be_changed() -> None:
    assert LatencyResult.model_validate_json(RESULT.model_dump_json()) == RESULT
    with pytest.raises(ValidationError, match="frozen"):
        RESULT.p50_ms = 1.0  # type: ignore[misc]


def test_a_measured_record_cannot_say_that_it_is_modelled() -> None:
    with pytest.raises(ValidationError, match="measured"):
        LatencyResult.model_validate({**RESULT.model_dump(), "measured": False})
