"""Interface to the C loops of `fast_sequence.c`: steps of an NTM on a CPU, forward and backward."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from policies.native import loops
from policies.native.compiler import library
from policies.native.loops import MAX_LAYERS, Arrays, Loops, Pointers

SOURCE = Path(__file__).with_name("fast_sequence.c")
MAX_NUMBERS = 32_768
"""Maximum number of weights of all heads; the loops keep a few such arrays on the stack."""
BLOCK_BYTES, MIN_BLOCK = 2**19, 16
"""The loops process blocks of environments whose memories take BLOCK_BYTES, a quarter of a typical L2 cache; a block
has at least MIN_BLOCK environments."""


class Sizes(NamedTuple):
    """Sizes and options of the C loops, in the order of the C file."""

    batch: int
    layers: int
    hidden: int
    lstm: bool
    slots: int
    padded: int
    word: int
    reads: int
    writes: int
    shift_range: int
    read_first: bool
    tanh_keys: bool

    @property
    def heads(self) -> int:
        return self.reads + self.writes

    @property
    def widths(self) -> list[int]:
        """Width of each layer's inputs in the loops: read vectors or the layer below, and an LSTM's hidden state."""
        recurrent = self.hidden if self.lstm else 0
        return [self.reads * self.word + recurrent] + [self.hidden + recurrent] * (self.layers - 1)


class Weights(NamedTuple):
    """The trained parameters in the form that the loops use."""

    input: Tensor
    """The input's weights of the first layer, `[4H or H, F]`."""
    controller: Sequence[Tensor]
    """The recurrent weights of each layer, `[4H or H, width]`; their inputs have `Sizes.widths`."""
    biases: Sequence[Tensor]
    interface: Tensor
    interface_bias: Tensor

    def flat(self) -> list[Tensor]:
        """All fields in one list."""
        return [self.input, *self.controller, *self.biases, self.interface, self.interface_bias]

    @classmethod
    def of(cls, flat: Iterator[Tensor], layers: int) -> Weights:
        """The inverse, from an iterator that may have further tensors after these."""
        first, *rest = (next(flat) for _ in range(2 * layers + 3))
        return cls(first, rest[:layers], rest[layers : 2 * layers], *rest[2 * layers :])


class _Tape(ctypes.Structure):
    """The struct of the C file."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in Sizes._fields),
        ("starts", ctypes.c_void_p),
        *((name, Pointers) for name in ("weights", "biases")),
        *((name, ctypes.c_void_p) for name in ("interface_weight", "interface_bias")),
        *((name, Pointers) for name in ("gates", "inputs", "cells", "tanh_cells")),
        *((name, ctypes.c_void_p) for name in ("features", "parameters", "memory", "norms", "w")),
        *((name, ctypes.c_void_p) for name in ("content_w", "cosines", "shifted", "log_shifted")),
        *((name, Pointers) for name in ("initial_inputs", "initial_cells")),
        *((name, ctypes.c_void_p) for name in ("initial_memory", "initial_norms", "initial_w")),
        ("d_features", ctypes.c_void_p),
        ("d_gates", Pointers),
        ("d_parameters", ctypes.c_void_p),
        *((name, Pointers) for name in ("d_inputs", "d_cells")),
        *((name, ctypes.c_void_p) for name in ("d_memory", "d_w", "d_hidden")),
        *((name, Pointers) for name in ("d_initial_inputs", "d_initial_cells")),
        *((name, ctypes.c_void_p) for name in ("d_initial_memory", "d_initial_w")),
    ]


def usable(reference: Tensor, sizes: Sizes) -> bool:
    """Whether the loops support these sizes, and the device and dtype of `reference`."""
    return sizes.layers <= MAX_LAYERS and sizes.heads * sizes.padded <= MAX_NUMBERS and loops.usable(SOURCE, reference)


def norms(memory: Tensor, out: Tensor) -> None:
    """Writes 1 / |M(i)| of `memory` `[B, word, padded]` to `out` `[B, padded]`."""
    functions = library(SOURCE, memory.dtype)
    assert functions is not None
    pointers = (ctypes.c_void_p(memory.data_ptr()), ctypes.c_void_p(out.data_ptr()))
    functions.norms(*pointers, *map(ctypes.c_int64, memory.shape))


def make_loops(sizes: Sizes, weights: Weights, forward: bool, arrays: Arrays) -> Loops:
    """The loops over `arrays`, named as in the C struct, with the weights packed for the forward or backward pass."""
    reference = weights.interface
    block = max(MIN_BLOCK, BLOCK_BYTES // (sizes.word * sizes.padded * reference.itemsize))
    loops = Loops(SOURCE, reference, _Tape(*sizes), block)
    loops.pack({"weights": weights.controller, "interface_weight": weights.interface}, forward)
    loops.set({"interface_bias": weights.interface_bias, "biases": weights.biases, **arrays})
    return loops
