"""What memories share whose state is a buffer of the last inputs: which of them belong to the episode, and replaying.

A sequence of T steps after a buffer of `capacity` rows is one history of `capacity + T` rows, the oldest first: row `r`
is what came at step `r - capacity`, and negative steps are those before the sequence.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from policies.memories.contract import Memory, MemoryStep, Recording, State, Unrolled, reset


class Episodes(NamedTuple):
    """Where in a history the episodes lie."""

    held: Tensor
    """How many steps of its episode came before each step and may be in the buffer, `[T, B]`; not capped."""
    begin: Tensor
    """The step at which the last episode began, `[B]`; `-capacity` where that is not in the sequence."""

    @classmethod
    def of(cls, starts: Tensor | None, count: Tensor, length: int, capacity: int) -> Episodes:
        """Without a question to the device.

        Args:
            starts: `[T, B]`; None: nothing starts here.
            count: how many rows of the buffer are filled before the first step, `[B]`.
            length: T.
            capacity: rows of the buffer.
        """
        t = torch.arange(length, device=count.device).unsqueeze(1)
        held = count.detach() + t
        if starts is None:
            return cls(held, t.new_full(count.shape, -capacity))
        begin = torch.where(starts, t, -capacity).cummax(0).values
        return cls(torch.where(begin < 0, held, (t - begin).to(held.dtype)), begin[-1])

    def buffer(self, history: Tensor, capacity: int) -> Tensor:
        """The buffer after the last step, `[B, capacity, ...]`, the oldest first: zeros where it is not filled.

        Args:
            history: `[capacity + T, B, ...]`.
            capacity: rows of the buffer.
        """
        last = history[-capacity:]
        step = torch.arange(-capacity, 0, device=history.device) + len(history) - capacity
        ours = (step.unsqueeze(1) >= self.begin).view(*last.shape[:2], *[1] * (last.dim() - 2))
        return torch.where(ours, last, torch.zeros_like(last)).transpose(0, 1)


class ReplayedRecording(Recording):
    """The steps are taken without a graph, which one `unroll` of the memory over all of them makes afterwards.

    For memories whose `unroll` takes all steps at once, which costs less than the graphs of single steps.
    """

    def __init__(self, memory: Memory, state: State) -> None:
        super().__init__(memory, state)
        self.first = state
        self.xs: list[Tensor] = []
        self.starts: list[Tensor | None] = []

    @torch.no_grad()
    def step(self, x: Tensor, starts: Tensor | None) -> MemoryStep:
        self.xs.append(x)
        self.starts.append(starts)
        if starts is not None:
            self.state = reset(self.state, starts, self.memory.initial_state(len(starts)))
        step: MemoryStep = self.memory(x.detach(), self.state)
        self.state = step.state
        return step

    def unrolled(self) -> Unrolled:
        resets = [t for t, starts in enumerate(self.starts) if starts is not None]
        none = torch.zeros(len(self.xs[0]), dtype=torch.bool, device=self.xs[0].device)
        starts = torch.stack([none if starts is None else starts for starts in self.starts]) if resets else None
        return self.memory.unroll(torch.stack(self.xs), starts, self.first, resets)
