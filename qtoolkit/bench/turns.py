"""Whose turn it is: A B C, B C A, C A B, so that nobody always follows the same one or always opens a cycle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

__all__ = ["Progress", "rotating_turns"]

Progress = Callable[[int, int], None]

ItemT = TypeVar("ItemT")


def rotating_turns(
    items: Sequence[ItemT], first: int, last: int, progress: Progress | None = None
) -> Iterator[tuple[int, ItemT]]:
    """(cycle, item) of the cycles from ``first`` up to ``last``; ``progress`` hears of every turn that is over."""
    for cycle in range(first, last):
        start = cycle % len(items)
        for turn, item in enumerate([*items[start:], *items[:start]]):
            yield cycle, item
            if progress is not None:
                progress(cycle * len(items) + turn + 1, last * len(items))
