"""Calls of `fast_links.c`: what `fast_links.py` does to a linkage in a step, in one pass over it, on a CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from policies.native.compiler import library, off, shared_out

SOURCE = Path(__file__).with_name("fast_links.c")


class LinkLoops:
    """Steps of the linkages `[G, N, N]` whose rows may lie further apart than N.

    What is called `update` is k (1 - w), k w, w and p, of N numbers for each entry.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        functions = library(SOURCE, dtype)
        assert functions is not None
        self._functions = functions

    @classmethod
    def where_usable(cls, linkage: Tensor) -> LinkLoops | None:
        """For linkages like this; None where torch's operations have to do it."""
        if linkage.device.type != "cpu" or off() or library(SOURCE, linkage.dtype) is None:
            return None
        return cls(linkage.dtype)

    def advance(self, before: Tensor, after: Tensor, update: Sequence[Tensor]) -> None:
        """L_{t-1} to L_t."""
        self._call("advance", [before, after, *update], len(before), before.shape[2], before.stride(1))

    def follow(self, linkage: Tensor, update: Sequence[Tensor], reads: Tensor) -> tuple[Tensor, Tensor]:
        """L_{t-1} to L_t in place; f and b of the reads, `[G, R, N]` each."""
        ways = torch.empty_like(reads), torch.empty_like(reads)
        sizes = (*reads.shape[1:], linkage.stride(1))
        self._call("follow", [linkage, *update, reads, *ways], len(linkage), *sizes)
        return ways

    def back(
        self, before: Tensor, d: Tensor, update: Sequence[Tensor], reads: Tensor, d_forward: Tensor, d_backward: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The derivative of L_t to that of L_{t-1}, in place; those of w, p `[G, N]` and the reads."""
        entries, _, slots = before.shape
        d_w, d_p, spare = (before.new_empty(entries, count, slots) for count in (1, 1, 5))
        d_reads = torch.empty_like(reads)
        given = [before, d, *update, reads, d_forward, d_backward, d_w, d_p, d_reads, spare]
        self._call("back", given, entries, *reads.shape[1:], before.stride(1))
        return d_w[:, 0], d_p[:, 0], d_reads

    def _call(self, name: str, tensors: Sequence[Tensor], entries: int, *sizes: int) -> None:
        function: Any = getattr(self._functions, name)
        arguments = [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
        numbers = [ctypes.c_int64(size) for size in sizes]
        shared_out(lambda *rows: function(*arguments, *numbers, *map(ctypes.c_int64, rows)), entries)
