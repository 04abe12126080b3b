"""The learning rate of the fine-tuning; the rest is tested from end to end in test_retrain."""

from __future__ import annotations

from itertools import pairwise

import pytest

from qtoolkit.training.fine_tuning import learning_rate_share


def test_warm_up_and_cosine():
    shares = [learning_rate_share(step, 1000) for step in range(1000)]
    assert shares[0] == pytest.approx(1 / 50)
    assert shares[24] == pytest.approx(0.5)
    assert max(shares) == shares[50] == pytest.approx(1.0)
    assert shares[525] == pytest.approx((1 + 0.02) / 2, rel=1e-3)
    assert shares[-1] == pytest.approx(0.02, rel=1e-3)
    assert all(first >= second for first, second in pairwise(shares[50:]))


def test_a_run_of_one_step():
    assert learning_rate_share(0, 1) == pytest.approx(1.0)
