"""The fast form of the plastic networks over time: a sequence as one autograd function with a custom backward.

Single steps store a trace, a matrix per environment, for each step. Here the forward pass stores the vectors of all
steps and about √T traces; the backward pass recomputes the traces between two stored ones from the vectors (gradient
checkpointing). T steps need about 2 √T matrices. Undoing the updates would need none, but it divides by 1 - η at every
step, and η is trained, so the error would not be bounded.

Vectors are rows, x = h_{t-1} and y = h_t; G is the trace before a step. Equations as in `memory.py`.

On a CPU with a C compiler, C loops do the same (`fast_native.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from policies.memories.contract import MemoryStep, State, Unrolled
from policies.memories.plastic import fast_native
from policies.memories.plastic.fast_native import NativeSequence, NativeTape, Plasticity
from policies.memories.plastic.rules import advance, decay, plastic_input
from policies.memories.time.taped import TapedForm

MIN_STEPS = 20
"""Minimum number of steps that a recording by C loops allocates."""

tanh_backward = torch.ops.aten.tanh_backward.default


class Tape:
    """Steps of a plastic network, stored while they run, without gradients.

    Args:
        hidden, hebb: the state before the first step; not modified.
        w, alpha, eta, rule, clip: as in `memory.PlasticNetwork`; `clip` is None except for the rule "clipped".
    """

    def __init__(
        self, hidden: Tensor, hebb: Tensor, w: Tensor, alpha: Tensor, eta: Tensor, rule: str, clip: float | None
    ) -> None:
        self.hidden = hidden.detach()
        self.hebb = hebb.detach().clone(memory_format=torch.contiguous_format)
        self.w, self.alpha, self.eta, self.rule, self.clip = w.detach(), alpha.detach(), eta.detach(), rule, clip
        self.xs: list[Tensor] = []
        self.ys: list[Tensor] = []
        self.starts: list[Tensor | None] = []
        self.interval = 2
        self.checkpoints: list[Tensor] = []
        """The trace before every `interval`-th step. With more than 2 `interval` traces every second one is dropped."""

    full = False

    def state(self) -> State:
        return {"hidden": self.hidden, "hebb": self.hebb}

    def step(self, projected: Tensor, starts: Tensor | None) -> None:
        """Runs a step. `projected`: W_in x + b, `[B, n]`."""
        x = self.hidden
        if starts is not None:
            x = x.masked_fill(starts[:, None], 0.0)
            self.hebb.masked_fill_(starts[:, None, None], 0.0)
        if len(self.ys) % self.interval == 0:
            if len(self.checkpoints) == 2 * self.interval:
                self.checkpoints, self.interval = self.checkpoints[::2], 2 * self.interval
            self.checkpoints.append(self.hebb.clone())
        self.hidden = torch.addmm(projected, x, self.w).add_(plastic_input(x, self.hebb, self.alpha)).tanh_()
        self.xs.append(x)
        self.ys.append(self.hidden)
        self.starts.append(starts)
        advance(self.hebb, x, self.hidden, self.eta, self.rule, self.clip, out=self.hebb)


class PlasticSequence(torch.autograd.Function):
    """The steps of a full `Tape`, with a custom backward.

    Inputs: the tape; and the tensors that it was created from, for their gradients: W_in x + b of each step
    `[T, B, n]`, `hidden`, `hebb`, w, α, η.

    Outputs: `hidden` after each step `[T, B, n]`; `hebb` after the last step.
    """

    @staticmethod
    def forward(ctx: Any, tape: Tape, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(
            torch.stack(tape.xs), torch.stack(tape.ys), tape.w, tape.alpha, tape.eta, *tape.checkpoints
        )
        ctx.starts, ctx.interval, ctx.rule, ctx.clip = tape.starts, tape.interval, tape.rule, tape.clip
        return torch.stack(tape.ys), tape.hebb.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_ys: Tensor, d_hebb: Tensor) -> tuple[Tensor | None, ...]:
        xs, ys, w, alpha, eta, *checkpoints = ctx.saved_tensors
        starts, interval, rule, clip = ctx.starts, ctx.interval, ctx.rule, ctx.clip
        length, shared = len(ys), alpha.numel() == 1
        d_hebb, d_x = d_hebb.clone(), torch.zeros_like(ys[0])
        d_input = torch.empty_like(ys)
        d_alpha, d_eta = torch.zeros_like(alpha), torch.zeros_like(eta)
        buffer = torch.empty_like(d_hebb)
        traces = d_hebb.new_empty(min(interval, length), *d_hebb.shape)

        def rows(vectors: Tensor, matrices: Tensor) -> Tensor:
            """Each vector times its matrix: `[B, n]`, `[B, n, m]` to `[B, m]`."""
            return torch.bmm(vectors.unsqueeze(1), matrices).squeeze(1)

        for begin in reversed(range(0, length, interval)):
            end = min(begin + interval, length)
            traces[0] = checkpoints[begin // interval]
            for t in range(begin + 1, end):
                index = t - begin
                advance(traces[index - 1], xs[t - 1], ys[t - 1], eta, rule, clip, out=traces[index])
                if starts[t] is not None:
                    traces[index].masked_fill_(starts[t][:, None, None], 0.0)
            for t in reversed(range(begin, end)):
                x, y, g = xs[t], ys[t], traces[t - begin]
                d_y = d_x.add_(d_ys[t])

                # the update: `d_hebb`, the gradient of the trace after the step, becomes that of `g`
                if clip is not None:
                    torch.addcmul(g, (eta * x).unsqueeze(2), y.unsqueeze(1), out=buffer)
                    d_hebb.masked_fill_(buffer.abs_() > clip, 0.0)
                from_x = rows(x, d_hebb)  # Σ_i x[i] d_hebb[i,j]
                d_x = rows(y, d_hebb.transpose(1, 2)).mul_(eta)
                d_rate = from_x * y
                d_y.addcmul_(from_x, eta)
                if clip is None:
                    d_decay = torch.mul(d_hebb, g, out=buffer).sum(1)
                    if rule == "oja":
                        d_decay.mul_(y)
                        d_y.addcmul_(d_decay, eta, value=-2)
                        d_decay.mul_(y)
                    d_rate -= d_decay
                    d_hebb.mul_(decay(y, eta, rule))
                d_eta += d_rate.sum()

                # the activations, (1)
                d_z = tanh_backward(d_y, y)
                d_input[t] = d_z
                if shared:
                    d_x.addmm_(d_z, w.t()).addcmul_(rows(d_z, g.transpose(1, 2)), alpha)
                    d_alpha += torch.vdot(rows(x, g).flatten(), d_z.flatten())
                    d_hebb.addcmul_((alpha * x).unsqueeze(2), d_z.unsqueeze(1))
                else:
                    torch.addcmul(w, alpha, g, out=buffer)
                    d_x += rows(d_z, buffer.transpose(1, 2))
                    torch.mul(x.unsqueeze(2), d_z.unsqueeze(1), out=buffer)
                    d_hebb.addcmul_(alpha, buffer)
                    d_alpha += buffer.mul_(g).sum(0)
                if starts[t] is not None:
                    d_x.masked_fill_(starts[t][:, None], 0.0)
                    d_hebb.masked_fill_(starts[t][:, None, None], 0.0)

        d_w = xs.flatten(0, 1).t() @ d_input.flatten(0, 1)
        return None, d_input, d_x, d_hebb, d_w, d_alpha, d_eta


class FastPlastic(TapedForm):
    """Sequences on a tape with few traces.

    Uses C loops (`fast_native.py`) on a CPU with a compiler, also while acting; otherwise torch, only for sequences
    that need gradients.
    """

    memory: Any

    def fits(self, length: int, resets: Sequence[int] | None, grad: bool) -> bool:
        return grad or fast_native.usable(self.memory.w)

    def step(self, x: Tensor, state: State) -> MemoryStep:
        hebb = state["hebb"]
        if torch.is_grad_enabled() or not fast_native.usable(hebb) or not fast_native.faster_for_a_step(hebb):
            return super().step(x, state)
        tape = NativeTape(1, state["hidden"], hebb, self.network(), keep_traces=False)
        tape.step(self.projected(x), None)
        after = tape.state()
        return MemoryStep(after["hidden"], after, {})

    def projected(self, xs: Tensor) -> Tensor:
        projected: Tensor = self.memory.input(xs)
        return projected

    def network(self) -> Plasticity:
        memory = self.memory
        alpha, eta = memory.plasticity()
        return Plasticity(memory.w, alpha, eta, memory.rule, memory.clip)

    def tape(self, state: State, expected_steps: int) -> Tape | NativeTape:
        if fast_native.usable(self.memory.w):
            return NativeTape(max(expected_steps, MIN_STEPS), state["hidden"], state["hebb"], self.network())
        return Tape(state["hidden"], state["hebb"], *self.network())

    def output(self, state: State) -> Tensor:
        return state["hidden"]

    def run(
        self, xs: Tensor, state: State, starts: Tensor | None = None, resets: Sequence[int] | None = None
    ) -> Unrolled:
        if not xs.numel() or not fast_native.usable(self.memory.w):
            return super().run(xs, state, starts, resets)
        projected, grad = self.projected(xs), torch.is_grad_enabled()
        tape = NativeTape(len(xs), state["hidden"], state["hebb"], self.network(), keep_traces=grad)
        tape.run(projected, starts)
        return self.finish(tape, projected, state)

    def finish(self, tape: Any, projected: Tensor, state: State) -> Unrolled:
        memory = self.memory
        leaves = (projected, state["hidden"], state["hebb"], memory.w, *memory.plasticity())
        sequence: Any = NativeSequence if isinstance(tape, NativeTape) else PlasticSequence
        outputs, hebb = sequence.apply(tape, *leaves)
        return Unrolled(outputs, {"hidden": outputs[-1], "hebb": hebb}, {})
