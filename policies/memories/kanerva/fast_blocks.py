"""Kanerva++ with a controller on a CPU: whole sequences by the C loops of `fast_blocks.c`, as one autograd function.

A call of the loops processes several environments over many steps; episodes may start at any step. Before the loops
torch computes the input's part of the gates, after them the gradients of all weights, for all steps at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from policies.memories.contract import MemoryStep, State, Unrolled
from policies.memories.kanerva.form import Read, StepResults
from policies.memories.shared.readers import ReaderForm
from policies.memories.steps import Queries
from policies.memories.time.recording import Recording, ReplayedRecording
from policies.memories.time.scopes import cached
from policies.native import loops
from policies.native.loops import Loops
from policies.native.packed import packed

SOURCE = Path(__file__).with_name("fast_blocks.c")
CROP = 4
"""Side of a block; the loops support only this one."""
BLOCK = 64
"""Number of environments that the loops process together, so that their memories stay in the cache."""


class Sizes(NamedTuple):
    """Sizes and options of the C loops, in the order of the C file."""

    batch: int
    hidden: int
    read: int
    channels: int
    size: int
    heads: int
    features: int


class Weights(NamedTuple):
    """Matrices `[out, in]` and biases `[out]`."""

    input: Tensor
    """From the input to the controller's gates."""
    input_bias: Tensor
    recurrent: Tensor
    """From the hidden state and the read-out to the gates."""
    emit: Tensor
    """From the normalised hidden state to the write gate and the block."""
    emit_bias: Tensor
    point: Tensor
    """From the hidden state to the keys of the block and of the windows."""
    point_bias: Tensor
    prior: Tensor
    """From the windows to their features."""
    prior_bias: Tensor
    readout: Tensor
    """From windows and features to the read-out."""
    readout_bias: Tensor


RECURRENT = ("recurrent", "emit", "point", "prior", "readout")
"""The fields of `Weights` that the loops use."""


def usable(reference: Tensor, crop: int) -> bool:
    """Whether the loops support blocks of side `crop`, and the device and dtype of `reference`, `[B, ...]`."""
    return reference.shape[0] > 0 and crop == CROP and loops.usable(SOURCE, reference)


def pack(weights: Weights, forward: bool) -> dict[str, Tensor]:
    """The matrices of the loops, packed for the forward or the backward pass."""
    functions = loops.functions_of(SOURCE, weights.emit)
    return {name: packed(functions, getattr(weights, name).detach(), forward) for name in RECURRENT}


class Blocks(torch.autograd.Function):
    """The steps of `BlockKanerva` without sampling, with a custom backward.

    Inputs: sizes; the packed weights, without gradients; the controller's inputs `[T, B, F]`; write mask `[T, B]`: 1
    where the input is written, else 0; starts, bool `[T, B]`, or None; hidden state, cell, memory and read-out before
    the first step; the `Weights`.

    Outputs: hidden state and read-out after each step, concatenated, `[T, B, H + R]`; features of the windows
    `[T, B, F]`; cell, memory and corners of block and windows, in cells `[B, 1 + K, 2]`, after the last step.
    """

    @staticmethod
    def forward(
        ctx: Any,
        sizes: Sizes,
        packs: dict[str, Tensor],
        xs: Tensor,
        write_mask: Tensor,
        starts: Tensor | None,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        (hidden, cell, memory, first_read), weights = tensors[:4], Weights(*tensors[4:])
        length = len(xs)
        width = len(weights.emit) + len(weights.point)
        windows = sizes.heads * sizes.channels * CROP**2
        patch = sizes.channels * (CROP + 1) ** 2

        def allocate(*shape: int, steps: int = length) -> Tensor:
            return cell.new_empty(steps, sizes.batch, *shape)

        gates = allocate(4 * sizes.hidden)
        torch.addmm(weights.input_bias, xs.flatten(0, 1), weights.input.t(), out=gates.flatten(0, 1))
        arrays: dict[str, Tensor | None] = {
            **{"gates": gates, "tanh_cells": allocate(sizes.hidden), "cells": allocate(sizes.hidden, steps=length + 1)},
            **{"before": allocate(sizes.hidden + sizes.read), "after": allocate(sizes.hidden + sizes.read)},
            **{"normalised": allocate(sizes.hidden), "scales": allocate(), "emitted": allocate(width)},
            **{
                "corners": allocate(1 + sizes.heads, 2),
                "old_patches": allocate(patch),
                "read_patches": allocate(sizes.heads * patch),
            },
            **{
                "windows_and_features": allocate(windows + sizes.features),
                "memory": memory.clone(memory_format=torch.contiguous_format),
            },
            **{"write_mask": write_mask.contiguous(), "zeros": cell.new_zeros(sizes.hidden)},
            "starts": None if starts is None else starts.contiguous(),
            **{name: getattr(weights, name) for name in ("emit_bias", "point_bias", "prior_bias", "readout_bias")},
        }
        after, cells, read = arrays["after"], arrays["cells"], arrays["windows_and_features"]
        assert after is not None
        assert cells is not None
        assert read is not None
        torch.cat([hidden, first_read], 1, out=arrays["before"][0])  # type: ignore[index]
        cells[0] = cell
        Loops(SOURCE, cell, sizes, BLOCK).set({**arrays, **packs}).forward(0, length)
        final = arrays.pop("memory")
        ctx.sizes, ctx.names = sizes, (*arrays,)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(xs, *weights, *arrays.values())
        corners = arrays["corners"]
        assert final is not None
        assert corners is not None
        # copies: a view of the last step would keep all steps in memory
        return after, read[..., windows:].contiguous(), cells[-1].clone(), final, corners[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *d_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        d_after, d_features, d_cell, d_memory, d_corners = (None if d is None else d.contiguous() for d in d_outputs)
        sizes: Sizes = ctx.sizes
        xs, *saved = ctx.saved_tensors
        count = len(Weights._fields)
        weights, arrays = Weights(*saved[:count]), dict(zip(ctx.names, saved[count:], strict=True))
        after, read = arrays["after"], arrays["windows_and_features"]
        windows = read.shape[2] - sizes.features

        state = {
            "d_carried": torch.zeros_like(after[0]),
            "d_cell": torch.zeros_like(arrays["cells"][0]) if d_cell is None else d_cell.clone(),
            "d_memory": read.new_zeros(sizes.batch, sizes.channels, sizes.size, sizes.size)
            if d_memory is None
            else d_memory.clone(),
        }
        steps = {f"d_{name}": torch.empty_like(arrays[name]) for name in ("gates", "emitted")}
        steps |= {"d_sums": read.new_empty(*read.shape[:2], sizes.features)}
        steps |= {"d_read": read.new_empty(*read.shape[:2], sizes.read)}
        scratch = {"d_windows_and_features": torch.empty_like(read[0])}
        scratch["d_normalised"] = torch.empty_like(arrays["normalised"][0])
        all_arrays: dict[str, Tensor | None] = {"d_after": torch.zeros_like(after) if d_after is None else d_after}
        all_arrays |= {"d_features": d_features, "d_corners": d_corners, **arrays, **state, **steps, **scratch}
        Loops(SOURCE, after, sizes, BLOCK).set({**all_arrays, **pack(weights, False)}).backward(0, len(xs))

        def products(d_outs: Tensor, ins: Tensor) -> Tensor:
            # transposed, because MKL is faster if the narrower matrix comes first
            return (ins.flatten(0, 1).t() @ d_outs.flatten(0, 1)).t()

        def total(d_outs: Tensor) -> Tensor:
            return d_outs.flatten(0, 1).sum(0)

        hidden, emits = after[..., : sizes.hidden], len(weights.emit)
        d_gates, d_emitted, d_sums, d_read = (steps[f"d_{name}"] for name in ("gates", "emitted", "sums", "read"))
        d_weights = Weights(
            *(products(d_gates, xs), total(d_gates), products(d_gates, arrays["before"])),
            *(products(d_emitted[..., :emits], arrays["normalised"]), total(d_emitted[..., :emits])),
            *(products(d_emitted[..., emits:], hidden), total(d_emitted[..., emits:])),
            *(products(d_sums, read[..., :windows]), total(d_sums)),
            *(products(d_read, read), total(d_read)),
        )
        d_xs = d_gates @ weights.input if ctx.needs_input_grad[2] else None
        d_hidden, d_first_read = torch.split(state["d_carried"], [sizes.hidden, sizes.read], 1)
        d_state = (d_hidden, state["d_cell"], state["d_memory"], d_first_read)
        return (None, None, d_xs, None, None, *d_state, *d_weights)


class FastBlocks(ReaderForm):
    """Uses C loops on a CPU with a compiler, if nothing is sampled and there are no questions.

    Otherwise everything that does not depend on the controller is computed for all steps together.
    """

    memory: Any

    def native(self, state: State) -> bool:
        """Whether the C loops support this memory and state."""
        memory = self.memory
        supported = not (memory.sample or memory.query_names)
        return supported and memory.small and usable(state["cell"], memory.crop_size)

    def step(self, x: Tensor, state: State, queries: Queries | None = None) -> MemoryStep:
        if torch.is_grad_enabled() or not self.native(state):
            return super().step(x, state, queries)
        step: MemoryStep = self.memory.single_step(x, state, queries, self.native_steps)
        return step

    def unroll(
        self,
        xs: Tensor,
        starts: Tensor | None,
        state: State,
        resets: Sequence[int] | None,
        queries: Queries | None = None,
    ) -> Unrolled:
        run_steps = self.native_steps if self.native(state) else None
        steps = range(len(xs)) if resets is None else resets
        unrolled: Unrolled = self.memory.run(xs, starts, state, steps, queries, run_steps)
        return unrolled

    def record(self, state: State, expected_steps: int) -> Recording:
        """Without loops, stores the graph of each step: replaying the sequence would double the kernel launches."""
        return ReplayedRecording(self.memory, state) if self.native(state) else Recording(self.memory, state)

    def native_steps(self, inputs: Tensor, write_mask: Tensor, starts: Tensor | None, state: State) -> StepResults:
        """All steps by the C loops; arguments as of `BlockKanerva.walk_steps`."""
        memory = self.memory
        sizes = Sizes(
            len(write_mask[0]),
            *(memory.controller.hidden_size, memory.output_size - memory.controller.hidden_size),
            *(memory.channels, memory.memory_size, memory.reads, memory.prior.features),
        )
        weights = cached(memory, "loop weights", self.weights)
        packs = cached(memory, "packed", lambda: pack(weights, True))
        first = [state[name] for name in ("hidden", "cell", "memory", "read")]
        after, features, cell, cells, corners = Blocks.apply(  # type: ignore[no-untyped-call]
            sizes, packs, inputs, write_mask, starts, *first, *weights
        )
        hidden, output = torch.split(after, [sizes.hidden, sizes.read], 2)
        span = (memory.memory_size - memory.crop_size) / (memory.memory_size - 1)
        places = span * (2 / (memory.memory_size - memory.crop_size) * corners - 1)
        state = {"hidden": hidden[-1], "cell": cell, "memory": cells, "read": output[-1], "places": places}
        read = Read(features, output)
        return StepResults(hidden, read, read, state)

    def weights(self) -> Weights:
        """The parameters in the form that the loops use."""
        memory, shared = self.memory, cached(self.memory, "weights", self.memory.weights)
        controller = memory.controller
        assert shared.prior is not None
        sizes = [controller.input_size - memory.read_size, memory.read_size]
        w_input, w_read = torch.split(controller.weight_ih, sizes, 1)
        recurrent = torch.cat([controller.weight_hh, w_read], 1)
        bias = controller.bias_ih + controller.bias_hh
        return Weights(w_input, bias, recurrent, *shared.emit, *shared.point, *shared.prior[0], *shared.readout)
