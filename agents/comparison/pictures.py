"""Draws a comparison: the mean curve of every group with its 95 % interval over seeds."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from agents.comparison.curves import Array, Axis
from agents.comparison.groups import Comparison, direction, lower_is_better
from agents.comparison.runs import RETURN
from agents.comparison.tables import score_name

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f5fa8", "#8c6d31")
"""The colour-blind safe palette of Okabe and Ito, and two more colours."""
GREY = "#8a8f98"
_DASHES = ("-", "--", "-.")
_SHORT = 0.95
"""Share of the longest curve. A curve that ends earlier gets a dot: it was trained no further."""
_SHARES = ("f1", "precision", "recall", "success", "success_rate")
"""Scores with a maximum of 1."""
_BESIDE = 6
"""With more groups than this, the legend is placed beside the panel."""
_TITLES = {"steps": "environment steps", "minutes": "minutes of training", "episodes": "episodes"}


class Drawn(Protocol):
    """The source of a curve: a `Group`, or points from a file."""

    @property
    def label(self) -> str:
        """For the legend."""

    @property
    def seeds(self) -> int:
        """Number of curves in the mean."""

    def mean_curve(self, axis: Axis) -> tuple[Array, Array, Array, Array]:
        """Positions, mean, and both ends of the interval (NaN for one seed)."""


@dataclass(frozen=True)
class Line:
    """A score to compare with, drawn as a horizontal line."""

    value: float
    label: str
    style: str = "--"
    """Line style of matplotlib."""
    color: str = "black"

    @property
    def right(self) -> bool:
        """Whether the label is at the right end: for random actions, whose level trained curves have left by then."""
        return self.color == GREY


def draw_curves(axes: Axes, groups: Sequence[Drawn], score: str, axis: Axis, lines: Sequence[Line] = ()) -> None:
    """Draws curves and their legend; groups of the memory `identity` are grey.

    Args:
        axes: to draw into.
        groups: in the order of the legend.
        score: name of the score.
        axis: of x.
        lines: horizontal lines, dashed.
    """
    number, end, many = 0, 0.0, len(groups) > _BESIDE
    ends: list[tuple[float, float, str]] = []
    for group in groups:
        xs, mean, low, high = group.mean_curve(axis)
        if not len(xs):
            continue
        plain = group.label == "identity" or group.label.startswith("identity ·")
        color = GREY if plain else COLORS[number % len(COLORS)]
        dash = "-" if plain else _DASHES[number // len(COLORS) % len(_DASHES)]
        number += not plain
        count = f"{group.seeds} seeds" if group.seeds > 1 else "1 seed"
        axes.plot(xs, mean, dash, color=color, linewidth=1.8, label=plain_text(f"{group.label} ({count})"))
        axes.fill_between(xs, low, high, color=color, alpha=0.07 if many else 0.18, linewidth=0)
        end = max(end, float(xs[-1]))
        ends.append((float(xs[-1]), float(mean[-1]), color))
    for line in lines:
        axes.axhline(line.value, color=line.color, linewidth=1, linestyle=line.style, label=f"_{line.label}", zorder=1)
        axes.annotate(
            line.label,
            (float(line.right), line.value),
            (-3 if line.right else 3, 3),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            ha="right" if line.right else "left",
            fontsize=8,
            color=line.color,
            bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.5},
        )
    what = f"{score_name(score)}, last 100 episodes" if score == RETURN else score_name(score)
    axes.set(xlabel=_TITLES[axis], ylabel=f"{what} ({direction(score)})" if direction(score) else what)
    for x, y, color in ends:
        if x < _SHORT * end:
            axes.plot(x, y, "o", color=color, markersize=5)
    if end:
        axes.set_xlim(0, end)
    if lower_is_better(score) and "/" not in score:  # a share; other losses may be negative
        axes.set_ylim(bottom=0)
    elif score in _SHARES:
        axes.set_ylim(0, 1.03)
    if axis != "minutes":
        axes.xaxis.set_major_formatter(EngFormatter(sep="\N{THIN SPACE}"))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    place = {"loc": "upper left", "bbox_to_anchor": (1.03, 1.0)} if many else {"loc": "best"}
    if ends:
        axes.legend(framealpha=0.85, edgecolor="none", fontsize=9, **place)


def plain_text(text: str) -> str:
    """Escapes a text for matplotlib: `$` would start a formula, and a leading `_` hides a label from the legend."""
    return text.replace("$", r"\$").removeprefix("_")


def figure(comparisons: Sequence[Comparison], axis: Axis = "steps", lines: Sequence[Sequence[Line]] = ()) -> Figure:
    """One panel per comparison.

    Args:
        comparisons: at least one.
        axis: of x.
        lines: of each panel.
    """
    drawn, panels = paper(len(comparisons), max(len(comparison.groups) for comparison in comparisons))
    for number, (axes, comparison) in enumerate(zip(panels, comparisons, strict=True)):
        draw_curves(axes, comparison.groups, comparison.score, axis, lines[number] if lines else ())
        axes.set_title(plain_text(comparison.name), loc="left", fontsize=11)
    return drawn


def paper(panels: int, groups: int = 0) -> tuple[Figure, list[Axes]]:
    """An empty figure with this number of panels; wider if the legends are beside them."""
    columns = panels if panels < 3 else 2 if panels == 4 else 3
    count = math.ceil(panels / columns)
    width = {1: 8.0, 2: 6.5, 3: 5.2}[columns] + (2.0 if groups > _BESIDE else 0.0)
    drawn = Figure(figsize=(width * columns, (4.6 if columns < 3 else 3.6) * count), layout="constrained")
    axes = list(drawn.subplots(count, columns, squeeze=False).flat)
    for empty in axes[panels:]:
        empty.set_axis_off()
    caption = "line: mean over seeds; band: 95 % interval of the mean; dot: trained no further"
    drawn.supxlabel(caption, fontsize=8, color="#555555")
    return drawn, axes[:panels]


def png(drawn: Figure) -> bytes:
    """The PNG file of a figure; equal figures give equal bytes."""
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()
