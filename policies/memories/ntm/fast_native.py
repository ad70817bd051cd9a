"""Interface to the C loops of `fast_sequence.c`: steps of an NTM on a CPU, forward and backward."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from policies.native import loops
from policies.native.loops import MAX_LAYERS, Arrays, Loops

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


def usable(reference: Tensor, sizes: Sizes) -> bool:
    """Whether the loops support these sizes, and the device and dtype of `reference`."""
    return sizes.layers <= MAX_LAYERS and sizes.heads * sizes.padded <= MAX_NUMBERS and loops.usable(SOURCE, reference)


def norms(memory: Tensor, out: Tensor) -> None:
    """Writes 1 / |M(i)| of `memory` `[B, word, padded]` to `out` `[B, padded]`."""
    pointers = (ctypes.c_void_p(memory.data_ptr()), ctypes.c_void_p(out.data_ptr()))
    loops.functions_of(SOURCE, memory).norms(*pointers, *map(ctypes.c_int64, memory.shape))


def make_loops(sizes: Sizes, weights: Weights, forward: bool, arrays: Arrays) -> Loops:
    """The loops over `arrays`, named as in the C struct, with the weights packed for the forward or backward pass."""
    reference = weights.interface
    block = max(MIN_BLOCK, BLOCK_BYTES // (sizes.word * sizes.padded * reference.itemsize))
    loops = Loops(SOURCE, reference, sizes, block)
    loops.pack({"weights": weights.controller, "interface_weight": weights.interface}, forward)
    return loops.set({"interface_bias": weights.interface_bias, "biases": weights.biases, **arrays})
