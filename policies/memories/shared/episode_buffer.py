"""Episode bookkeeping for memories whose state is a buffer of recent inputs.

A buffer of `capacity` rows followed by a sequence of T steps is a history of `capacity + T` rows, oldest first. Row `r`
is the input of step `r - capacity`; negative steps are before the sequence.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Episodes(NamedTuple):
    """Positions of episodes in a history."""

    earlier_steps: Tensor
    """Number of earlier steps of the same episode at each step, `[T, B]`; not limited to `capacity`."""
    begin: Tensor
    """The step at which the last episode started, `[B]`; `-capacity` if before the sequence."""

    @classmethod
    def of(cls, starts: Tensor | None, count: Tensor, length: int, capacity: int) -> Episodes:
        """Computes the positions without a synchronisation.

        Args:
            starts: bool `[T, B]`; None: no episode starts.
            count: number of filled rows of the buffer before the first step, `[B]`.
            length: T.
            capacity: rows of the buffer.
        """
        t = torch.arange(length, device=count.device).unsqueeze(1)
        earlier_steps = count.detach() + t
        if starts is None:
            return cls(earlier_steps, t.new_full(count.shape, -capacity))
        begin = torch.where(starts, t, -capacity).cummax(0).values
        return cls(torch.where(begin < 0, earlier_steps, (t - begin).to(earlier_steps.dtype)), begin[-1])

    def buffer(self, history: Tensor, capacity: int) -> Tensor:
        """The buffer after the last step, `[B, capacity, ...]`, oldest first; unfilled rows are zero.

        Args:
            history: `[capacity + T, B, ...]`.
            capacity: rows of the buffer.
        """
        last = history[-capacity:]
        step = torch.arange(-capacity, 0, device=history.device) + len(history) - capacity
        same_episode = (step.unsqueeze(1) >= self.begin).view(*last.shape[:2], *[1] * (last.dim() - 2))
        return torch.where(same_episode, last, torch.zeros_like(last)).transpose(0, 1)
