"""Plastic networks over time on a CPU, by the C loops of `fast_traces.c`.

The loops process one environment after another, so that its trace, 64 KiB for 128 units, stays in the cache over all
steps. One trace per √T steps is stored, as in `fast_sequence.py`.
"""

from __future__ import annotations

import ctypes
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from policies.memories.steps import State
from policies.native import loops
from policies.native.compiler import parallel_for
from policies.native.loops import Loops, padded_size

SOURCE = Path(__file__).with_name("fast_traces.c")
MIN_NUMBERS = 2**19
"""A single step uses the loops if all traces together have at least this many numbers."""


class Plasticity(NamedTuple):
    """The trained parameters, and the rule; see `memory.PlasticNetwork`."""

    w: Tensor
    alpha: Tensor
    eta: Tensor
    rule: str
    clip: float | None

    def padded(self) -> Plasticity:
        """A copy without gradients, padded with zeros."""
        w, alpha = padded(self.w.detach(), 2), self.alpha.detach()
        return self._replace(w=w, alpha=alpha if self.shared else padded(alpha, 2), eta=self.eta.detach())

    @property
    def shared(self) -> bool:
        """Whether all connections have one α."""
        return self.alpha.numel() == 1


def usable(reference: Tensor) -> bool:
    """Whether the loops support the device and dtype of `reference`."""
    return loops.usable(SOURCE, reference)


def faster_for_a_step(hebb: Tensor) -> bool:
    """Whether a single unrecorded step is faster with the loops: large traces `[B, n, n]` without padding."""
    return hebb.numel() >= MIN_NUMBERS and padded_size(hebb.shape[-1], hebb) == hebb.shape[-1]


def padded(tensor: Tensor, dimensions: int = 1) -> Tensor:
    """`tensor` with its last dimension, or last two, padded with zeros to whole SIMD vectors; contiguous."""
    missing = padded_size(tensor.shape[-1], tensor) - tensor.shape[-1]
    return F.pad(tensor, (0, missing) * dimensions) if missing else tensor.contiguous()


class NativeTape:
    """`length` steps of a plastic network, stored while they run, without gradients.

    Args:
        length: maximum number of steps.
        hidden, hebb: the state before the first step; not modified.
        network: the parameters.
        keep_traces: whether traces are stored for the backward pass.
    """

    @torch.no_grad()
    def __init__(
        self, length: int, hidden: Tensor, hebb: Tensor, network: Plasticity, keep_traces: bool = True
    ) -> None:
        self.network, self.first = network.padded(), (padded(hidden.detach()), padded(hebb.detach(), 2))
        (batch, self.size), width = hidden.shape, self.first[0].shape[1]
        self.length, self.count, self.checkpoint_interval = length, 0, math.isqrt(max(length - 1, 0)) + 1
        self.before, self.after = hidden.new_empty(2, length, batch, width)
        self.after[:, :, self.size :] = 0
        self.hebb = torch.empty_like(self.first[1])
        self.checkpoints = hidden.new_empty(
            -(-length // self.checkpoint_interval) if keep_traces else 0, *self.hebb.shape
        )
        self.starts: Tensor | None = None
        self._loops = TraceLoops(self.network, self.before, self.after, self.checkpoints, self.checkpoint_interval)
        self._loops.set({"first_hidden": self.first[0], "first_hebb": self.first[1], "hebb": self.hebb})

    @property
    def full(self) -> bool:
        return self.count == self.length

    def state(self) -> State:
        if not self.count:
            return {"hidden": self.first[0][:, : self.size], "hebb": self.first[1][:, : self.size, : self.size]}
        return {
            "hidden": self.after[self.count - 1, :, : self.size],
            "hebb": self.hebb[:, : self.size, : self.size],
        }

    @torch.no_grad()
    def step(self, projected: Tensor, starts: Tensor | None) -> None:
        """Runs a step. `projected`: W_in x + b, `[B, n]`."""
        self.after[self.count, :, : self.size] = projected
        if starts is not None:
            if self.starts is None:
                self._may_start()
            assert self.starts is not None
            self.starts[self.count] = starts
        self._loops.forward(self.count, self.count + 1)
        self.count += 1

    @torch.no_grad()
    def run(self, projected: Tensor, starts: Tensor | None) -> None:
        """Runs all steps. `projected`: `[T, B, n]`; `starts`: `[T, B]`."""
        self.after[:, :, : self.size] = projected
        if starts is not None:
            self._may_start()
            assert self.starts is not None
            self.starts.copy_(starts)
        self._loops.forward(0, self.length)
        self.count = self.length

    def _may_start(self) -> None:
        self.starts = torch.zeros(self.after.shape[:2], dtype=torch.bool)
        self._loops.set({"starts": self.starts})


class TraceLoops(Loops):
    """The C functions with their arrays.

    Args:
        network: the parameters, padded.
        before: x of all steps, `[T, B, n]`.
        after: W_in x + b of all steps on input, y on output, `[T, B, n]`.
        checkpoints: the trace before each `interval`-th step, `[.., B, n, n]`; empty: none is stored.
        interval: see `checkpoints`.
    """

    def __init__(self, network: Plasticity, before: Tensor, after: Tensor, checkpoints: Tensor, interval: int) -> None:
        steps, batch, size = before.shape
        flags = (network.shared, network.rule == "oja", network.clip is not None)
        super().__init__(SOURCE, before, (batch, size, steps, interval, *flags), batch)
        clip = before.new_full((1,), network.clip or 0.0)
        self.set({"w": network.w, "alpha": network.alpha, "eta": network.eta, "clip": clip})
        self.set({"before": before, "after": after} | ({"checkpoints": checkpoints} if len(checkpoints) else {}))

    def backward_over(self, steps: int) -> None:
        """The backward pass over the steps `steps` - 1 ... 0.

        Raises:
            MemoryError: the traces between two stored ones do not fit into memory.
        """
        self.tape.steps, tape, succeeded = steps, ctypes.byref(self.tape), list[int]()

        def run(*rows: int) -> None:
            succeeded.append(self.functions.backward(tape, *map(ctypes.c_int64, rows)))

        parallel_for(run, self.tape.batch)
        if not all(succeeded):
            raise MemoryError(
                "not enough memory for the traces of the backward pass: lower num_envs, n_steps or hidden_size"
            )


class NativeSequence(torch.autograd.Function):
    """The steps of a full `NativeTape`, with a custom backward; inputs and outputs as of `PlasticSequence`."""

    @staticmethod
    def forward(ctx: Any, tape: NativeTape, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        network = tape.network
        ctx.save_for_backward(tape.before, tape.after, tape.checkpoints, network.w, network.alpha, network.eta)
        ctx.rule, ctx.clip, ctx.starts = network.rule, network.clip, tape.starts
        ctx.size, ctx.count, ctx.interval = tape.size, tape.count, tape.checkpoint_interval
        return tape.after[: tape.count, :, : tape.size], tape.state()["hebb"].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_after: Tensor, d_hebb: Tensor) -> tuple[Tensor | None, ...]:
        before, after, checkpoints, w, alpha, eta = ctx.saved_tensors
        network, size, count = Plasticity(w, alpha, eta, ctx.rule, ctx.clip), ctx.size, ctx.count
        loops = TraceLoops(network, before, after, checkpoints, ctx.interval)
        d_after, d_hebb = padded(d_after), padded(d_hebb.clone(memory_format=torch.contiguous_format), 2)
        d_input, d_hidden = torch.empty_like(d_after), torch.zeros_like(after[0])
        d_alpha = after.new_zeros(len(d_hebb), *alpha.shape)
        d_eta = after.new_zeros(len(d_hebb))
        loops.set({"d_after": d_after, "d_input": d_input, "d_hidden": d_hidden, "d_hebb": d_hebb})
        loops.set({"d_alpha": d_alpha, "d_eta": d_eta})
        if ctx.starts is not None:
            loops.set({"starts": ctx.starts})
        loops.backward_over(count)
        d_w = before[:count].flatten(0, 1).t() @ d_input.flatten(0, 1)
        d_alpha = d_alpha.sum(0)
        if not network.shared:
            d_alpha = d_alpha[:size, :size]
        gradients = (d_input[:, :, :size], d_hidden[:, :size], d_hebb[:, :size, :size], d_w[:size, :size], d_alpha)
        return (None, *gradients, d_eta.sum(0, keepdim=True))
