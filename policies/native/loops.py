"""The C loops of a memory as seen from Python: whether they can be used, and a call of them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from policies.native.compiler import library, off, shared_out
from policies.native.packed import packed

MAX_LAYERS = 8
"""Arrays in a list."""

Pointers = ctypes.c_void_p * MAX_LAYERS
Arrays = dict[str, Tensor | Sequence[Tensor]]


def usable(source: Path, like: Tensor) -> bool:
    """Whether the loops of `source` can be used for tensors such as `like`: on a CPU, with a C compiler."""
    return like.device.type == "cpu" and not off() and library(source, like.dtype) is not None


class Loops:
    """The C functions `forward` and `backward` of one file, and the arrays they work on, by their names in the file.

    Args:
        source: the C file.
        like: a tensor of the type of all others.
        tape: the file's struct, with the numbers; its field `batch` counts the environments.
        block: environments that a call takes through time together.
    """

    def __init__(self, source: Path, like: Tensor, tape: ctypes.Structure, block: int) -> None:
        functions = library(source, like.dtype)
        assert functions is not None
        self.functions, self.tape, self.block, self._held = functions, tape, block, list[Tensor]()

    def set(self, arrays: Mapping[str, Tensor | Sequence[Tensor]]) -> None:
        """Take these arrays too; lists have one for each layer."""
        for name, given in arrays.items():
            held = (given,) if isinstance(given, Tensor) else tuple(given)
            assert all(array.is_contiguous() for array in held), name
            self._held += held
            pointers = [array.data_ptr() for array in held]
            setattr(self.tape, name, pointers[0] if isinstance(given, Tensor) else Pointers(*pointers))

    def pack(self, weights: Mapping[str, Tensor | Sequence[Tensor]], forward: bool) -> None:
        """Take these weights, packed for one direction."""
        for name, given in weights.items():
            several = [packed(self.functions, w, forward) for w in ([given] if isinstance(given, Tensor) else given)]
            self.set({name: several[0] if isinstance(given, Tensor) else several})

    def forward(self, begin: int, end: int) -> None:
        """Take the steps `begin` ... `end` - 1."""
        self._all(self.functions.forward, begin, end)

    def backward(self, begin: int, end: int) -> None:
        """Back through the steps `end` - 1 ... `begin`."""
        self._all(self.functions.backward, begin, end)

    def _all(self, function: Callable[..., None], first: int, last: int) -> None:
        tape, times = ctypes.byref(self.tape), (ctypes.c_int64(first), ctypes.c_int64(last))

        def take(begin: int, end: int) -> None:
            for at in range(begin, end, self.block):
                function(tape, *times, ctypes.c_int64(at), ctypes.c_int64(min(at + self.block, end)))

        shared_out(take, self.tape.batch)
