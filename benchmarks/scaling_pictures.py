"""Pictures of the tables that `benchmarks/scaling.py` writes."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

from agents.comparison.pictures import COLORS

_ALONG = {
    "envs": "environments",
    "agents": "environments",
    "slots": "slots of the memory",
    "width": "units of lstm and plastic; rows and columns of mnm-p's matrices",
    "levels": "levels of the pyramid",
    "length": "steps of an episode and of a rollout",
    "ranks": "processes",
}
_SETTING = {
    "envs": "environments alone, random actions",
    "agents": "A2C in the maze, rollouts of 20 steps",
    "slots": "A2C in the maze, 16 environments, rollouts of 20 steps",
    "width": "A2C in the maze, 64 environments, rollouts of 20 steps",
    "levels": "A2C in the maze, 16 environments, rollouts of 20 steps",
    "length": "A2C in the maze, 16 environments",
    "ranks": "A2C in the maze, lstm of 128 units, 64 environments in all",
}
_FEW = ("levels", "ranks")
"""Studies with so few points that they lie on a linear axis."""


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a study's table, numbers as numbers; empty cells are left out."""

    def value(text: str) -> Any:
        try:
            return float(text)
        except ValueError:
            return text

    with path.open(newline="") as file:
        return [{name: value(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]


def draw(path: Path, study: str, rows: list[dict[str, Any]]) -> None:
    """Steps/s with the estimate from counted work dotted, and peak memory beside them where it was measured."""
    with_memory = len({row[study] for row in rows if row.get("peak_mib", 0) > 0}) > 2
    figure = Figure(figsize=(10.5 if with_memory else 7, 4.4), dpi=130, layout="constrained")
    panels = list(figure.subplots(1, 2 if with_memory else 1, squeeze=False).flat)
    _curves(panels[0], study, rows, "steps_per_s", "o-", named=True)
    if any(row.get("limit_per_s", 0) > 0 for row in rows) and study != "ranks":
        _curves(panels[0], study, rows, "limit_per_s", ":")
        panels[0].plot([], [], ":", color="#555555", label="estimate from counted work")
    if with_memory:
        _curves(panels[1], study, rows, "peak_mib", "o-")
    for axes, title in zip(panels, ("environment steps per second", "peak memory of an iteration, MiB"), strict=False):
        axes.set_title(title, loc="left", fontsize=10)
        _scales(axes, study, sorted({row[study] for row in rows}))
    count, device = rows[0].get("threads", 1), rows[0].get("device", "cpu")
    figure.suptitle(f"{_SETTING[study]} ({device}, {count:g} thread{'s' if count > 1 else ''})", fontsize=11)
    figure.legend(loc="outside lower center", ncols=6, fontsize=9, frameon=False)
    figure.savefig(path, metadata={"Software": None})


def _curves(axes: Axes, study: str, rows: list[dict[str, Any]], name: str, style: str, named: bool = False) -> None:
    for number, label in enumerate(dict.fromkeys(row["label"] for row in rows)):
        there = [row for row in rows if row["label"] == label and row.get(name, 0) > 0]
        xs, ys = [row[study] for row in there], [row[name] for row in there]
        axes.plot(xs, ys, style, color=COLORS[number], markersize=4, label=label if named else None)


def _scales(axes: Axes, study: str, places: list[float]) -> None:
    axes.set(xlabel=_ALONG[study])
    if study not in _FEW:
        axes.set_xscale("log")
        axes.set_xlim(places[0] / 1.25, places[-1] * 1.25)
    axes.set_xticks(places)
    axes.xaxis.set_major_formatter(EngFormatter(places=0, sep=""))
    axes.xaxis.set_minor_locator(NullLocator())
    if study == "ranks":
        axes.set_ylim(0, 1.15 * axes.dataLim.y1)
        axes.set_xlim(0.5, places[-1] + 0.5)
    else:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if study != "envs" else (1,)))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
