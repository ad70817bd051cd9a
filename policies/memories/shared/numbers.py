"""Numbers that several memories log; each is of every batch entry, `[B]`."""

from __future__ import annotations

from torch import Tensor

SATURATED = 0.95


def focus(weights: Tensor) -> Tensor:
    """The largest weight of a weighting, the mean over heads: 1 where each head is at one place; `[B, heads, N]`."""
    return weights.amax(2).mean(1)


def rms(values: Tensor) -> Tensor:
    """Root mean square of `[B, ...]`."""
    return values.flatten(1).square().mean(1).sqrt()


def saturation(activities: Tensor) -> Tensor:
    """Share of activities `[B, ...]`, between -1 and 1, that are beyond ±`SATURATED`."""
    return (activities.flatten(1).abs() > SATURATED).to(activities.dtype).mean(1)
