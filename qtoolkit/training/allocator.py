"""The C library's memory allocator, set for a training: freed memory is kept for the next step."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform

__all__ = ["keep_freed_memory"]

# From glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_KEPT_BYTES, _GROWTH_BYTES = 2**31 - 1, 1 << 28


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed, up to 2 GiB, and take no memory page by page; whether it could be asked.

    By default glibc gives every large tensor back to the system as soon as it is freed and gets the next one as zeroed
    pages: of a training on the CPU that was a seventh of the time. Does nothing elsewhere than on glibc, or where a
    ``MALLOC_…_`` variable is set: then the user has chosen.
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _KEPT_BYTES), (_TOP_PAD, _GROWTH_BYTES))
        return all(mallopt(parameter, value) == 1 for parameter, value in settings)
    return False
