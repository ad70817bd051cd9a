"""Interface to the C loops of `fast_sequence.c`: steps of a DNC on a CPU, forward and backward."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from policies.native import loops
from policies.native.compiler import library, shared_out
from policies.native.packed import packed

SOURCE = Path(__file__).with_name("fast_sequence.c")
MAX_LAYERS = 8
ROWS = 4
"""Number of rows of a linkage that the loops process together."""
BLOCK_BYTES, FEWEST = 2**20, 8
"""The loops process environments in groups whose linkages take this many bytes (half of a typical L2 cache), and of at
least as many environments as the second number."""

Pointers = ctypes.c_void_p * MAX_LAYERS
Arrays = Mapping[str, Tensor | None]

_NUMBERS = ("batch", "hidden", "layers", "slots", "word", "reads", "writes", "width", "lead", "rows")
_SWITCHES = ("every", "keep", "oneplus", "code", "stops")
_ARRAYS = (
    *("gates", "tanh_cells", "cells", "before", "after", "vectors"),
    *("memory", "norms", "usage", "precedence", "written", "read", "write_content", "read_content", "order"),
    *("linkage", "copies", "d_after", "d_gates", "d_vectors", "d_carried", "d_cell"),
    *("d_memory", "d_usage", "d_precedence", "d_written", "d_read", "d_linkage"),
)


class _Tape(ctypes.Structure):
    """As in the C file."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in (*_NUMBERS, *_SWITCHES)),
        *((name, ctypes.c_double) for name in ("clip", "clip_gradients")),
        *((name, ctypes.c_void_p) for name in ("starts", "zeros")),
        *((name, Pointers) for name in ("seen", "own", "below")),
        *((name, ctypes.c_void_p) for name in ("interface", "interface_bias", *_ARRAYS)),
    ]


class Shape(NamedTuple):
    """Sizes and options of the C loops."""

    hidden: int
    layers: int
    slots: int
    word: int
    reads: int
    writes: int
    clip: float
    clip_gradients: float
    oneplus: bool
    code: bool
    """Whether the order of the read modes is that of the released code."""
    stops: bool
    """Whether the usage sends no gradient to the last write weights."""

    @classmethod
    def of(cls, dnc: Any) -> Shape:
        """That of a `DNC`."""
        return cls(
            hidden=dnc.hidden_size,
            layers=dnc.num_layers,
            slots=dnc.slots,
            word=dnc.word_size,
            reads=dnc.read_heads,
            writes=dnc.write_heads,
            clip=dnc.clip_value or math.inf,
            clip_gradients=dnc.clip_gradients or math.inf,
            oneplus=dnc.strength is not F.softplus,
            code=dnc.variant == "code",
            stops=dnc.stop_usage_gradient,
        )

    @property
    def seen(self) -> int:
        """Total width of the read vectors."""
        return self.reads * self.word

    @property
    def all(self) -> int:
        """Width of read vectors and hidden states of all layers, which the loops store side by side."""
        return self.seen + self.layers * self.hidden


def usable(like: Tensor, layers: int) -> bool:
    """Whether the loops can be used for states such as `like`: on a CPU, with a compiler."""
    return like.shape[0] > 0 and layers <= MAX_LAYERS and loops.usable(SOURCE, like)


class Weights:
    """The recurrent weights of a DNC, packed for one direction.

    Args:
        shape: of the DNC.
        controller: of each layer, `[4 d_h, F + R W + d_h (+ d_h)]`.
        interface: `[.., L d_h]`.
        forward: the direction.
    """

    def __init__(self, shape: Shape, controller: list[Tensor], interface: Tensor, forward: bool) -> None:
        functions = library(SOURCE, interface.dtype)
        assert functions is not None
        first = shape.seen + shape.hidden
        self.seen, self.own, self.below = list[Tensor](), list[Tensor](), list[Tensor]()
        for layer, weight in enumerate(controller):
            begin = weight.shape[1] - first - (shape.hidden if layer else 0)
            ends = (begin, begin + shape.seen, begin + first, begin + first + shape.hidden)
            seen = weight[:, begin : ends[1] if layer else ends[2]]
            self.seen.append(packed(functions, seen, forward))
            if layer:
                self.own.append(packed(functions, weight[:, ends[1] : ends[2]], forward))
                self.below.append(packed(functions, weight[:, ends[2] :], forward))
        self.interface = packed(functions, interface, forward)
        self.width = len(interface)


class Loops:
    """The C functions and their arrays, by the names in the C file; all arrays are contiguous.

    Args:
        shape: of the DNC.
        weights: packed for the direction.
        bias: of the interface, or None.
        every: steps between two copies of the linkage; 0: none are kept.
        arrays: the arrays.
    """

    def __init__(self, shape: Shape, weights: Weights, bias: Tensor | None, every: int, arrays: Arrays) -> None:
        usage, linkage = arrays["usage"], arrays["linkage"]
        assert usage is not None
        assert linkage is not None
        functions = library(SOURCE, usage.dtype)
        assert functions is not None
        self._functions, self.every = functions, max(every, 1)
        self._batch, (writes, rows, lead) = len(linkage), linkage.shape[1:]
        sizes = (shape.hidden, shape.layers, shape.slots, shape.word, shape.reads, writes, weights.width, lead, rows)
        switches = (self.every, every > 0, shape.oneplus, shape.code, shape.stops)
        self._tape = _Tape(self._batch, *sizes, *switches, shape.clip, shape.clip_gradients)
        parts = (shape.word, rows, writes, shape.reads)
        zeros = usage.new_zeros(max(lead * max(parts), shape.layers * shape.hidden))
        self._held = [weights, zeros, bias, arrays]
        for name, array in {**arrays, "zeros": zeros, "interface_bias": bias, "interface": weights.interface}.items():
            if array is not None:
                assert array.is_contiguous(), name
                setattr(self._tape, name, array.data_ptr())
        for name, layers in {"seen": weights.seen, "own": weights.own, "below": weights.below}.items():
            skipped = [0] * (shape.layers - len(layers))
            setattr(self._tape, name, Pointers(*skipped, *(weight.data_ptr() for weight in layers)))
        self._room = lead * (2 * writes * shape.reads + 5 * shape.reads + 3 * writes + 12)
        self._linkage, self._like = writes * rows * lead, usage
        self._block = max(FEWEST, BLOCK_BYTES // (self._linkage * usage.itemsize))

    def forward(self, begin: int, end: int) -> None:
        """Take the steps `begin` ... `end` - 1."""

        def take(first: int, last: int) -> None:
            room = self._like.new_empty(self._room)
            for at in range(first, last, self._block):
                numbers = map(ctypes.c_int64, (begin, end, at, min(at + self._block, last)))
                self._functions.forward(ctypes.byref(self._tape), *numbers, ctypes.c_void_p(room.data_ptr()))

        shared_out(take, self._batch)

    def backward(self, steps: int) -> None:
        """The backward pass over the steps `steps` - 1 ... 0."""

        def take(first: int, last: int) -> None:
            block, made = min(self._block, last - first), min(self.every, steps) - 1
            rooms = self._like.new_empty(self._room), self._like.new_empty(block * made * self._linkage)
            pointers = [ctypes.c_void_p(room.data_ptr()) for room in rooms]
            for at in range(first, last, block):
                for begin in reversed(range(0, steps, self.every)):
                    numbers = (begin, min(begin + self.every, steps), at, min(at + block, last))
                    self._functions.backward(ctypes.byref(self._tape), *map(ctypes.c_int64, numbers), *pointers)

        shared_out(take, self._batch)
