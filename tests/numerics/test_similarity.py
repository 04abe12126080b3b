from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qtoolkit.errors import UsageError
from qtoolkit.numerics.similarity import cosine, nmse, sqnr_db

tensors = hnp.arrays(np.float32, 8, elements=st.floats(-1e6, 1e6, width=32))


@pytest.mark.parametrize(
    ("x", "y", "expected_nmse", "expected_db", "expected_cosine"),
    [
        pytest.param([3, 4], [3, 4], 0.0, math.inf, 1.0, id="equal"),
        pytest.param([3, 4], [3, 3.5], 0.01, 20.0, 23 / (5 * math.hypot(3, 3.5)), id="one-percent"),
        pytest.param([3, 4], [0, 0], 1.0, 0.0, 0.0, id="all-lost"),
        pytest.param([3, 4], [6, 8], 1.0, 0.0, 1.0, id="doubled"),
        pytest.param([3, 4], [-3, -4], 4.0, -10 * math.log10(4), -1.0, id="opposite"),
        pytest.param([1, 0], [0, 1], 2.0, -10 * math.log10(2), 0.0, id="orthogonal"),
        pytest.param([0, 0], [0, 0], 0.0, math.inf, 1.0, id="both-zero"),
        pytest.param([0, 0], [0, 1], math.inf, -math.inf, 0.0, id="reference-zero"),
        pytest.param([3e38, 3e38], [3e38, 2.7e38], 0.005, 10 * math.log10(200), 0.998618, id="squares-beyond-float32"),
        pytest.param([1e-40, 0], [1e-40, 1e-41], 0.01, 20.0, 1 / math.hypot(1, 0.1), id="subnormal"),
    ],
)
def test_table(
    x: list[float], y: list[float], expected_nmse: float, expected_db: float, expected_cosine: float
) -> None:
    reference, approximation = np.float32(x), np.float32(y)
    assert nmse(reference, approximation) == pytest.approx(expected_nmse, rel=1e-4)
    assert sqnr_db(reference, approximation) == pytest.approx(expected_db, rel=1e-4)
    assert cosine(reference, approximation) == pytest.approx(expected_cosine, rel=1e-5)


@given(tensors, tensors)
def test_sqnr_is_nmse_in_decibels(x: np.ndarray, y: np.ndarray) -> None:
    ratio, decibels = nmse(x, y), sqnr_db(x, y)
    if math.isfinite(decibels):
        assert ratio == pytest.approx(10 ** (-decibels / 10))
    else:
        assert ratio == (0.0 if decibels > 0 else math.inf)


@given(tensors, tensors)
def test_cosine_is_bounded_and_symmetric(x: np.ndarray, y: np.ndarray) -> None:
    assert -1.0 <= cosine(x, y) <= 1.0
    assert cosine(x, y) == cosine(y, x)
    assert cosine(x, x) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        pytest.param([math.nan, 1], [1, 1], id="nan-reference"),
        pytest.param([1, 1], [math.nan, 1], id="nan-approximation"),
        pytest.param([0, 0], [math.nan, 1], id="nan-against-zeros"),
        pytest.param([math.inf, 1], [math.inf, 1], id="both-infinite"),
        pytest.param([math.inf, 1], [1, 1], id="infinite-reference"),
    ],
)
def test_nan_in_nan_out(x: list[float], y: list[float]) -> None:
    for measure in (nmse, sqnr_db, cosine):
        assert math.isnan(measure(np.float32(x), np.float32(y)))


@pytest.mark.parametrize("shape", [(3,), (2, 1), (0,)], ids=["length", "rank", "empty"])
def test_refuses_what_cannot_be_compared(shape: tuple[int, ...]) -> None:
    other = np.zeros((0,) if shape == (0,) else (2,), np.float32)
    for measure in (nmse, sqnr_db, cosine):
        with pytest.raises(UsageError, match="cannot be compared"):
            measure(np.zeros(shape, np.float32), other)
