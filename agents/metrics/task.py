"""A task's own scores, summed on the device while an agent plays and divided once they are read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class TaskMetrics:
    """Amounts and counts of `TensorEnv.metric_names`, as `info["metrics"]` gives them step by step.

    Args:
        names: in the order in which `sums` gives them.
        device: where the sums are.
    """

    def __init__(self, names: tuple[str, ...], device: torch.device) -> None:
        self.names, self.device = names, device
        self.dtype = torch.float32 if device.type == "mps" else torch.float64  # mps has no float64
        self.steps: list[Tensor] = []

    def add(self, info: dict[str, Any], counted: Tensor | None = None) -> None:
        """The metrics of one step; `counted` (bool `[N]`) says in which environments they count."""
        if not self.names:
            return
        metrics = info["metrics"]
        step = torch.stack([part for name in self.names for part in metrics[name]])  # [2 · names, N]
        self.steps.append(step if counted is None else step.where(counted, 0.0))
        if len(self.steps) == 256:  # as much room as a short rollout, however long the evaluation
            self.steps = [torch.stack(self.steps).to(self.dtype).sum(0)]

    def sums(self) -> Tensor:
        """All amounts and counts so far, `[2 · names]`; starts anew."""
        if not self.steps:
            return torch.zeros(2 * len(self.names), device=self.device)
        total = torch.stack([step.to(self.dtype).sum(-1) for step in self.steps]).sum(0)
        self.steps = []
        return total

    def values(self, sums: Any) -> dict[str, float]:
        """Each metric by name, from `sums` on the host; a metric that nothing counted for is left out."""
        pairs = zip(self.names, sums[::2], sums[1::2], strict=True)
        return {name: float(amount / count) for name, amount, count in pairs if count}
