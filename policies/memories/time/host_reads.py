"""Whether values may be read from the device: not while a CUDA graph is captured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_host_reads = True


@contextmanager
def no_host_reads() -> Iterator[None]:
    """Within, nothing may be read from the device: a graph is being captured, or would be."""
    global _host_reads
    before, _host_reads = _host_reads, False
    try:
        yield
    finally:
        _host_reads = before


def host_may_read() -> bool:
    """Whether a memory may read values on the host, to be faster by it."""
    return _host_reads
