"""Plastic networks over time on a CPU, by the C loops of `fast_traces.c`.

The loops process one environment after another. Its trace, 64 KiB for 128 units, stays in the cache over all steps,
which is not the case for torch's operations over all environments. One trace per √T steps is stored, as in
`fast_sequence.py`.
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
from policies.native.compiler import shared_out
from policies.native.loops import Loops

SOURCE = Path(__file__).with_name("fast_traces.c")
LANES_BYTES = 64
"""Units are padded to a multiple of this many bytes, the widest SIMD vector."""
LEAST = 2**19
"""With at least this many numbers in all traces, a single step is faster with the loops."""


class Plasticity(NamedTuple):
    """The trained parameters, and the rule: as in `memory.PlasticNetwork`."""

    w: Tensor
    alpha: Tensor
    eta: Tensor
    rule: str
    clip: float | None

    def filled(self) -> Plasticity:
        """A copy without gradients, padded with zeros."""
        w, alpha = filled(self.w.detach(), 2), self.alpha.detach()
        return self._replace(w=w, alpha=alpha if self.shared else filled(alpha, 2), eta=self.eta.detach())

    @property
    def shared(self) -> bool:
        """Whether all connections have one α."""
        return self.alpha.numel() == 1


class _Tape(ctypes.Structure):
    """As in the C file."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "size", "steps", "stride", "shared", "oja", "clipped")),
        *((name, ctypes.c_void_p) for name in ("w", "alpha", "eta", "clip", "starts", "before", "after")),
        *((name, ctypes.c_void_p) for name in ("first_hidden", "first_hebb", "hebb", "kept")),
        *((name, ctypes.c_void_p) for name in ("d_after", "d_given", "d_hidden", "d_hebb", "d_alpha", "d_eta")),
    ]


def usable(like: Tensor) -> bool:
    """Whether the loops can be used: on a CPU, with a compiler. `like`: a parameter of the network."""
    return loops.usable(SOURCE, like)


def worth_it(hebb: Tensor) -> bool:
    """Whether a single unrecorded step is faster with the loops: large traces `[B, n, n]` without padding."""
    return hebb.numel() >= LEAST and hebb.shape[-1] % (LANES_BYTES // hebb.itemsize) == 0


def filled(given: Tensor, dimensions: int = 1) -> Tensor:
    """`given` with its last dimension, or last two, padded with zeros to whole SIMD vectors; contiguous."""
    missing = -given.shape[-1] % (LANES_BYTES // given.itemsize)
    return F.pad(given, (0, missing) * dimensions) if missing else given.contiguous()


class NativeTape:
    """`length` steps of a plastic network, stored as they are taken, without gradients.

    Args:
        length: maximum number of steps.
        hidden, hebb: the state before the first step; not modified.
        network: its parameters.
        kept: whether the steps will be differentiated.
    """

    @torch.no_grad()
    def __init__(self, length: int, hidden: Tensor, hebb: Tensor, network: Plasticity, kept: bool = True) -> None:
        self.network, self.first = network.filled(), (filled(hidden.detach()), filled(hebb.detach(), 2))
        (batch, self.size), width = hidden.shape, self.first[0].shape[1]
        self.length, self.count, self.stride = length, 0, math.isqrt(max(length - 1, 0)) + 1
        self.before, self.after = hidden.new_empty(2, length, batch, width)
        self.after[:, :, self.size :] = 0
        self.hebb = torch.empty_like(self.first[1])
        self.kept = hidden.new_empty(-(-length // self.stride) if kept else 0, *self.hebb.shape)
        self.starts: Tensor | None = None
        self._loops = TraceLoops(self.network, self.before, self.after, self.kept, self.stride)
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
    def step(self, given: Tensor, starts: Tensor | None) -> None:
        """Take a step. `given`: what the input gives each unit, W_in x + b, `[B, n]`."""
        self.after[self.count, :, : self.size] = given
        if starts is not None:
            if self.starts is None:
                self._may_start()
            assert self.starts is not None
            self.starts[self.count] = starts
        self._loops.forward(self.count, self.count + 1)
        self.count += 1

    @torch.no_grad()
    def run(self, given: Tensor, starts: Tensor | None) -> None:
        """Take all steps. `given`: `[T, B, n]`; `starts`: `[T, B]`."""
        self.after[:, :, : self.size] = given
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
    """The C functions and their arrays.

    Args:
        network: its parameters, padded.
        before: x of all steps, `[T, B, n]`.
        after: of all steps, `[T, B, n]`: W_in x + b on input, y on output.
        kept: the trace before each `stride`-th step, `[.., B, n, n]`; empty: none is stored.
    """

    def __init__(self, network: Plasticity, before: Tensor, after: Tensor, kept: Tensor, stride: int) -> None:
        steps, batch, size = before.shape
        flags = (network.shared, network.rule == "oja", network.clip is not None)
        super().__init__(SOURCE, before, _Tape(batch, size, steps, stride, *flags), batch)
        clip = before.new_full((1,), network.clip or 0.0)
        self.set({"w": network.w, "alpha": network.alpha, "eta": network.eta, "clip": clip})
        self.set({"before": before, "after": after} | ({"kept": kept} if len(kept) else {}))

    def back_from(self, steps: int) -> None:
        """The backward pass over the steps `steps` - 1 ... 0.

        Raises:
            MemoryError: the traces between two stored ones do not fit into memory.
        """
        self.tape.steps, tape, done = steps, ctypes.byref(self.tape), list[int]()

        def take(*rows: int) -> None:
            done.append(self.functions.backward(tape, *map(ctypes.c_int64, rows)))

        shared_out(take, self.tape.batch)
        if not all(done):
            raise MemoryError("there is no room for the traces between two that were kept")


class NativeSequence(torch.autograd.Function):
    """The steps of a full `NativeTape` and their derivative; arguments and results as of `PlasticSequence`."""

    @staticmethod
    def forward(ctx: Any, tape: NativeTape, *made_of: Tensor) -> tuple[Tensor, Tensor]:
        network = tape.network
        ctx.save_for_backward(tape.before, tape.after, tape.kept, network.w, network.alpha, network.eta)
        ctx.rule, ctx.clip, ctx.starts = network.rule, network.clip, tape.starts
        ctx.size, ctx.count, ctx.stride = tape.size, tape.count, tape.stride
        return tape.after[: tape.count, :, : tape.size], tape.state()["hebb"].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_after: Tensor, d_hebb: Tensor) -> tuple[Tensor | None, ...]:
        before, after, kept, w, alpha, eta = ctx.saved_tensors
        network, size, count = Plasticity(w, alpha, eta, ctx.rule, ctx.clip), ctx.size, ctx.count
        native = TraceLoops(network, before, after, kept, ctx.stride)
        d_after, d_hebb = filled(d_after), filled(d_hebb.clone(memory_format=torch.contiguous_format), 2)
        d_given, d_hidden = torch.empty_like(d_after), torch.zeros_like(after[0])
        d_alpha = after.new_zeros(len(d_hebb), *alpha.shape)
        d_eta = after.new_zeros(len(d_hebb))
        native.set({"d_after": d_after, "d_given": d_given, "d_hidden": d_hidden, "d_hebb": d_hebb})
        native.set({"d_alpha": d_alpha, "d_eta": d_eta})
        if ctx.starts is not None:
            native.set({"starts": ctx.starts})
        native.back_from(count)
        d_w = before[:count].flatten(0, 1).t() @ d_given.flatten(0, 1)
        d_alpha = d_alpha.sum(0)
        if not network.shared:
            d_alpha = d_alpha[:size, :size]
        found = (d_given[:, :, :size], d_hidden[:, :size], d_hebb[:, :size, :size], d_w[:size, :size], d_alpha)
        return (None, *found, d_eta.sum(0, keepdim=True))
