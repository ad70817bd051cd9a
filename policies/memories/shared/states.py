"""States as most memories begin."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from policies.memories.contract import Memory
from policies.memories.steps import State


def zeros_state(memory: Memory, batch_size: int, shapes: Mapping[str, tuple[int, ...]]) -> State:
    """Zeros `[batch_size, *shape]` for each of `shapes`, all views of one number."""
    zero = torch.zeros((), device=memory.device, dtype=memory.dtype)
    return {name: zero.expand(batch_size, *shape) for name, shape in shapes.items()}
