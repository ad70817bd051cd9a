"""The command `python compare.py`, `engram-compare`, `python -m agents.comparison`; see compare.py for examples."""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from agents.common.files import replace_file
from agents.common.invocation import command_for
from agents.common.terminal import PLAIN_TEXT, make_console
from agents.comparison import pictures, settings, tables
from agents.comparison.curves import Axis
from agents.comparison.groups import Comparison, by_environment
from agents.comparison.intervals import Method
from agents.comparison.pictures import Line
from agents.comparison.references import paper_lines, with_random
from agents.comparison.runs import find_runs
from agents.run.failures import ErrorContext
from agents.run.parsing import run_command

INTRO = """Compare trained runs: scores with intervals over seeds, budgets, and curves. For example: compare.py runs
--by memory."""
GROUPS = {
    "Runs": "runs by baseline random leaderboard",
    "Scores": "score threshold interval in_training",
    "Files": "out overwrite title x",
}
"""Options by group, for `--help`."""


@dataclass
class Arguments:
    """Compare trained runs: scores with intervals over seeds, budgets, and curves."""

    runs: tyro.conf.Positional[list[Path]]
    """Run folders, or folders with runs below them."""
    by: list[str] = field(default_factory=list)
    """Settings to group by, such as memory, or algo learning_rate; with env, one table per environment. Default: the
    smallest set that distinguishes the runs."""
    score: str | None = None
    """Score to compare: return, a score of the task (error, f1, ...), or a column of progress.csv. Default: the task's
    own score if it has one, else return."""
    threshold: float | None = None
    """Also show the steps and minutes after which the training curve reached this score."""
    x: Axis = "steps"
    """Horizontal axis of the curves."""
    interval: Method = "t"
    """95 % interval over seeds: t (Student's t) or bootstrap (percentiles, as in rliable; too narrow for fewer than
    about five seeds)."""
    in_training: bool = False
    """Compare the last training score instead of the score on new episodes: for incomplete runs."""
    baseline: bool = True
    """Also show the memoryless agents that were trained with the runs."""
    random: bool = True
    """Also show random actions, if their score is known or quick to measure."""
    leaderboard: bool = False
    """One ranking per environment."""
    out: Path | None = None
    """Folder for comparison.md, comparison.csv, comparison-curves.csv and comparison.png."""
    overwrite: bool = False
    """Replace existing files."""
    title: str = ""
    """Title of table and picture; empty: the environment."""


def main(arguments: list[str] | None = None) -> None:
    """Runs the command with these arguments (default: `sys.argv`); exits on errors."""
    words = sys.argv[1:] if arguments is None else arguments

    def run(given: Arguments) -> None:
        with ErrorContext("comparing").user_errors():
            _run(given, words)

    run_command(Arguments, INTRO, GROUPS, words, run, {"overwrite": "out", "x": "out"})


def _run(given: Arguments, words: list[str]) -> None:
    if not given.runs:
        raise ValueError("name the folders of runs to compare, such as runs")
    if given.out is not None and not given.overwrite:
        refuse_existing(given.out)
    runs = find_runs(given.runs, given.baseline)
    console = make_console()
    by = settings.full_names(given.by, runs)
    each = given.leaderboard or "env" in by
    by = [name for name in by if name != "env"]
    comparisons = []
    for alike in by_environment(runs, by) if each else [runs]:
        try:
            found = Comparison.of(alike, by, given.score, given.interval, given.in_training)
        except ValueError as error:
            if not each:
                raise
            console.print(f"{alike[0].env}: {error}", **PLAIN_TEXT)
            continue
        comparisons.append(with_random(found) if given.random else found)
    if not comparisons:
        raise ValueError("no environment has runs with a score")
    if given.title:
        if len(comparisons) > 1:
            raise ValueError("--title is for a single environment, and there are several")
        comparisons = [dataclasses.replace(comparisons[0], title=given.title)]
    for comparison in comparisons:
        tables.show(console, comparison, given.threshold)
    if given.out is None:
        console.print("\nto write the table and curves to files, add --out FOLDER", **PLAIN_TEXT)
        return
    command = shlex.join([*shlex.split(command_for("compare")), *words])
    files = write(comparisons, given.out, given.threshold, given.x, command, given.overwrite)
    console.print("\nwritten: " + " ".join(map(str, files)), **PLAIN_TEXT)


FILES = ("{}.md", "{}.csv", "{}-curves.csv", "{}.png")


def refuse_existing(folder: str | os.PathLike[str], stem: str = "comparison") -> None:
    """Raises ValueError if a file that `write` would write exists, or `folder` is a file."""
    if Path(folder).exists() and not Path(folder).is_dir():
        raise ValueError(f"{folder} is a file: expected a folder, or the name of a new one")
    there = [name for name in (pattern.format(stem) for pattern in FILES) if (Path(folder) / name).exists()]
    if there:
        raise ValueError(f"{Path(folder, there[0])} exists: choose another --out, or add --overwrite")


def write(
    comparisons: list[Comparison],
    folder: str | os.PathLike[str],
    threshold: float | None = None,
    axis: Axis = "steps",
    command: str = "",
    overwrite: bool = False,
    stem: str = "comparison",
) -> list[Path]:
    """Writes comparisons, one per environment, to `STEM.md`, `.csv`, `-curves.csv` and `.png`.

    Args:
        comparisons: at least one.
        folder: created if missing.
        threshold: also show when this score was first reached.
        axis: horizontal axis of the picture.
        command: the command line, quoted in the Markdown.
        overwrite: replace existing files.
        stem: of the names.

    Raises:
        ValueError: a file exists already.
    """
    if not overwrite:
        refuse_existing(folder, stem)
    lines = []
    for comparison in comparisons:
        own = paper_lines([run for group in comparison.groups for run in group.runs], comparison.score)
        if threshold is not None and all(line.value != threshold for line in own):
            own.append(Line(threshold, f"threshold {threshold:g}", "-."))
        if comparison.random is not None:
            own.append(Line(comparison.random, "random actions", ":", pictures.GREY))
        lines.append(own)
    drawn = pictures.figure(comparisons, axis, lines)
    text = "\n".join(tables.markdown(comparison, threshold) for comparison in comparisons)
    place, image = Path(folder), FILES[3].format(stem)
    made = f"\n```bash\n{command}\n```\n" if command else ""
    contents: dict[Path, str | bytes] = {
        place / FILES[0].format(stem): f"![curves]({image})\n\n{text}{made}",
        place / FILES[1].format(stem): tables.as_csv(comparisons, threshold),
        place / FILES[2].format(stem): tables.curves_csv(comparisons),
        place / image: pictures.png(drawn),
    }
    place.mkdir(parents=True, exist_ok=True)
    for file, content in contents.items():
        replace_file(file, content)
    return list(contents)
