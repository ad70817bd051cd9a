"""Context managers that tell memories what holds: parameters do not change, or the host may not read the device."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

T = TypeVar("T")

_kept: dict[Hashable, Any] | None = None


@contextmanager
def parameters_stay() -> Iterator[None]:
    """Within, parameters do not change and are differentiated at most once, as in a rollout between two updates."""
    global _kept
    before, _kept = _kept, {}
    try:
        yield
    finally:
        _kept = before


def held(owner: nn.Module, name: str, make: Callable[[], T]) -> T:
    """What `make` gives: within `parameters_stay` the first time's, with its graph where gradients are on.

    Args:
        owner: the module whose parameters it depends on.
        name: of what is made of them.
        make: is called anew outside of `parameters_stay`.
    """
    if _kept is None:
        return make()
    key = id(owner), name, torch.is_grad_enabled()
    if key not in _kept:
        _kept[key] = make()
    found: T = _kept[key]
    return found


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
