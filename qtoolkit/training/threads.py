"""How many threads torch computes with, for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

__all__ = ["torch_threads"]


@contextlib.contextmanager
def torch_threads(count: int | None) -> Iterator[int]:
    """Compute with ``count`` threads (None: as many as before) meanwhile; gives the number that there were before."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield before
    finally:
        torch.set_num_threads(before)
