"""Kanerva++ with a controller on a CPU: whole sequences by the C loops of `fast_blocks.c`, as one autograd function.

A call processes several environments over many steps, forward or backward; episodes may start at any step. The input's
part of the gates and the gradients of all weights are large products of torch, before and after the loops.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from policies.memories.contract import MemoryStep, State, Unrolled
from policies.memories.kanerva.form import Read, Steps
from policies.memories.shared.readers import ReaderForm
from policies.memories.steps import Queries
from policies.memories.time.recording import Recording, ReplayedRecording
from policies.memories.time.scopes import cached
from policies.native.compiler import disabled, library, parallel_for
from policies.native.packed import packed

SOURCE = Path(__file__).with_name("fast_blocks.c")
CROP = 4
"""The only side of a block that the loops support."""
BLOCK = 64
"""Environments that are processed over time together, so that their memories stay in the cache."""

_NUMBERS = ("batch", "hidden", "read", "channels", "size", "heads", "features")
_ARRAYS = (
    *("starts", "written", "zeros", "recurrent", "emit", "point", "prior", "readout"),
    *("emit_bias", "point_bias", "prior_bias", "readout_bias"),
    *("gates", "tanh_cells", "cells", "before", "after", "normed", "scales", "emitted", "corners"),
    *("covered", "shown", "seen", "memory", "d_after", "d_features", "d_corners"),
    *("d_gates", "d_emitted", "d_sums", "d_read", "d_carried", "d_cell", "d_memory", "d_seen", "d_normed"),
)
Arrays = Mapping[str, Tensor | None]


class _Tape(ctypes.Structure):
    """The struct of the C file."""

    _fields_ = [*((name, ctypes.c_int64) for name in _NUMBERS), *((name, ctypes.c_void_p) for name in _ARRAYS)]


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
    """Matrices `[out, in]` and biases."""

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


def usable(like: Tensor, crop: int) -> bool:
    """Whether the loops can be used for states such as `like`: on a CPU, with a compiler."""
    there = like.device.type == "cpu" and like.shape[0] > 0 and crop == CROP
    return there and not disabled() and library(SOURCE, like.dtype) is not None


def pack(weights: Weights, forward: bool) -> dict[str, Tensor]:
    """The matrices that the loops use, for one direction."""
    functions = library(SOURCE, weights.emit.dtype)
    assert functions is not None
    return {name: packed(functions, getattr(weights, name).detach(), forward) for name in RECURRENT}


def loop(function: str, sizes: Sizes, steps: int, arrays: Arrays) -> None:
    """All steps of all environments, "forward" or "backward"."""
    tape, like = _Tape(*sizes), arrays["gates"]
    assert like is not None
    for name, array in arrays.items():
        if array is not None:
            assert array.is_contiguous(), name
            setattr(tape, name, array.data_ptr())
    call = getattr(library(SOURCE, like.dtype), function)

    def take(first: int, last: int) -> None:
        for at in range(first, last, BLOCK):
            numbers = map(ctypes.c_int64, (0, steps, at, min(at + BLOCK, last)))
            call(ctypes.byref(tape), *numbers)

    parallel_for(take, sizes.batch)


class Blocks(torch.autograd.Function):
    """The steps of `BlockKanerva` and their derivative, if keys and latents are means.

    Inputs: sizes; the packed weights, without gradients; the controller's inputs `[T, B, F]`; 1 where an input is
    written, `[T, B]`; starts, bool `[T, B]`, or None; hidden state, cell, memory and read-out before the first step;
    the `Weights`.

    Outputs: hidden state and read-out, concatenated, `[T, B, H + R]`; features of the windows `[T, B, F]`; cell, memory
    and corners of block and windows, in cells `[B, 1 + K, 2]`, after the last step.
    """

    @staticmethod
    def forward(
        ctx: Any,
        sizes: Sizes,
        packs: dict[str, Tensor],
        xs: Tensor,
        written: Tensor,
        starts: Tensor | None,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        (hidden, cell, memory, read), weights = tensors[:4], Weights(*tensors[4:])
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
            **{"normed": allocate(sizes.hidden), "scales": allocate(), "emitted": allocate(width)},
            **{
                "corners": allocate(1 + sizes.heads, 2),
                "covered": allocate(patch),
                "shown": allocate(sizes.heads * patch),
            },
            **{
                "seen": allocate(windows + sizes.features),
                "memory": memory.clone(memory_format=torch.contiguous_format),
            },
            **{"written": written.contiguous(), "zeros": cell.new_zeros(sizes.hidden)},
            "starts": None if starts is None else starts.contiguous(),
            **{name: getattr(weights, name) for name in ("emit_bias", "point_bias", "prior_bias", "readout_bias")},
        }
        after, cells, seen = arrays["after"], arrays["cells"], arrays["seen"]
        assert after is not None
        assert cells is not None
        assert seen is not None
        torch.cat([hidden, read], 1, out=arrays["before"][0])  # type: ignore[index]
        cells[0] = cell
        loop("forward", sizes, length, {**arrays, **packs})
        final = arrays.pop("memory")
        ctx.sizes, ctx.names = sizes, (*arrays,)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(xs, *weights, *arrays.values())
        corners = arrays["corners"]
        assert final is not None
        assert corners is not None
        # copies: a view of the last would keep all others
        return after, seen[..., windows:].contiguous(), cells[-1].clone(), final, corners[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given: Tensor | None) -> tuple[Tensor | None, ...]:
        d_after, d_features, d_cell, d_memory, d_corners = (None if d is None else d.contiguous() for d in given)
        sizes: Sizes = ctx.sizes
        xs, *saved = ctx.saved_tensors
        count = len(Weights._fields)
        weights, arrays = Weights(*saved[:count]), dict(zip(ctx.names, saved[count:], strict=True))
        after, seen = arrays["after"], arrays["seen"]
        windows = seen.shape[2] - sizes.features

        def like(name: str) -> Tensor:
            return torch.empty_like(arrays[name])

        state = {
            "d_carried": torch.zeros_like(after[0]),
            "d_cell": torch.zeros_like(arrays["cells"][0]) if d_cell is None else d_cell.clone(),
            "d_memory": seen.new_zeros(sizes.batch, sizes.channels, sizes.size, sizes.size)
            if d_memory is None
            else d_memory.clone(),
        }
        steps = {"d_gates": like("gates"), "d_emitted": like("emitted")}
        steps |= {"d_sums": seen.new_empty(*seen.shape[:2], sizes.features)}
        steps |= {"d_read": seen.new_empty(*seen.shape[:2], sizes.read)}
        scratch = {"d_seen": torch.empty_like(seen[0]), "d_normed": torch.empty_like(arrays["normed"][0])}
        outputs: dict[str, Tensor | None] = {"d_after": torch.zeros_like(after) if d_after is None else d_after}
        outputs |= {"d_features": d_features, "d_corners": d_corners, **arrays, **state, **steps, **scratch}
        loop("backward", sizes, len(xs), {**outputs, **pack(weights, False)})

        def products(d_outs: Tensor, ins: Tensor) -> Tensor:
            # transposed: MKL is faster where the narrower side comes first
            return (ins.flatten(0, 1).t() @ d_outs.flatten(0, 1)).t()

        def total(d_outs: Tensor) -> Tensor:
            return d_outs.flatten(0, 1).sum(0)

        hidden, emits = after[..., : sizes.hidden], len(weights.emit)
        d_gates, d_emitted, d_sums, d_read = (steps[f"d_{name}"] for name in ("gates", "emitted", "sums", "read"))
        d_weights = Weights(
            *(products(d_gates, xs), total(d_gates), products(d_gates, arrays["before"])),
            *(products(d_emitted[..., :emits], arrays["normed"]), total(d_emitted[..., :emits])),
            *(products(d_emitted[..., emits:], hidden), total(d_emitted[..., emits:])),
            *(products(d_sums, seen[..., :windows]), total(d_sums)),
            *(products(d_read, seen), total(d_read)),
        )
        d_xs = d_gates @ weights.input if ctx.needs_input_grad[2] else None
        d_hidden, d_first_read = torch.split(state["d_carried"], [sizes.hidden, sizes.read], 1)
        d_state = (d_hidden, state["d_cell"], state["d_memory"], d_first_read)
        return (None, None, d_xs, None, None, *d_state, *d_weights)


class FastBlocks(ReaderForm):
    """Uses C loops on a CPU with a compiler, if keys are means and there are no questions.

    Otherwise everything that does not pass through the controller is computed for all steps together.
    """

    memory: Any

    def native(self, state: State) -> bool:
        memory = self.memory
        plain = not (memory.sample or memory.query_names)
        return plain and memory.small and usable(state["cell"], memory.crop_size)

    def step(self, x: Tensor, state: State, queries: Queries | None = None) -> MemoryStep:
        if torch.is_grad_enabled() or not self.native(state):
            return super().step(x, state, queries)
        step: MemoryStep = self.memory.single_step(x, state, queries, self.loops)
        return step

    def unroll(
        self,
        xs: Tensor,
        starts: Tensor | None,
        state: State,
        resets: Sequence[int] | None,
        queries: Queries | None = None,
    ) -> Unrolled:
        run_steps = self.loops if self.native(state) else None
        steps = range(len(xs)) if resets is None else resets
        unrolled: Unrolled = self.memory.run(xs, starts, state, steps, queries, run_steps)
        return unrolled

    def record(self, state: State, expected_steps: int) -> Recording:
        """Without loops, stores the graph of each step: replaying the sequence would double the launches."""
        return ReplayedRecording(self.memory, state) if self.native(state) else Recording(self.memory, state)

    def loops(self, seen: Tensor, written: Tensor, starts: Tensor | None, state: State) -> Steps:
        """All steps by the C loops."""
        memory = self.memory
        sizes = Sizes(
            len(written[0]),
            *(memory.controller.hidden_size, memory.output_size - memory.controller.hidden_size),
            *(memory.channels, memory.memory_size, memory.reads, memory.prior.features),
        )
        weights = cached(memory, "loop weights", self.weights)
        packs = cached(memory, "packed", lambda: pack(weights, True))
        began = [state[name] for name in ("hidden", "cell", "memory", "read")]
        after, features, cell, cells, corners = Blocks.apply(  # type: ignore[no-untyped-call]
            sizes, packs, seen, written, starts, *began, *weights
        )
        hidden, output = torch.split(after, [sizes.hidden, sizes.read], 2)
        span = (memory.memory_size - memory.crop_size) / (memory.memory_size - 1)
        places = span * (2 / (memory.memory_size - memory.crop_size) * corners - 1)
        state = {"hidden": hidden[-1], "cell": cell, "memory": cells, "read": output[-1], "places": places}
        read = Read(features, output)
        return Steps(hidden, read, read, state)

    def weights(self) -> Weights:
        """The parameters in the form that the loops use."""
        memory, shared = self.memory, cached(self.memory, "weights", self.memory.weights)
        controller = memory.controller
        assert shared.prior is not None
        sizes = [controller.input_size - memory.read_size, memory.read_size]
        ins, read = torch.split(controller.weight_ih, sizes, 1)
        recurrent = torch.cat([controller.weight_hh, read], 1)
        bias = controller.bias_ih + controller.bias_hh
        return Weights(ins, bias, recurrent, *shared.emit, *shared.point, *shared.prior[0], *shared.readout)
