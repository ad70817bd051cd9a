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
from policies.native.compiler import parallel_for
from policies.native.loops import MAX_LAYERS, Loops
from policies.native.packed import packed

SOURCE = Path(__file__).with_name("fast_sequence.c")
ROWS = 4
"""Number of rows of a linkage that the loops process together."""
BLOCK_BYTES, MIN_BLOCK = 2**20, 8
"""The loops process blocks of environments whose linkages take BLOCK_BYTES, half of a typical L2 cache; a block has at
least MIN_BLOCK environments."""

Arrays = Mapping[str, Tensor | None]


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
    code_order: bool
    """Whether the read modes are in the order of the released code."""
    stop_usage_gradient: bool
    """Whether no gradient flows from the usage to the last write weights."""

    @classmethod
    def of(cls, dnc: Any) -> Shape:
        """The shape of a `DNC`."""
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
            code_order=dnc.variant == "code",
            stop_usage_gradient=dnc.stop_usage_gradient,
        )

    @property
    def read_size(self) -> int:
        """Total width of the read vectors."""
        return self.reads * self.word

    @property
    def feature_size(self) -> int:
        """Width of the concatenated read vectors and hidden states of all layers."""
        return self.read_size + self.layers * self.hidden


def usable(reference: Tensor, layers: int) -> bool:
    """Whether the loops support a DNC of `layers` with states of the device and dtype of `reference`, `[B, ...]`."""
    return reference.shape[0] > 0 and layers <= MAX_LAYERS and loops.usable(SOURCE, reference)


class Weights:
    """The recurrent weights of a DNC, packed for the forward or the backward pass.

    Args:
        shape: the shape of the DNC.
        controller: weight of each layer, `[4 d_h, F + R W + d_h (+ d_h)]`.
        interface: weight of the interface, `[width, L d_h]`.
        forward: the pass.
    """

    def __init__(self, shape: Shape, controller: list[Tensor], interface: Tensor, forward: bool) -> None:
        functions = loops.functions_of(SOURCE, interface)
        first = shape.read_size + shape.hidden
        self.w_read, self.w_hidden, self.w_below = list[Tensor](), list[Tensor](), list[Tensor]()
        for layer, weight in enumerate(controller):
            begin = weight.shape[1] - first - (shape.hidden if layer else 0)
            ends = (begin, begin + shape.read_size, begin + first, begin + first + shape.hidden)
            w_read = weight[:, begin : ends[1] if layer else ends[2]]
            self.w_read.append(packed(functions, w_read, forward))
            # those of layer 0 are not used
            self.w_hidden.append(packed(functions, weight[:, ends[1] : ends[2]], forward) if layer else self.w_read[0])
            self.w_below.append(packed(functions, weight[:, ends[2] :], forward) if layer else self.w_read[0])
        self.interface = packed(functions, interface, forward)
        self.width = len(interface)


class SlotLoops(Loops):
    """The C functions with their arrays.

    Args:
        shape: the shape of the DNC.
        weights: packed for the pass that will run.
        bias: bias of the interface, or None.
        checkpoint_interval: steps between two stored linkages; 0: none are stored.
        arrays: contiguous arrays, named as in the C struct.
    """

    def __init__(
        self, shape: Shape, weights: Weights, bias: Tensor | None, checkpoint_interval: int, arrays: Arrays
    ) -> None:
        usage, linkage = arrays["usage"], arrays["linkage"]
        assert usage is not None
        assert linkage is not None
        self.checkpoint_interval, (batch, writes, rows, lead) = max(checkpoint_interval, 1), linkage.shape
        sizes = (shape.hidden, shape.layers, shape.slots, shape.word, shape.reads, writes, weights.width, lead, rows)
        options = (shape.oneplus, shape.code_order, shape.stop_usage_gradient, shape.clip, shape.clip_gradients)
        numbers = (batch, *sizes, self.checkpoint_interval, checkpoint_interval > 0, *options)
        self._linkage, self._reference = writes * rows * lead, usage
        super().__init__(SOURCE, usage, numbers, max(MIN_BLOCK, BLOCK_BYTES // (self._linkage * usage.itemsize)))
        self.set({**arrays, "interface_bias": bias})
        self.set({"w_read": weights.w_read, "w_hidden": weights.w_hidden, "w_below": weights.w_below})
        largest = max(lead * max(shape.word, rows, writes, shape.reads), shape.layers * shape.hidden)
        self.set({"interface": weights.interface, "zeros": usage.new_zeros(largest)})
        self._scratch_size = lead * (2 * writes * shape.reads + 5 * shape.reads + 3 * writes + 12)

    def forward(self, begin: int, end: int) -> None:
        def run_blocks(first: int, last: int) -> None:
            scratch = self._reference.new_empty(self._scratch_size)
            for at in range(first, last, self.block):
                numbers = map(ctypes.c_int64, (begin, end, at, min(at + self.block, last)))
                self.functions.forward(ctypes.byref(self.tape), *numbers, ctypes.c_void_p(scratch.data_ptr()))

        parallel_for(run_blocks, self.tape.batch)

    def backward_over(self, steps: int) -> None:
        """The backward pass over the steps `steps` - 1 ... 0."""

        def run_blocks(first: int, last: int) -> None:
            block, linkages = min(self.block, last - first), min(self.checkpoint_interval, steps) - 1
            buffers = [self._reference.new_empty(n) for n in (self._scratch_size, block * linkages * self._linkage)]
            pointers = [ctypes.c_void_p(buffer.data_ptr()) for buffer in buffers]
            for at in range(first, last, block):
                for begin in reversed(range(0, steps, self.checkpoint_interval)):
                    numbers = (begin, min(begin + self.checkpoint_interval, steps), at, min(at + block, last))
                    self.functions.backward(ctypes.byref(self.tape), *map(ctypes.c_int64, numbers), *pointers)

        parallel_for(run_blocks, self.tape.batch)
