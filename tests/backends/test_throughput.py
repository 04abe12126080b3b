from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtoolkit.backends import throughput
from qtoolkit.backends.throughput import map_in_order, worker_count

WAIT_S = 10.0


class Broken(Exception):
    pass


@settings(deadline=None, max_examples=30)
@given(delays_ms=st.lists(st.integers(0, 2), max_size=8), workers=st.integers(1, 5))
def test_it_equals_map_whatever_the_workers_take(delays_ms, workers):
    def wait(numbered: tuple[int, int]) -> int:
        time.sleep(numbered[1] / 1e3)
        return numbered[0]

    assert list(map_in_order(wait, enumerate(delays_ms), workers)) == list(range(len(delays_ms)))


def test_results_come_in_the_order_of_the_items_though_the_first_is_ready_last():
    second_done = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            assert second_done.wait(WAIT_S)
        else:
            second_done.set()
        return item * 10

    assert list(map_in_order(work, [0, 1], 2)) == [0, 10]


@pytest.mark.parametrize("workers", [2, 3])
def test_as_many_as_there_are_workers_run_at_once(workers):
    # Each waits for the others: with one fewer at a time the barrier would break.
    barrier = threading.Barrier(workers, timeout=WAIT_S)
    assert sorted(map_in_order(lambda item: (barrier.wait(), item)[1], range(2 * workers), workers)) == [
        *range(2 * workers)
    ]
    assert not barrier.broken


def test_one_worker_does_one_after_the_other():
    running, most = [0], [0]

    def work(item: int) -> int:
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.001)
        running[0] -= 1
        return item

    assert list(map_in_order(work, range(10), 1)) == [*range(10)]
    assert most == [1]


def test_items_are_taken_lazily():
    taken: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    results = map_in_order(lambda item: item, numbers(), 3)
    # Not even the first before somebody asks.
    assert taken == []
    for got in range(5):
        assert next(results) == got
        # Four under way: three at work and one waiting.
        assert len(taken) == got + 4
    results.close()
    assert len(taken) == 8


def test_an_endless_source_is_no_problem():
    def endless() -> Iterator[int]:
        number = 0
        while True:
            yield number
            number += 1

    results = map_in_order(lambda item: item**2, endless(), 2)
    assert [next(results) for _ in range(4)] == [0, 1, 4, 9]
    results.close()


def test_the_first_error_is_raised_at_its_items_place():
    later_failed = threading.Event()

    def work(item: int) -> int:
        if item == 2:
            # The error of item 3 is there earlier, and is not the one that is raised.
            assert later_failed.wait(WAIT_S)
            raise Broken("item 2")
        if item == 3:
            later_failed.set()
            raise Broken("item 3")
        return item

    results = map_in_order(work, range(1000), 2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(Broken, match="item 2"):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


def test_after_an_error_nothing_more_is_taken():
    taken: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    def fail(item: int) -> int:
        raise Broken

    with pytest.raises(Broken):
        list(map_in_order(fail, numbers(), 2))
    assert taken == [0, 1, 2]


def test_an_error_of_the_source_is_raised_and_ends_it():
    def numbers() -> Iterator[int]:
        yield 0
        yield 1
        raise Broken("the source")

    before = threading.active_count()
    with pytest.raises(Broken, match="the source"):
        list(map_in_order(lambda item: item, numbers(), 4))
    assert threading.active_count() == before


def test_closed_early_it_leaves_no_thread_and_starts_nothing_more():
    started: list[int] = []

    def work(item: int) -> int:
        started.append(item)
        return item

    before = threading.active_count()
    results = map_in_order(work, range(1000), 2)
    assert next(results) == 0
    assert threading.active_count() > before
    results.close()
    assert threading.active_count() == before
    assert set(started) <= {0, 1, 2}
    with pytest.raises(StopIteration):
        next(results)


def test_no_items_give_no_results():
    assert list(map_in_order(lambda item: item, [], 2)) == []


def test_workers_are_the_threads_asked_for_or_every_core(monkeypatch):
    monkeypatch.setattr(throughput, "physical_cores", lambda: 7)
    assert worker_count(None) == 7
    assert worker_count(1) == 1
    assert worker_count(12) == 12
