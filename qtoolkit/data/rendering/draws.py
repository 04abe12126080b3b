"""The one source of chance in a rendered image: a stream of numbers that is the same on every machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np

__all__ = ["Draws"]

ItemT = TypeVar("ItemT")

_BLOCK = 512


class Draws:
    """Numbers drawn from a key of whole numbers (≥ 0): the same key gives the same numbers in the same order.

    Only ``Generator.random`` of PCG64 is used, taken a block at a time: everything else is Python arithmetic on its
    doubles, so that neither a numpy version nor a CPU can change a distribution.
    """

    def __init__(self, *key: int) -> None:
        self._generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
        self._block: Iterator[float] = iter(())

    def unit(self) -> float:
        """Uniform in [0, 1)."""
        for value in self._block:
            return value
        self._block = reversed(self._generator.random(_BLOCK).tolist())
        return next(self._block)

    def between(self, lo: float, hi: float) -> float:
        """Uniform in [lo, hi)."""
        return lo + (hi - lo) * self.unit()

    def around(self, mean: float, deviation: float) -> float:
        """Bell-shaped, at most three deviations from ``mean``: the sum of three uniform numbers."""
        return mean + 2.0 * deviation * (self.unit() + self.unit() + self.unit() - 1.5)

    def integer(self, lo: int, hi: int) -> int:
        """A whole number, lo ≤ n ≤ hi."""
        return lo + int(self.unit() * (hi - lo + 1))

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.unit() < probability

    def sign(self) -> int:
        """−1 or 1."""
        return 1 if self.unit() < 0.5 else -1

    def pick(self, items: Sequence[ItemT]) -> ItemT:
        """One of the items, each as likely as the others."""
        return items[int(self.unit() * len(items))]

    def weighted(self, items: Sequence[tuple[ItemT, float]]) -> ItemT:
        """One of the items of (item, weight), in proportion to the weights."""
        total = 0.0
        for _, weight in items:
            total += weight
        left = self.unit() * total
        for item, weight in items:
            left -= weight
            if left < 0:
                return item
        return items[-1][0]
