"""Configures glibc's allocator to keep freed memory."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD = -1  # names and numbers of glibc's malloc.h
M_MMAP_MAX = -4


def tune_allocator() -> bool:
    """Makes allocation of large tensors cheap on the CPU; call it once at the start.

    By default glibc maps every large block newly and returns freed memory to the system, so that each new tensor costs
    page faults. Memories with fast weights keep a few MB per step: their first rollout was measured to be written five
    times faster with this setting. After the call the process does not return freed memory.

    Returns:
        Whether it took effect: on Linux with glibc. Elsewhere nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl and others
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
