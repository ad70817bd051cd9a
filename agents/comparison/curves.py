"""Curves over several seeds, from runs or from a CSV table of points as written by `compare.py`."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from agents.comparison.intervals import Method, band

Array = np.ndarray[Any, np.dtype[np.float64]]
Axis = Literal["steps", "minutes", "episodes"]
POINTS = 100
"""Maximum number of points of a mean curve."""
COLUMNS = ("env", "group", "seed", "steps", "minutes", "episodes", "score", "value")
"""Columns of a table of points."""


class Curve(NamedTuple):
    """A score during training, one entry per point."""

    steps: Array
    """Environment steps."""
    minutes: Array
    """Minutes of training; NaN where unknown."""
    episodes: Array
    """Episodes ended; NaN where unknown."""
    values: Array
    """The score."""

    def axis(self, name: Axis) -> Array:
        """Positions of the points on this axis."""
        return {"steps": self.steps, "minutes": self.minutes, "episodes": self.episodes}[name]

    def thinned(self, points: int = 400) -> Curve:
        """Reduced to at most `points` points: means of consecutive ones, each at the position of the last."""
        length = math.ceil(len(self.steps) / points)
        if length <= 1:
            return self
        ends = np.minimum(np.arange(1, math.ceil(len(self.steps) / length) + 1) * length, len(self.steps)) - 1
        sums = np.add.reduceat(self.values, np.arange(0, len(self.steps), length))
        return Curve(self.steps[ends], self.minutes[ends], self.episodes[ends], sums / np.diff(ends, prepend=-1))


@dataclass(frozen=True)
class SeedCurves:
    """One curve per seed; their mean is drawn."""

    label: str
    curves: tuple[Curve, ...]
    method: Method = "bootstrap"

    @property
    def seeds(self) -> int:
        """How many curves there are."""
        return len(self.curves)

    def mean_curve(self, axis: Axis) -> tuple[Array, Array, Array, Array]:
        """Positions, mean, and lower and upper end of the 95 % interval over seeds, as far as all seeds have data.

        A point is the mean of the values logged since the previous point.
        """
        curves = [(curve.axis(axis), curve.values) for curve in self.curves]
        curves = [(xs, ys) for xs, ys in curves if len(xs) and not np.isnan(xs).any()]
        if not curves:
            return (np.empty(0),) * 4
        shortest = min((xs for xs, _ in curves), key=lambda xs: xs[-1])
        grid = shortest if len(shortest) <= POINTS else np.linspace(0, shortest[-1], POINTS + 1)[1:]
        grid = grid[grid >= max(xs[0] for xs, _ in curves)]
        values = np.array([_resampled(xs, ys, grid) for xs, ys in curves])
        return grid, values.mean(0), *band(values, self.method)


def _resampled(xs: Array, ys: Array, grid: Array) -> Array:
    """Means of the values within each grid cell; empty cells are interpolated linearly."""
    cell = np.searchsorted(grid, xs)
    inside = cell < len(grid)
    count = np.bincount(cell[inside], minlength=len(grid))
    total = np.bincount(cell[inside], ys[inside], minlength=len(grid))
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.interp(grid, xs, ys)))


class Points(NamedTuple):
    """The curves of one environment, from a table of points."""

    env: str
    score: str
    groups: list[SeedCurves]


def read_points(file: Path) -> list[Points]:
    """Reads a table of points; groups keep their order.

    Raises:
        ValueError: a column is missing, or a value is not a number.
    """
    with file.open(newline="", encoding="utf-8") as stream:
        rows = [*csv.DictReader(stream)]
    if not rows or not {*COLUMNS} <= {*rows[0]}:
        raise ValueError(f"{file} is not a table of points: expected the columns {', '.join(COLUMNS)}")
    found = []
    for env, score in dict.fromkeys((row["env"], row["score"]) for row in rows):
        of_env = [row for row in rows if (row["env"], row["score"]) == (env, score)]
        groups = []
        for label in dict.fromkeys(row["group"] for row in of_env):
            of_group = [row for row in of_env if row["group"] == label]
            seeds = dict.fromkeys(row["seed"] for row in of_group)
            groups.append(SeedCurves(label, tuple(_curve([r for r in of_group if r["seed"] == s]) for s in seeds)))
        found.append(Points(env, score, groups))
    return found


def _curve(rows: Sequence[dict[str, str]]) -> Curve:
    parts = ([float(row[name] or math.nan) for row in rows] for name in ("steps", "minutes", "episodes", "value"))
    return Curve(*map(np.array, parts))
