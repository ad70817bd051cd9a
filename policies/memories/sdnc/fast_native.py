"""The sparse DNC over time on a CPU: whole sequences by the C loops of `fast_sequence.c`, as one autograd function.

A call processes several environments over many steps, forward or backward; episodes may start at any step. The input's
part of the gates and the gradients of all weights are large products of torch, before and after the loops.
"""

from __future__ import annotations

import ctypes
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
"""The working copy, which the loops update in place."""
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


class _Tape(ctypes.Structure):
    """The struct of the C file."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in Sizes._fields),
        ("threshold", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("starts", "recurrent", "interface", "bias")),
        *((name, ctypes.c_void_p) for name in ("gates", "carried", "cells", "tanh_cells", "features", "parameters")),
        *((name, ctypes.c_void_p) for name in ("weights", "written", "content", "linked", "near_words", "words")),
        *((name, ctypes.c_void_p) for name in ("read_slots", "written_slots", "near", "places")),
        *((name, ctypes.c_void_p) for name in WORKING),
        *((name, ctypes.c_void_p) for name in ("fresh_memory", "fresh_norms", "d_features", "d_written")),
        *((name, ctypes.c_void_p) for name in ("d_gates", "d_parameters", "d_memory", "d_weights", "d_cell")),
        *((name, ctypes.c_void_p) for name in ("d_carried", "d_hidden")),
    ]


def usable(reference: Tensor, slots: int, heads: int) -> bool:
    """Whether the loops support this memory: on a CPU, with a compiler. `reference`: one of its parameters."""
    return slots * heads <= MAX_NUMBERS and loops.usable(SOURCE, reference)


class Steps:
    """The arrays of a sequence, by their names in the C file.

    Args:
        sizes: of the memory.
        threshold: δ, above which a weight counts as use.
        state: before the first step; not modified.
        starts: bool `[T, B]`; None: no episode starts.
        fresh: memory and norms at the start of an episode, `[N, W]` and `[N]`.
        gates: the input's part of the gates, `[T, B, 4 H]`; written to.
    """

    @torch.no_grad()
    def __init__(
        self,
        sizes: Sizes,
        threshold: float,
        state: Mapping[str, Tensor],
        starts: Tensor | None,
        fresh: tuple[Tensor, Tensor],
        gates: Tensor,
    ) -> None:
        self.sizes, self.threshold, self.length = sizes, threshold, len(gates)
        batch, size, _, word, heads, reads, links = sizes
        count = heads * reads

        def allocate(*shape: int, extra: int = 0, dtype: torch.dtype = gates.dtype) -> Tensor:
            return gates.new_empty(self.length + extra, batch, *shape, dtype=dtype)

        named = {"norms": "inverse_norm"}
        self.working = {
            name: state[named.get(name, name)].detach().clone(memory_format=torch.contiguous_format) for name in WORKING
        }
        self.kept = {
            "gates": gates,
            "carried": allocate(size + heads * word, extra=1),
            "cells": allocate(size, extra=1),
            "tanh_cells": allocate(size),
            "features": allocate(size + heads * word),
            "parameters": allocate(heads * (word + 4) + word + 2),
            "weights": allocate(heads, reads, extra=1),
            "written": allocate(count + 1),
            "content": allocate(heads, reads),
            "linked": allocate(heads, reads, 2, links),
            "near_words": allocate(count, word),
            "words": allocate(count, word),
            "read_slots": allocate(heads, reads, extra=1, dtype=torch.int32),
            "written_slots": allocate(count + 1, dtype=torch.int32),
            "near": allocate(count, dtype=torch.int32),
            "places": allocate(heads, reads * (1 + 2 * links), dtype=torch.int32),
        }
        self.kept["carried"][0] = torch.cat([state["hidden"], state["read_vectors"].flatten(1)], 1)
        self.kept["cells"][0] = state["cell"]
        self.kept["weights"][0] = state["read_weights"]
        self.kept["read_slots"][0] = state["read_slots"]
        self.fresh = dict(zip(("fresh_memory", "fresh_norms"), fresh, strict=True))
        if starts is not None:
            self.kept["starts"] = starts.contiguous()


def make_loops(
    sizes: Sizes, threshold: float, weights: tuple[Tensor, Tensor], forward: bool, arrays: Mapping[str, Tensor]
) -> Loops:
    """The loops over `arrays`, with weights packed for one direction: those in the gates, and the interface's."""
    found = Loops(SOURCE, weights[0], _Tape(*sizes, threshold), BLOCK)
    found.pack(dict(zip(("recurrent", "interface"), weights, strict=True)), forward)
    found.set(arrays)
    return found


class NativeSequence(torch.autograd.Function):
    """All steps, with a custom backward.

    Inputs: `Steps`; the input's part of the gates; the weights of hidden state and words read in the gates,
    `[4 H, H + R W]`; those and the bias of the interface; the state before the first step, as `DIFFERENTIATED`.
    Outputs: hidden state and words read after each step `[T, B, H + R W]`; cell, memory, w^r and w^W after the last.
    """

    @staticmethod
    def forward(
        ctx: Any, steps: Steps, gates: Tensor, recurrent: Tensor, interface: Tensor, bias: Tensor, *state: Tensor
    ) -> tuple[Tensor, ...]:
        kept, weights = steps.kept, (recurrent, interface)
        arrays = {"bias": bias, **steps.working, **steps.fresh, **kept}
        make_loops(steps.sizes, steps.threshold, weights, True, arrays).forward(0, steps.length)
        ctx.sizes, ctx.threshold, ctx.names = steps.sizes, steps.threshold, (*kept,)
        ctx.save_for_backward(recurrent, interface, *kept.values())
        return kept["features"], kept["cells"][-1], steps.working["memory"], kept["weights"][-1], kept["written"][-1]

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_features: Tensor, d_cell: Tensor, d_memory: Tensor, d_weights: Tensor, d_written: Tensor
    ) -> tuple[Tensor | None, ...]:
        recurrent, interface, *saved = ctx.saved_tensors
        kept = dict(zip(ctx.names, saved, strict=True))
        sizes, size = ctx.sizes, ctx.sizes.hidden
        ends = {"d_cell": d_cell, "d_memory": d_memory, "d_weights": d_weights}
        step_arrays = {name: end.clone(memory_format=torch.contiguous_format) for name, end in ends.items()}
        step_arrays |= {"d_features": d_features.contiguous(), "d_written": d_written.contiguous()}
        step_arrays |= {f"d_{name}": torch.empty_like(kept[name]) for name in ("gates", "parameters")}
        step_arrays |= {"d_carried": torch.zeros_like(kept["carried"][0]), "d_hidden": torch.empty_like(d_cell)}
        arrays = {**kept, **step_arrays}
        make_loops(sizes, ctx.threshold, (recurrent, interface), False, arrays).backward(0, len(d_features))
        d_gates, d_parameters, d_carried = step_arrays["d_gates"], step_arrays["d_parameters"], step_arrays["d_carried"]
        d_recurrent = d_gates.flatten(0, 1).t() @ kept["carried"][:-1].flatten(0, 1)
        d_interface = d_parameters.flatten(0, 1).t() @ kept["features"].flatten(0, 1)[:, :size]
        d_reads = d_carried[:, size:].reshape(-1, sizes.heads, sizes.word)
        d_state = (
            d_carried[:, :size],
            step_arrays["d_cell"],
            d_reads,
            step_arrays["d_memory"],
            step_arrays["d_weights"],
        )
        return (None, d_gates, d_recurrent, d_interface, d_parameters.sum((0, 1)), *d_state)
