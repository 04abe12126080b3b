"""Threads of torch, for a while."""

from __future__ import annotations

import torch

from qtoolkit.training.threads import torch_threads


def test_one_thread_meanwhile():
    torch.set_num_threads(2)
    with torch_threads(1) as before:
        assert (before, torch.get_num_threads()) == (2, 1)
    assert torch.get_num_threads() == 2


def test_as_many_as_before():
    torch.set_num_threads(2)
    with torch_threads(None) as before:
        assert (before, torch.get_num_threads()) == (2, 2)
