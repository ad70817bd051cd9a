"""A task's own metrics, summed on the device and divided when they are read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from agents.scale.devices import widest


class TaskMetrics:
    """Accumulates the amounts and counts of `TensorEnv.metric_names` from `info["metrics"]`.

    Args:
        names: names of the metrics; `sums` has their order.
        device: torch device of the sums.
    """

    def __init__(self, names: tuple[str, ...], device: torch.device) -> None:
        self.names, self.device = names, device
        self.dtype = widest(device)
        self.steps: list[Tensor] = []

    def add(self, info: dict[str, Any], counted: Tensor | None = None) -> None:
        """Adds the metrics of one step for the environments where `counted` (bool `[N]`) is true."""
        if not self.names:
            return
        metrics = info["metrics"]
        step = torch.stack([part for name in self.names for part in metrics[name]])  # [2 · names, N]
        self.steps.append(step if counted is None else step.where(counted, 0.0))
        if len(self.steps) == 256:  # bounds the memory of a long evaluation
            self.steps = [torch.stack(self.steps).to(self.dtype).sum(0)]

    def add_steps(self, metrics: dict[str, tuple[Tensor, Tensor]]) -> None:
        """Adds the metrics of T steps of N environments, each `[T, N]`."""
        if self.names:
            parts = torch.stack([part for name in self.names for part in metrics[name]])
            self.steps.append(parts.to(self.dtype).sum(1))

    def sums(self) -> Tensor:
        """Returns all amounts and counts so far, `[2 · names]`, and resets them."""
        if not self.steps:
            return torch.zeros(2 * len(self.names), device=self.device)
        total = torch.stack([step.to(self.dtype).sum(-1) for step in self.steps]).sum(0)
        self.steps = []
        return total

    def values(self, sums: Any) -> dict[str, float]:
        """Each metric by name, from `sums` on the host; metrics with a count of 0 are left out."""
        pairs = zip(self.names, sums[::2], sums[1::2], strict=True)
        return {name: float(amount / count) for name, amount, count in pairs if count}
