"""Metrics that several memories log, each `[B]`."""

from __future__ import annotations

from torch import Tensor

SATURATED = 0.95


def focus(weights: Tensor) -> Tensor:
    """The largest weight of each weighting `[B, heads, N]`, averaged over heads; 1 if all are one-hot."""
    return weights.amax(2).mean(1)


def rms(values: Tensor) -> Tensor:
    """Root mean square of `[B, ...]`."""
    return values.flatten(1).square().mean(1).sqrt()


def saturation(activities: Tensor) -> Tensor:
    """Share of activations `[B, ...]` in [-1, 1] whose absolute value is above `SATURATED`."""
    return (activities.flatten(1).abs() > SATURATED).to(activities.dtype).mean(1)
