"""Pictures of a memory as time goes by, for the viewer and TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from agents.stage import colours
from policies.memories.base import Panel

LONGEST = 400
"""Steps that a picture reaches back."""


class PanelHistory:
    """Successive panels of one memory: those with `over_time` grow by a column a step, the others are the newest."""

    def __init__(self) -> None:
        self.newest: Mapping[str, Panel] = {}
        self.columns: dict[str, list[Tensor]] = {}

    def add(self, panels: Mapping[str, Panel]) -> None:
        """The panels after one more step."""
        self.newest = panels
        for name, panel in panels.items():
            if panel.over_time:
                column = self.columns.setdefault(name, [])
                column.append(panel.image.detach().flatten())
                del column[:-LONGEST]

    def panels(self) -> dict[str, Panel]:
        """What there is to see now, by name: first what lasts a step, then what has a time axis."""
        shown = {name: panel for name, panel in self.newest.items() if not panel.over_time}
        for name, panel in self.newest.items():
            if panel.over_time:
                rows = " × ".join(
                    part for part in (panel.y_label if len(panel.image) > 1 else "", panel.x_label) if part
                )
                shown[name] = replace(
                    panel, image=torch.stack(self.columns[name], 1), x_label="step", y_label=rows, over_time=False
                )
        return shown


def figure(name: str, panel: Panel) -> Figure:
    """A panel with its axes, ticks and colour bar, as TensorBoard shows it."""
    image, limits = colours(panel.image.detach().float().cpu().numpy(), panel.limits)
    rows, columns = image.shape[:2]
    drawn = Figure(figsize=(4.8, 3.6), layout="constrained")
    axes = drawn.add_subplot()
    square = 0.4 < rows / columns < 2.5
    axes.imshow(image, interpolation="nearest", aspect="equal" if square else "auto")
    axes.set(title=name, xlabel=panel.x_label, ylabel=panel.y_label)
    if limits is not None:
        mappable: Any = _scale(limits)
        drawn.colorbar(mappable, ax=axes, shrink=0.8)
    return drawn


def _scale(limits: tuple[float, float]) -> Any:
    """The colour map of `colours` between two values."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    return ScalarMappable(Normalize(*limits), "RdBu_r" if limits[0] < 0 < limits[1] else "viridis")
