"""Pictures of a memory over time, for the viewer and TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from agents.view.canvas import colours
from policies.memories.contract import Panel

MAX_STEPS = 400
"""Maximum number of steps in one picture."""


class PanelHistory:
    """Successive panels of one memory. Panels with `over_time` show many steps, the others the last."""

    def __init__(self) -> None:
        self.newest: Mapping[str, Panel] = {}
        self.images: dict[str, list[Tensor]] = {}
        self.widest: dict[str, tuple[Tensor, Tensor]] = {}
        """Minimum and maximum of each panel so far."""

    def add(self, panels: Mapping[str, Panel]) -> None:
        """Adds the panels of one more step."""
        self.newest = panels
        for name, panel in panels.items():
            if panel.image.dim() == 2:
                low, high = panel.image.detach().nan_to_num(0, 0, 0).aminmax()
                before = self.widest.get(name, (low, high))
                self.widest[name] = torch.minimum(low, before[0]), torch.maximum(high, before[1])
            if panel.over_time:
                images = self.images.setdefault(name, [])
                images.append(panel.image.detach())
                del images[:-MAX_STEPS]

    def panels(self) -> dict[str, Panel]:
        """The current panels by name: first those of one step, then those with a time axis."""
        ordered = sorted(self.newest.items(), key=lambda item: item[1].over_time is not None)
        return {name: self._shown(name, panel) for name, panel in ordered}

    def _shown(self, name: str, panel: Panel) -> Panel:
        if panel.over_time != "similarity" and name in self.widest:
            low, high = (float(value) for value in self.widest[name])
            panel = replace(panel, limits=stable_limits(low, high, panel.limits))
        if panel.over_time is None:
            return panel
        images = torch.stack(self.images[name])  # [T, rows, columns]
        if panel.over_time == "columns":
            labels = (panel.y_label if images.shape[1] > 1 else "", panel.x_label)
            y_label = " × ".join(label for label in labels if label)
            return replace(panel, image=images.flatten(1).t(), x_label="step", y_label=y_label, over_time=None)
        upper, lower = F.normalize(images, dim=2).transpose(0, 1).chunk(2)  # [rows / 2, T, columns]
        first, second = panel.y_label.split(", ")
        return replace(
            panel,
            image=torch.bmm(upper, lower.transpose(1, 2)).mean(0),
            x_label=f"{second} at step",
            y_label=f"{first} at step",
            limits=(-1.0, 1.0),
            over_time=None,
        )


def stable_limits(low: float, high: float, bounds: tuple[float, float] | None) -> tuple[float, float]:
    """Limits of the colour map for the values of an episode so far, rounded up to 1, 2 or 5 times a power of ten.

    Limits only widen, and rarely, so that colours keep their meaning; white stays 0. They stay within `bounds`.
    """
    if bounds is None:
        reach = _round_up(max(-low, high))
        return (-reach, reach) if low < 0 else (0.0, reach)
    if bounds[0] == -bounds[1]:
        reach = min(_round_up(max(-low, high)), bounds[1])
        return -reach, reach
    return (0.0, min(_round_up(high), bounds[1])) if bounds[0] == 0 else bounds


def _round_up(value: float) -> float:
    """The smallest 1, 2 or 5 times a power of ten that is at least `value`."""
    if not 1e-30 < value < 1e30:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1.0, 2.0, 5.0, 10.0) if step * power >= value * (1 - 1e-6))


def figure(name: str, panel: Panel) -> Figure:
    """A panel with its axes, ticks and colour bar, as TensorBoard shows it."""
    image, limits = colours(panel.image.detach().float().cpu().numpy(), panel.limits)
    rows, columns = image.shape[:2]
    drawn = Figure(figsize=(4.8, 3.6), layout="constrained")
    axes = drawn.add_subplot()
    square = 0.4 < rows / columns < 2.5
    axes.imshow(image, interpolation="nearest", aspect="equal" if square else "auto")
    axes.set(title=name, xlabel=panel.x_label, ylabel=panel.y_label)
    for axis in (axes.xaxis, axes.yaxis):
        # rows and columns have integer numbers, also if there is only one
        axis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    if limits is not None:
        mappable: Any = _scale(limits)
        drawn.colorbar(mappable, ax=axes, shrink=0.8)
    return drawn


def _scale(limits: tuple[float, float]) -> Any:
    """The colour map of `colours` with these limits."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize, PowerNorm

    norm = PowerNorm(0.5, *limits) if limits[0] == 0 else Normalize(*limits)
    return ScalarMappable(norm, "RdBu_r" if limits[0] < 0 < limits[1] else "viridis")
