"""The C loops of `fast_sequence.c`, which take an NTM through steps forward and back, and what they work on."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from policies.native.compiler import library, off, shared_out
from policies.native.packed import packed

SOURCE = Path(__file__).with_name("fast_sequence.c")
MAX_LAYERS = 8
MAX_NUMBERS = 32_768
"""Numbers in the weights of all heads; the loops have some such vectors on the stack."""
BLOCK_BYTES, FEWEST = 2**19, 16
"""Environments are taken through time together whose memories come to so many bytes, a quarter of a usual L2 cache, but
no fewer than these."""
LANES_BYTES = 64
"""Slots are filled up to so many bytes, the widest SIMD vector."""

Pointers = ctypes.c_void_p * MAX_LAYERS
Arrays = dict[str, Tensor | Sequence[Tensor]]


class Sizes(NamedTuple):
    """What the loops must know beside the arrays, in the order of the C file."""

    batch: int
    layers: int
    hidden: int
    lstm: bool
    slots: int
    padded: int
    word: int
    reads: int
    writes: int
    reach: int
    read_first: bool
    squash_keys: bool

    @property
    def heads(self) -> int:
        return self.reads + self.writes

    @property
    def widths(self) -> list[int]:
        """Of what each layer's product takes in, but for the input."""
        own = self.hidden if self.lstm else 0
        return [self.reads * self.word + own] + [self.hidden + own] * (self.layers - 1)


class Weights(NamedTuple):
    """The trained parameters as the loops take them."""

    input: Tensor
    """By which the input enters the first layer, `[4H or H, F]`."""
    controller: Sequence[Tensor]
    """Of each layer, `[4H or H, width]`: what is multiplied by a row of its inputs, see `Sizes.widths`."""
    biases: Sequence[Tensor]
    interface: Tensor
    interface_bias: Tensor

    def flat(self) -> list[Tensor]:
        """All of them in one row."""
        return [self.input, *self.controller, *self.biases, self.interface, self.interface_bias]

    @classmethod
    def of(cls, flat: Iterator[Tensor], layers: int) -> Weights:
        """From such a row, of which more may follow."""
        first, *rest = (next(flat) for _ in range(2 * layers + 3))
        return cls(first, rest[:layers], rest[layers : 2 * layers], *rest[2 * layers :])


class _Tape(ctypes.Structure):
    """As in the C file."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in Sizes._fields),
        ("starts", ctypes.c_void_p),
        *((name, Pointers) for name in ("weights", "biases")),
        *((name, ctypes.c_void_p) for name in ("interface_weight", "interface_bias")),
        *((name, Pointers) for name in ("gates", "inputs", "cells", "squashed")),
        *((name, ctypes.c_void_p) for name in ("features", "parameters", "memory", "norms", "w")),
        *((name, ctypes.c_void_p) for name in ("by_content", "cosines", "moved", "logs")),
        *((name, Pointers) for name in ("fresh_inputs", "fresh_cells")),
        *((name, ctypes.c_void_p) for name in ("fresh_memory", "fresh_norms", "fresh_w")),
        ("d_features", ctypes.c_void_p),
        ("d_gates", Pointers),
        ("d_parameters", ctypes.c_void_p),
        *((name, Pointers) for name in ("d_inputs", "d_cells")),
        *((name, ctypes.c_void_p) for name in ("d_memory", "d_w", "d_hidden")),
        *((name, Pointers) for name in ("d_fresh_inputs", "d_fresh_cells")),
        *((name, ctypes.c_void_p) for name in ("d_fresh_memory", "d_fresh_w")),
    ]


def usable(like: Tensor, sizes: Sizes) -> bool:
    """Whether the loops can take this memory, of whose parameters `like` is one: on a CPU, of a usual size, and with a
    compiler at hand."""
    return (
        like.device.type == "cpu"
        and sizes.layers <= MAX_LAYERS
        and sizes.heads * sizes.padded <= MAX_NUMBERS
        and not off()
        and library(SOURCE, like.dtype) is not None
    )


def padded(slots: int, like: Tensor) -> int:
    """The slots, filled up to whole SIMD vectors of numbers like these."""
    lanes = LANES_BYTES // like.itemsize
    return -(-slots // lanes) * lanes


def norms(memory: Tensor, found: Tensor) -> None:
    """`found` `[B, padded]` becomes 1 / |M(i)| of `memory` `[B, word, padded]`."""
    functions = library(SOURCE, memory.dtype)
    assert functions is not None
    pointers = (ctypes.c_void_p(memory.data_ptr()), ctypes.c_void_p(found.data_ptr()))
    functions.norms(*pointers, *map(ctypes.c_int64, memory.shape))


class Loops:
    """The C functions with what they work on, by the names in the C file; all arrays are contiguous.

    Args:
        sizes: of the memory.
        weights: packed for one direction.
        forward: whether for the way forward.
        arrays: the arrays; lists have one for each layer.
    """

    def __init__(self, sizes: Sizes, weights: Weights, forward: bool, arrays: Arrays) -> None:
        functions = library(SOURCE, weights.interface.dtype)
        assert functions is not None
        self._functions, self._sizes = functions, sizes
        self._tape, self._held = _Tape(*sizes), list[Tensor]()
        self.set({"weights": [packed(functions, weight, forward) for weight in weights.controller]})
        self.set({"interface_weight": packed(functions, weights.interface, forward)})
        self.set({"interface_bias": weights.interface_bias, "biases": weights.biases})
        self.set(arrays)

    def set(self, arrays: Arrays) -> None:
        """Take these arrays too."""
        for name, given in arrays.items():
            held = (given,) if isinstance(given, Tensor) else tuple(given)
            assert all(array.is_contiguous() for array in held), name
            self._held += held
            pointers = [array.data_ptr() for array in held]
            setattr(self._tape, name, pointers[0] if isinstance(given, Tensor) else Pointers(*pointers))

    def forward(self, begin: int, end: int) -> None:
        """Take the steps `begin` ... `end` - 1."""
        self._all(self._functions.forward, begin, end)

    def backward(self, begin: int, end: int) -> None:
        """Back through the steps `end` - 1 ... `begin`."""
        self._all(self._functions.backward, begin, end)

    def _all(self, function: Callable[..., None], first: int, last: int) -> None:
        """All environments, in blocks that stay in the cache where they are small."""
        block = max(FEWEST, BLOCK_BYTES // (self._sizes.word * self._sizes.padded * self._held[0].itemsize))
        tape, times = ctypes.byref(self._tape), (ctypes.c_int64(first), ctypes.c_int64(last))

        def take(begin: int, end: int) -> None:
            for at in range(begin, end, block):
                function(tape, *times, ctypes.c_int64(at), ctypes.c_int64(min(at + block, end)))

        shared_out(take, self._sizes.batch)
