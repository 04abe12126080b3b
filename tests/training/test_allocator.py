"""The allocator keeps what is freed, where it is glibc's."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from qtoolkit.training.allocator import keep_freed_memory

_PROGRAM = """
import resource
import numpy as np
from qtoolkit.training.allocator import keep_freed_memory
{call}
np.ones(4_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    np.ones(4_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _page_faults(call: str) -> int:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    program = [sys.executable, "-c", _PROGRAM.format(call=call)]
    return int(subprocess.run(program, env=environment, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")
def test_large_arrays_come_from_what_was_freed():
    assert _page_faults("assert keep_freed_memory()") * 10 < _page_faults("")


def test_variables_of_the_user_win(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not keep_freed_memory()


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
