"""The sparse DNC over time on a CPU: whole sequences by the C loops of `fast_sequence.c`, as one autograd function.

A call of the loops processes several environments over many steps; episodes may start at any step. Before the loops
torch computes the input's part of the gates, after them the gradients of all weights, for all steps at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from policies.native import loops
from policies.native.loops import Loops

SOURCE = Path(__file__).with_name("fast_sequence.c")
BLOCK = 16
"""Number of environments that the loops process together."""
MAX_NUMBERS = 2**16
"""Maximum number of slots times heads; the loops keep a few such arrays on the C stack."""

WORKING = ("memory", "norms", "last_access", "time", "predecessors", "successors", "log_retained", "precedence")
"""The parts of a state that the loops update in place."""
DIFFERENTIATED = ("hidden", "cell", "read_vectors", "memory", "read_weights")
"""The parts of a state that receive gradients."""


class Sizes(NamedTuple):
    """Sizes of the C loops, in the order of the C file."""

    batch: int
    hidden: int
    slots: int
    word: int
    heads: int
    reads: int
    links: int


def usable(reference: Tensor, slots: int, heads: int) -> bool:
    """Whether the loops support this memory: on a CPU, with a compiler. `reference`: one of its parameters."""
    return slots * heads <= MAX_NUMBERS and loops.usable(SOURCE, reference)


class Steps:
    """The arrays of a sequence, named as in the C struct.

    Args:
        sizes: sizes of the memory.
        threshold: δ, above which a weight counts as use.
        state: the state before the first step; not modified.
        starts: bool `[T, B]`; None: no episode starts.
        initial: M_0 `[N, W]` and the inverse norms of its words `[N]`.
        gates: the input's part of the gates, `[T, B, 4 H]`; overwritten.
    """

    @torch.no_grad()
    def __init__(
        self,
        sizes: Sizes,
        threshold: float,
        state: Mapping[str, Tensor],
        starts: Tensor | None,
        initial: tuple[Tensor, Tensor],
        gates: Tensor,
    ) -> None:
        self.sizes, self.threshold, self.length = sizes, threshold, len(gates)
        batch, size, _, word, heads, reads, links = sizes
        count = heads * reads

        def allocate(*shape: int, extra: int = 0, dtype: torch.dtype = gates.dtype) -> Tensor:
            return gates.new_empty(self.length + extra, batch, *shape, dtype=dtype)

        state_names = {"norms": "inverse_norm"}
        self.working = {
            name: state[state_names.get(name, name)].detach().clone(memory_format=torch.contiguous_format)
            for name in WORKING
        }
        self.arrays = {
            "gates": gates,
            "carried": allocate(size + heads * word, extra=1),
            "cells": allocate(size, extra=1),
            "tanh_cells": allocate(size),
            "features": allocate(size + heads * word),
            "parameters": allocate(heads * (word + 4) + word + 2),
            "weights": allocate(heads, reads, extra=1),
            "write_weights": allocate(count + 1),
            "content": allocate(heads, reads),
            "link_weights": allocate(heads, reads, 2, links),
            "nearest_words": allocate(count, word),
            "words": allocate(count, word),
            "read_slots": allocate(heads, reads, extra=1, dtype=torch.int32),
            "write_slots": allocate(count + 1, dtype=torch.int32),
            "nearest": allocate(count, dtype=torch.int32),
            "positions": allocate(heads, reads * (1 + 2 * links), dtype=torch.int32),
        }
        self.arrays["carried"][0] = torch.cat([state["hidden"], state["read_vectors"].flatten(1)], 1)
        self.arrays["cells"][0] = state["cell"]
        self.arrays["weights"][0] = state["read_weights"]
        self.arrays["read_slots"][0] = state["read_slots"]
        self.initial = dict(zip(("initial_memory", "initial_norms"), initial, strict=True))
        if starts is not None:
            self.arrays["starts"] = starts.contiguous()


def make_loops(
    sizes: Sizes, threshold: float, weights: tuple[Tensor, Tensor], forward: bool, arrays: Mapping[str, Tensor]
) -> Loops:
    """The loops over `arrays`, with the recurrent and interface weights packed for the forward or backward pass."""
    loops = Loops(SOURCE, weights[0], (*sizes, threshold), BLOCK)
    return loops.pack(dict(zip(("recurrent", "interface"), weights, strict=True)), forward).set(arrays)


class NativeSequence(torch.autograd.Function):
    """All steps, with a custom backward.

    Inputs: `Steps`; the input's part of the gates; the recurrent weights from hidden state and read vectors to the
    gates, `[4 H, H + R W]`; weight and bias of the interface; the state before the first step, as `DIFFERENTIATED`.

    Outputs: hidden state and read vectors after each step, concatenated, `[T, B, H + R W]`; cell, memory, w^r and w^W
    after the last step.
    """

    @staticmethod
    def forward(
        ctx: Any, steps: Steps, gates: Tensor, recurrent: Tensor, interface: Tensor, bias: Tensor, *state: Tensor
    ) -> tuple[Tensor, ...]:
        arrays, weights = steps.arrays, (recurrent, interface)
        all_arrays = {"bias": bias, **steps.working, **steps.initial, **arrays}
        make_loops(steps.sizes, steps.threshold, weights, True, all_arrays).forward(0, steps.length)
        ctx.sizes, ctx.threshold, ctx.names = steps.sizes, steps.threshold, (*arrays,)
        ctx.save_for_backward(recurrent, interface, *arrays.values())
        last = (arrays[name][-1] for name in ("weights", "write_weights"))
        return arrays["features"], arrays["cells"][-1], steps.working["memory"], *last

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_features: Tensor, d_cell: Tensor, d_memory: Tensor, d_weights: Tensor, d_write_weights: Tensor
    ) -> tuple[Tensor | None, ...]:
        recurrent, interface, *saved = ctx.saved_tensors
        arrays = dict(zip(ctx.names, saved, strict=True))
        sizes, size = ctx.sizes, ctx.sizes.hidden
        ends = {"d_cell": d_cell, "d_memory": d_memory, "d_weights": d_weights}
        gradients = {name: end.clone(memory_format=torch.contiguous_format) for name, end in ends.items()}
        gradients |= {"d_features": d_features.contiguous(), "d_write_weights": d_write_weights.contiguous()}
        gradients |= {f"d_{name}": torch.empty_like(arrays[name]) for name in ("gates", "parameters")}
        gradients |= {"d_carried": torch.zeros_like(arrays["carried"][0]), "d_hidden": torch.empty_like(d_cell)}
        all_arrays = {**arrays, **gradients}
        make_loops(sizes, ctx.threshold, (recurrent, interface), False, all_arrays).backward(0, len(d_features))
        d_gates, d_parameters, d_carried = gradients["d_gates"], gradients["d_parameters"], gradients["d_carried"]
        d_recurrent = d_gates.flatten(0, 1).t() @ arrays["carried"][:-1].flatten(0, 1)
        d_interface = d_parameters.flatten(0, 1).t() @ arrays["features"].flatten(0, 1)[:, :size]
        d_reads = d_carried[:, size:].reshape(-1, sizes.heads, sizes.word)
        d_state = (
            d_carried[:, :size],
            gradients["d_cell"],
            d_reads,
            gradients["d_memory"],
            gradients["d_weights"],
        )
        return (None, d_gates, d_recurrent, d_interface, d_parameters.sum((0, 1)), *d_state)
