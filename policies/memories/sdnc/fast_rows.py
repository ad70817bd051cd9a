"""A fast form of the SDNC by torch: one copy of the memory, updated in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from policies.memories.contract import MemoryStep, State, Unrolled
from policies.memories.sdnc.sparse import Rows, copied
from policies.memories.time.taped import TapedForm


class RowsInPlace(Rows):
    """As `Rows`, but M is updated in place, and one buffer of M's size has its gradient for the whole sequence.

    The operations form a chain: the backward pass of each receives the buffer from the next operation, adds to a few
    rows or clears them, and passes the same buffer to the previous one. Each operation stores the words that its
    backward pass needs, so writes need not be undone.
    """

    def __init__(self, memory: Tensor, inverse_norm: Tensor) -> None:
        super().__init__(copied(memory), inverse_norm)

    def written(self, rows: Tensor, slots: Tensor, weights: Tensor, word: Tensor) -> Tensor:
        memory: Tensor = WriteRows.apply(self.memory, rows, weights, word)  # type: ignore[no-untyped-call]
        return memory

    def read(self, slots: Tensor) -> Tensor:
        rows = (slots + self.offsets).flatten()
        words, self.memory = ReadRows.apply(self.memory, rows)  # type: ignore[no-untyped-call]
        return words  # type: ignore[no-any-return]

    def reset(self, starts: Tensor, memory: Tensor, inverse_norm: Tensor) -> None:
        """As `steps.reset`, in place, with the initial `[B, N, W]` and `[B, N]`."""
        self.memory = ResetRows.apply(self.memory, starts, memory)  # type: ignore[no-untyped-call]
        torch.where(starts[:, None], inverse_norm, self.inverse_norm, out=self.inverse_norm)

    def release(self) -> Tensor:
        return Release.apply(self.memory)  # type: ignore[no-untyped-call,no-any-return]


class WriteRows(torch.autograd.Function):
    """`Rows.written` in place. Inputs: memory `[B, N, W]`, rows `[B * S]`, weights `[B, S]`, word `[B, W]`."""

    @staticmethod
    def forward(ctx: Any, memory: Tensor, rows: Tensor, weights: Tensor, word: Tensor) -> Tensor:
        words = memory.view(-1, memory.shape[2])
        words.index_fill_(0, rows.view_as(weights)[:, -1], 0)
        words.index_add_(0, rows, (weights[:, :, None] * word[:, None]).flatten(0, 1))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(rows, weights, word)
        ctx.mark_dirty(memory)
        return memory

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, None, None
        rows, weights, word = ctx.saved_tensors
        d_words = grad.view(-1, grad.shape[2])
        d_written = d_words.index_select(0, rows).view(*weights.shape, -1)
        d_words.index_fill_(0, rows.view_as(weights)[:, -1], 0)
        return grad, None, (d_written @ word[:, :, None]).squeeze(2), (weights[:, None] @ d_written).squeeze(1)


class ReadRows(torch.autograd.Function):
    """Returns words `[len(rows), W]`, and the same memory, so that its gradient passes through this function."""

    @staticmethod
    def forward(ctx: Any, memory: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(rows)
        ctx.shape = memory.shape
        ctx.mark_dirty(memory)
        return memory.view(-1, memory.shape[2]).index_select(0, rows), memory

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_read: Tensor | None, grad: Tensor | None) -> tuple[Tensor | None, None]:
        if d_read is not None:
            grad = d_read.new_zeros(ctx.shape) if grad is None else grad
            grad.view(-1, ctx.shape[2]).index_add_(0, ctx.saved_tensors[0], d_read)
        return grad, None


class ResetRows(torch.autograd.Function):
    """`RowsInPlace.reset` in place."""

    @staticmethod
    def forward(ctx: Any, memory: Tensor, starts: Tensor, initial: Tensor) -> Tensor:
        torch.where(starts[:, None, None], initial, memory, out=memory)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(starts)
        ctx.mark_dirty(memory)
        return memory

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None, None]:
        return (None if grad is None else grad.masked_fill_(ctx.saved_tensors[0][:, None, None], 0)), None, None


class Release(torch.autograd.Function):
    """The end of the chain: its backward pass copies the gradient, because the chain modifies it."""

    @staticmethod
    def forward(ctx: Any, memory: Tensor) -> Tensor:
        return memory.view_as(memory)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.clone(memory_format=torch.contiguous_format)


class Sequence:
    """A tape whose steps run with their graph on one copy of the memory."""

    full = False

    def __init__(self, memory: Any, state: State) -> None:
        self.work = memory.workspace(state, RowsInPlace)
        self.features: list[Tensor] = []

    def step(self, projected: Tensor, starts: Tensor | None) -> None:
        if starts is not None:
            self.work.reset(starts)
        self.features.append(self.work.step(projected))

    def state(self) -> State:
        state: State = self.work.state()
        return state


class RowsForm(TapedForm):
    """Steps and sequences on one copy of the memory."""

    keeps_graph = True
    memory: Any

    def step(self, x: Tensor, state: State) -> MemoryStep:
        work = self.memory.workspace(state, RowsInPlace)
        return MemoryStep(self.memory.output(work.step(x)), work.release(), {})

    def tape(self, state: State, expected_steps: int) -> Sequence:
        return Sequence(self.memory, state)

    def output(self, state: State) -> Tensor:
        features = torch.cat([state["hidden"], state["read_vectors"].flatten(1)], 1)
        output: Tensor = self.memory.output(features)
        return output

    def finish(self, tape: Any, projected: Tensor, state: State) -> Unrolled:
        return Unrolled(self.memory.output(torch.stack(tape.features)), tape.work.release(), {})
