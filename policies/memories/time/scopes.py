"""Context managers in which parameters are constant, so that values computed from them are cached, and in which the
host may not read from the device, as during the capture of a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

T = TypeVar("T")

_cache: dict[Hashable, Any] | None = None
_host_reads = True


@contextmanager
def constant_parameters() -> Iterator[None]:
    """Context manager for code that does not change parameters and differentiates them at most once: a rollout."""
    global _cache
    before, _cache = _cache, {}
    try:
        yield
    finally:
        _cache = before


def cached(module: nn.Module, name: str, compute: Callable[[], T]) -> T:
    """Returns `compute()`; within `constant_parameters` it is called once, and later calls return its result.

    Args:
        module: the module on whose parameters the result depends.
        name: name of the result, unique within the module.
        compute: function to call; the result has a graph if gradients are enabled.
    """
    if _cache is None:
        return compute()
    key = id(module), name, torch.is_grad_enabled()
    if key not in _cache:
        _cache[key] = compute()
    value: T = _cache[key]
    return value


@contextmanager
def no_host_reads() -> Iterator[None]:
    """Context manager for code that may not read from the device, as during the capture of a CUDA graph."""
    global _host_reads
    before, _host_reads = _host_reads, False
    try:
        yield
    finally:
        _host_reads = before


def host_may_read() -> bool:
    """Whether values may be read on the host."""
    return _host_reads
