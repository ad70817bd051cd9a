"""Episode bookkeeping for memories whose state is a buffer of recent inputs.

A sequence of T steps after a buffer of `capacity` rows is one history of `capacity + T` rows, the oldest first: row `r`
is what came at step `r - capacity`, and negative steps are those before the sequence.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Episodes(NamedTuple):
    """The position of episodes in a history."""

    held: Tensor
    """How many steps of its episode came before each step and may be in the buffer, `[T, B]`; not capped."""
    begin: Tensor
    """The step at which the last episode began, `[B]`; `-capacity` where that is not in the sequence."""

    @classmethod
    def of(cls, starts: Tensor | None, count: Tensor, length: int, capacity: int) -> Episodes:
        """Computed without a synchronisation.

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
