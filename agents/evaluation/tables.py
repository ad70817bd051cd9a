"""Score tables for a terminal, with one column per agent."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.table import Table

from agents.evaluation.breakdown import Row
from agents.evaluation.scores import Score


def unit_of(metric: str) -> str:
    """`" %"` for a task's `error`, those of its parts (`error_qa1`) and `optimal_error`; else empty."""
    return " %" if metric.split("_")[0] == "error" or metric == "optimal_error" else ""


def with_unit(metric: str) -> str:
    """A task metric's name with its unit."""
    return metric + unit_of(metric)


def print_scores(console: Console, title: str, scores: Mapping[str, Score], details: bool = False) -> None:
    """Mean return with its 95 % interval and the task's own metrics; with `details` also spread and episode length."""
    each = scores.values()
    rows = [["mean return", *map(str, each)]]
    if details:
        rows.append(["standard deviation", *("–" if math.isnan(score.std) else f"{score.std:.3f}" for score in each)])
        rows.append(["steps per episode", *(f"{score.mean_length:.1f}" for score in each)])
    for metric in dict.fromkeys(name for score in each for name in score.metrics):
        rows.append([with_unit(metric), *(f"{s.metrics[metric]:.4g}" if metric in s.metrics else "–" for s in each)])
    print_table(console, title, ["", *scores], rows)


def print_errors(console: Console, metric: str, group: str, errors: Mapping[str, list[Row]]) -> None:
    """The score of single answers by group, and their number for the first agent."""
    first, *others = errors.values()
    scores = [{row.label: f"{row.score:.4g}" for row in rows} for rows in others]  # their episodes may differ
    rows = (
        [row.label, f"{row.score:.4g}", *(score.get(row.label, "–") for score in scores), f"{row.answers:,}"]
        for row in first
    )
    print_table(console, f"{with_unit(metric)} by {group}", ["", *errors, "answers"], rows)


def print_table(console: Console, title: str, headings: list[str], rows: Iterable[list[str]]) -> None:
    """Rows under a title; the first column is text, the others are numbers."""
    table = Table()
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    console.print(f"\n{title}", style="bold", markup=False, highlight=False, soft_wrap=True)
    console.print(table)
