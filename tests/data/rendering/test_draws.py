from __future__ import annotations

import pytest

from qtoolkit.data.rendering.draws import Draws


def test_the_same_key_gives_the_same_numbers():
    first, second, other = Draws(1, 2, 3), Draws(1, 2, 3), Draws(1, 2, 4)
    drawn = [first.unit() for _ in range(1200)]  # over two blocks
    assert drawn == [second.unit() for _ in range(1200)]
    assert drawn != [other.unit() for _ in range(1200)]


def test_the_first_numbers_are_those_of_every_machine():
    draws = Draws(1, 0, 7, 3)
    assert [draws.unit() for _ in range(3)] == [0.2794550453578062, 0.629061741592864, 0.21533216579548553]


def test_numbers_stay_in_their_range():
    draws = Draws(5)
    assert all(-2.0 <= draws.between(-2.0, 3.0) < 3.0 for _ in range(500))
    assert {draws.integer(2, 4) for _ in range(100)} == {2, 3, 4}
    assert {draws.sign() for _ in range(50)} == {-1, 1}
    around = [draws.around(10.0, 2.0) for _ in range(4000)]
    assert min(around) >= 4.0 and max(around) <= 16.0
    mean = sum(around) / len(around)
    assert mean == pytest.approx(10.0, abs=0.15)
    assert sum((value - mean) ** 2 for value in around) / len(around) == pytest.approx(4.0, rel=0.1)


def test_weights_are_shares():
    draws = Draws(6)
    drawn = [draws.weighted((("a", 3.0), ("b", 1.0), ("never", 0.0))) for _ in range(4000)]
    assert drawn.count("a") / 4000 == pytest.approx(0.75, abs=0.03)
    assert "never" not in drawn
    assert 0.2 < sum(draws.chance(0.3) for _ in range(1000)) / 1000 < 0.4
