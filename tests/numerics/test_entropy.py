from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qtoolkit.numerics.affine import IntegerGrid, params_from_range
from qtoolkit.numerics.entropy import entropy
from qtoolkit.numerics.histogram import StreamingHistogram, TensorStatistics

INT8 = IntegerGrid(8, signed=True, symmetric=True)
INT8_SHIFT = IntegerGrid(8, signed=True, symmetric=True, power_of_two=True)
UINT8 = IntegerGrid(8, signed=False, symmetric=False)
UINT16 = IntegerGrid(16, signed=False, symmetric=False)

rng = np.random.default_rng(3)


def known(x: Any, bins: int = 1024) -> TensorStatistics:
    histogram = StreamingHistogram(bins)
    histogram.update(np.float32(x))
    return TensorStatistics.of(histogram, np.float32([x.min()]), np.float32([x.max()]))


def divergence(statistics: TensorStatistics, grid: IntegerGrid, lo: float, hi: float) -> float:
    """KL(P ‖ Q) as the talk writes it: bin by bin, level by level."""
    counts = statistics.counts.astype(float)
    width = (statistics.hi - statistics.lo) / counts.size
    if statistics.zero_count:
        counts[round(-statistics.lo / width)] -= statistics.zero_count
    held = params_from_range(lo, hi, grid)
    scale, zero_point = float(held.scale), int(held.zero_point)
    first, last = (
        int(np.clip(np.rint((scale * (q - zero_point) - statistics.lo) / width), 0, counts.size))
        for q in (grid.qmin, grid.qmax)
    )
    p = counts[first:last].copy()
    p[0] += counts[:first].sum()
    p[-1] += counts[last:].sum()
    centres = statistics.lo + width * (np.arange(first, last) + 0.5)
    levels = np.clip(np.rint(centres / scale) + zero_point, grid.qmin, grid.qmax)
    q = np.zeros_like(p)
    for level in np.unique(levels):
        members = (levels == level) & (p > 0)
        q[members] = counts[first:last][levels == level].sum() / max(members.sum(), 1)
    if q.sum() == 0:
        return np.inf
    p, q = p / p.sum(), q / q.sum()
    with np.errstate(divide="ignore"):
        return float(np.sum(p[p > 0] * np.log(p[p > 0] / q[p > 0])))


TENSORS = {
    "gauss": rng.standard_normal(20_000),
    "laplace": rng.laplace(size=20_000),
    "relu": np.maximum(rng.standard_normal(20_000), 0),
    "with-a-gap": np.append(rng.standard_normal(20_000), [9.0, 9.5]),
}


def edges_up_to(reach: float, width: float, least: float) -> list[float]:
    return [reach, *(k * width for k in range(int(np.ceil(reach / width)) - 1, 0, -1) if k > least)]


@pytest.mark.parametrize("grid", [INT8, INT8_SHIFT], ids=["int8", "int8-shift"])
@pytest.mark.parametrize("x", TENSORS.values(), ids=TENSORS)
def test_symmetric_finds_the_least_divergence(x: Any, grid: IntegerGrid) -> None:
    statistics = known(x)
    lo, hi = entropy(statistics, grid)
    assert lo == -hi
    width = (statistics.hi - statistics.lo) / statistics.counts.size
    reach = max(-statistics.minimum, statistics.maximum)
    least = min(divergence(statistics, grid, -t, t) for t in edges_up_to(reach, width, 127.5)[::5])
    found = divergence(statistics, grid, lo, hi)
    assert np.isfinite(found)
    assert found <= least * (1 + 1e-9)


def test_an_unsigned_symmetric_grid_is_searched_from_0_up() -> None:
    grid = IntegerGrid(8, signed=False, symmetric=True)
    relu = known(np.maximum(rng.standard_normal(20_000), 0))
    assert entropy(relu, grid) == entropy(relu, UINT8)
    lo, hi = entropy(known(rng.standard_normal(20_000)), grid)
    assert lo == 0.0 and hi > 0.0


@pytest.mark.parametrize("sign", [1, -1], ids=["positive", "negative"])
def test_one_sided_finds_the_least_divergence(sign: int) -> None:
    statistics = known(sign * rng.exponential(size=20_000))
    lo, hi = entropy(statistics, UINT8)
    assert (lo if sign > 0 else hi) == 0.0
    width = (statistics.hi - statistics.lo) / statistics.counts.size
    reach = max(-statistics.minimum, statistics.maximum)
    candidates = [(0.0, t) if sign > 0 else (-t, 0.0) for t in edges_up_to(reach, width, 255)[::5]]
    least = min(divergence(statistics, UINT8, *pair) for pair in candidates)
    assert divergence(statistics, UINT8, lo, hi) <= least * (1 + 1e-9)


@pytest.mark.parametrize("name", ["gauss", "laplace", "with-a-gap"])
def test_pairs_come_near_the_least_divergence(name: str) -> None:
    statistics = known(TENSORS[name])
    lo, hi = entropy(statistics, UINT8)
    width = (statistics.hi - statistics.lo) / statistics.counts.size
    los = np.rint(np.linspace(statistics.minimum, 0, 14)[:-1] / width) * width
    his = np.rint(np.linspace(statistics.maximum, 0, 14)[:-1] / width) * width
    least = min(divergence(statistics, UINT8, low, high) for low in los for high in his if high - low >= 255 * width)
    found = divergence(statistics, UINT8, lo, hi)
    assert found <= least * 1.05
    assert found <= divergence(statistics, UINT8, statistics.minimum, statistics.maximum)


def test_long_thin_tail_is_cut() -> None:
    x = np.append(rng.standard_normal(200_000), rng.uniform(4, 12, 20))
    lo, hi = entropy(known(x, 2048), INT8)
    assert 3.0 < hi < 8.0
    assert lo == -hi


def test_exact_zeros_do_not_count() -> None:
    positive = rng.exponential(size=5000)
    assert entropy(known(np.append(positive, np.zeros(90_000))), UINT8) == entropy(
        known(np.append(positive, 0.0)), UINT8
    )


@pytest.mark.parametrize(
    ("x", "grid", "expected"),
    [
        pytest.param(np.zeros(9), UINT8, (0.0, 0.0), id="all-zero"),
        pytest.param(np.array([-1.0, 0.5, 2.0]), UINT16, (-1.0, 2.0), id="16-bit-is-min-max"),
        pytest.param(np.full(9, 3.0), UINT8, (0.0, 3.0), id="constant"),
        pytest.param(np.linspace(1000, 1001, 500), UINT8, (0.0, 1001.0), id="far-from-zero"),
        pytest.param(np.linspace(-1001, -1000, 500), INT8, (-1001.0, 1001.0), id="far-below-zero"),
    ],
)
def test_special_tensors(x: Any, grid: IntegerGrid, expected: tuple[float, float]) -> None:
    lo, hi = entropy(known(x), grid)
    assert (lo, hi) == pytest.approx(expected, abs=0.5 if abs(x).max() > 100 else 1e-6)


@pytest.mark.parametrize("lowest", [0.0, -3.0, -400.0])
@pytest.mark.parametrize("grid", [INT8, UINT8], ids=["int8", "uint8"])
def test_extremes_far_outside_the_sample(grid: IntegerGrid, lowest: float) -> None:
    histogram = StreamingHistogram(2048)
    histogram.update(np.float32(rng.exponential(size=20_000)))
    statistics = TensorStatistics.of(histogram, np.array([lowest]), np.array([500.0]), 10**9)
    assert entropy(statistics, grid)[1] < 20.0
