"""Arrays of the host that results are copied into: handed out as they are, and used again once nobody holds them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["HostArrays"]

_MOST = 4


class HostArrays:
    """Arrays that ``make`` gives, ``most`` at most: page-locked memory is short, and takes long to get.

    ``take`` gives one that nobody holds, nor a view of it, and else one of ordinary memory: what was given before is
    never written to while its receiver can see it, and nothing is copied for that. For one thread at a time.
    """

    def __init__(self, make: Callable[[], NDArray[Any]], most: int = _MOST) -> None:
        self._make, self._most = make, most
        self._arrays: list[NDArray[Any]] = []
        # numpy lets every view, and every view of one, hold the array that the memory belongs to.
        self._owners: list[NDArray[Any]] = []
        self._unheld: list[int] = []

    def take(self) -> NDArray[Any]:
        """An array for the next result; its content is what was there before."""
        for index, unheld in enumerate(self._unheld):
            if self._holders(index) == unheld:
                return self._arrays[index][...]
        if len(self._arrays) == self._most:
            return np.empty_like(self._arrays[0])
        self._add()
        return self._arrays[-1][...]

    def _add(self) -> None:
        array = self._make()
        owner = array
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        self._arrays.append(array)
        self._owners.append(owner)
        del array, owner
        self._unheld.append(self._holders(len(self._owners) - 1))

    def _holders(self, index: int) -> int:
        return sys.getrefcount(self._owners[index])
