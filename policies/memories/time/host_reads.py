"""Whether values may be read from the device: not while a CUDA graph is captured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_host_reads = True


@contextmanager
def no_host_reads() -> Iterator[None]:
    """Context manager: inside, nothing may be read from the device, as while a CUDA graph is captured."""
    global _host_reads
    before, _host_reads = _host_reads, False
    try:
        yield
    finally:
        _host_reads = before


def host_may_read() -> bool:
    """Whether values may be read on the host."""
    return _host_reads
