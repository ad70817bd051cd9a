"""The C library's allocator, told to keep what it has."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD = -1  # names and numbers of glibc's malloc.h
M_MMAP_MAX = -4


def tune_allocator() -> bool:
    """Make large tensors cheap to allocate on the CPU; call it once, before the first.

    By default glibc maps every large block freshly and gives freed memory back, so that each new tensor is paid for in
    page faults. Memories with fast weights keep a few MB for every step and feel it: the first rollout's blocks were
    measured to be written five times faster, later ones as fast or faster. After this call the process keeps the memory
    it has freed for itself.

    Returns:
        Whether it took effect: on Linux with glibc. Elsewhere nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl and others
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
