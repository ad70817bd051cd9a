"""Writes a comparison as a table: for an 80-column terminal, as Markdown, and as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agents.common.terminal import PLAIN_TEXT
from agents.comparison.curves import COLUMNS
from agents.comparison.groups import Comparison, Group, Reached, direction
from agents.evaluation.tables import with_unit

NONE = "–"
_SCORES = 5
"""Number of columns about scores, including "same budget"; the others are the budgets."""
_WIDE = 1_000
"""A width in characters that fits every table."""
_METHODS = {"bootstrap": "percentile bootstrap over seeds", "t": "Student's t over seeds"}


class Row(NamedTuple):
    """A group with the figures that are costly or depend on other groups."""

    group: Group
    low: float
    """95 % interval of the mean; NaN for one seed."""
    high: float
    same_budget: str
    reached: Reached | None
    """When it reached the threshold, if one is given."""


def rows(comparison: Comparison, threshold: float | None = None) -> list[Row]:
    """One row per group, best first."""
    found = []
    for group in comparison.groups:
        reached = None if threshold is None else group.reached(threshold)
        found.append(Row(group, *(group.interval or (math.nan, math.nan)), comparison.same_budget(group), reached))
    return found


def score_name(score: str) -> str:
    """The score's name with its unit."""
    return with_unit(score)


def heading(comparison: Comparison) -> str:
    """Name and score."""
    return f"{comparison.name} · {', '.join(filter(None, (score_name(comparison.score), direction(comparison.score))))}"


def legend(comparison: Comparison, threshold: float | None = None) -> list[str]:
    """How the figures were computed, and the comparison's notes, one line each."""
    first = comparison.groups[0]
    scored = [run for group in comparison.groups for run in group.runs if comparison.score in run.scores]
    episodes = sorted({int(run.config["eval_episodes"]) for run in scored})
    evaluated = f"mean of {' or '.join(map(str, episodes))} new episodes per seed"
    what = "last twentieth of the training curve of each seed" if first.in_training else evaluated
    lines = [f"{score_name(comparison.score)}: {what}"]
    if any(len(group.scores) > 1 for group in comparison.groups):
        lines[0] += f"; 95 % interval: {_METHODS[first.method]}; IQM: interquartile mean"
    if any(group.lesson_steps != 0 for group in comparison.groups):
        lines.append("steps include earlier lessons")
    if threshold is not None:
        lines.append(f"to {threshold:g}: first time in training, median over seeds (number of seeds that reached it)")
    return [*lines, *comparison.notes]


def show(console: Console, comparison: Comparison, threshold: float | None = None) -> None:
    """Prints the table and its legend; split into two tables if one is wider than the terminal."""
    console.print(f"\n{heading(comparison)}", style="bold", **PLAIN_TEXT)
    found = rows(comparison, threshold)
    titles, cells = _titles(comparison, threshold), _cells(found)
    names = [row.group.names for row in found]
    whole = _drawn(comparison, titles, names, cells, len(titles))
    if console.measure(whole, options=console.options.update(width=_WIDE)).maximum <= console.width:
        console.print(whole)
    else:
        console.print(_drawn(comparison, titles, names, cells, _SCORES))
        console.print()
        console.print(_drawn(comparison, titles[_SCORES:], names, [row[_SCORES:] for row in cells], 0))
    for line in legend(comparison, threshold):
        console.print(line, style="dim", highlight=False, markup=False)


def _drawn(
    comparison: Comparison, titles: list[str], names: Sequence[tuple[str, ...]], cells: list[list[str]], count: int
) -> Table:
    """The first `count` columns after the names, and the random score below; 0: all columns, without that score."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False, show_edge=False)
    for setting in comparison.by:
        table.add_column(_short(setting), overflow="fold")
    for title in titles[: count or None]:
        table.add_column(title.replace("same ", "same\n"), justify="right", no_wrap=True)
    for name, row in zip(names, cells, strict=True):
        table.add_row(*map(Text, (*name, *row[: count or None])))
    if count and comparison.random is not None:
        table.add_row("random", *_padding(comparison), number(comparison.random), style="dim")
    return table


def markdown(comparison: Comparison, threshold: float | None = None) -> str:
    """A Markdown table under a heading."""
    names = [_short(name) for name in comparison.by]
    titles = _titles(comparison, threshold)
    lines = [names + titles, ["---"] * len(names) + ["---:"] * len(titles)]
    found = rows(comparison, threshold)
    lines += [[*row.group.names, *cells] for row, cells in zip(found, _cells(found), strict=True)]
    if comparison.random is not None:
        cells = ["random actions", *_padding(comparison), number(comparison.random)]
        lines.append(cells + [""] * (len(lines[0]) - len(cells)))
    table = "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |" for cells in lines)
    notes = "\n".join(f"- {line}" for line in legend(comparison, threshold))
    return f"## {heading(comparison)}\n\n{table}\n\n{notes}\n"


def as_csv(comparisons: Sequence[Comparison], threshold: float | None = None) -> str:
    """One row per group of every comparison, with unrounded numbers."""
    found: list[dict[str, Any]] = []
    for comparison in comparisons:
        start = {"env": comparison.name}
        for row in rows(comparison, threshold):
            group = row.group
            cells: dict[str, Any] = start | dict(zip(comparison.by, group.names, strict=True))
            cells |= {
                "score": comparison.score,
                "mean": _exact(group.mean),
                "low": _exact(row.low),
                "high": _exact(row.high),
                "iqm": _exact(group.interquartile_mean),
                "seeds": len(group.scores),
                "each_seed": " ".join(map(_exact, group.scores)),
                "steps_least": group.steps[0],
                "steps_most": group.steps[1],
                "lesson_steps": group.lesson_steps,
                "minutes": _exact(group.minutes),
                "parameters": group.parameters,
                "same_budget": row.same_budget,
            }
            if row.reached is not None:
                cells |= {"threshold": threshold, "steps_to": _exact(row.reached.steps)}
                cells |= {"minutes_to": _exact(row.reached.minutes), "seeds_to": row.reached.seeds}
            found.append(cells)
        if comparison.random is not None:
            random = {**start, comparison.by[0]: "random actions", "score": comparison.score}
            found.append({**random, "mean": _exact(comparison.random)})
    text = io.StringIO()
    table = csv.DictWriter(text, list(dict.fromkeys(name for cells in found for name in cells)), lineterminator="\n")
    table.writeheader()
    table.writerows(found)
    return text.getvalue()


def curves_csv(comparisons: Sequence[Comparison]) -> str:
    """The curves of all runs; folders are relative to the working directory if they are below it."""
    text, here = io.StringIO(), Path.cwd()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*COLUMNS, "folder"])
    for comparison in comparisons:
        for group in comparison.groups:
            for run in group.runs:
                folder = run.folder.absolute()
                folder = folder.relative_to(here) if folder.is_relative_to(here) else run.folder
                for steps, minutes, episodes, value in zip(*run.curve(comparison.score).thinned(), strict=True):
                    numbers = [int(steps), _exact(minutes), _exact(episodes), comparison.score, f"{value:.6g}"]
                    table.writerow([comparison.name, group.label, run.seed, *numbers, folder])
    return text.getvalue()


def number(value: float) -> str:
    """A score with about four digits: three decimals below 10, none from 1,000 on."""
    if math.isnan(value):
        return NONE
    return f"{value:,.{max(0, 3 - sum(abs(value) >= size for size in (10, 100, 1000)))}f}"


def amount(value: float) -> str:
    """Three significant digits with k, M or G."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def _titles(comparison: Comparison, threshold: float | None) -> list[str]:
    titles = [score_name(comparison.score), "95 % interval", "IQM", "seeds", "same budget", "steps", "min", "params"]
    return titles if threshold is None else [*titles, f"steps to {threshold:g}", f"min to {threshold:g}"]


def _cells(found: Sequence[Row]) -> list[list[str]]:
    return [
        [
            number(row.group.mean),
            NONE if math.isnan(row.low) else f"[{number(row.low)}, {number(row.high)}]",
            number(row.group.interquartile_mean),
            str(len(row.group.scores)),
            row.same_budget,
            _steps(row.group),
            _minutes(row.group.minutes),
            NONE if row.group.parameters is None else amount(row.group.parameters),
            *([] if row.reached is None else _reached(row.reached, len(row.group.runs))),
        ]
        for row in found
    ]


def _minutes(value: float) -> str:
    return NONE if not math.isfinite(value) else f"{value:.2g}" if value < 10 else f"{value:,.0f}"


def _padding(comparison: Comparison) -> list[str]:
    return [""] * (len(comparison.by) - 1)


def _steps(group: Group) -> str:
    low, high = (amount(steps + (group.lesson_steps or 0)) for steps in group.steps)
    return low if low == high else f"{low} to {high}"


def _reached(reached: Reached, seeds: int) -> list[str]:
    count = f"({reached.seeds}/{seeds})"
    if math.isinf(reached.steps):
        return [f"never {count}", NONE]
    return [f"{amount(reached.steps)} {count}", _minutes(reached.minutes)]


def _short(name: str) -> str:
    return name.split(".")[-1]


def _exact(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"
