"""What holds inside a `with` block: parameters do not change, so that values which depend on them alone are computed
once; nothing is read from the device, as while a CUDA graph is captured."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

T = TypeVar("T")

_kept: dict[Hashable, Any] | None = None
_host_reads = True


@contextmanager
def parameters_stay() -> Iterator[None]:
    """Context manager: parameters do not change inside and are differentiated at most once, as during a rollout."""
    global _kept
    before, _kept = _kept, {}
    try:
        yield
    finally:
        _kept = before


def held(owner: nn.Module, name: str, make: Callable[[], T]) -> T:
    """The result of `make`; within `parameters_stay` it is computed once, with its graph if gradients are enabled.

    Args:
        owner: the module on whose parameters the result depends.
        name: of the result.
        make: computes it.
    """
    if _kept is None:
        return make()
    key = id(owner), name, torch.is_grad_enabled()
    if key not in _kept:
        _kept[key] = make()
    found: T = _kept[key]
    return found


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
