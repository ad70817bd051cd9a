"""Reruns one row of the published results, and reports whether the new score is in the published interval.

    python benchmarks/reproduce.py --list                    # every row: paper, ours, verdict, minutes
    python benchmarks/reproduce.py copy-ntm                  # one row, with its seeds
    python benchmarks/reproduce.py maze-ppo-long --seeds 0   # with other seeds
    python benchmarks/reproduce.py --write                   # the table at the top of results/README.md

The rows are in published.yaml. A complete run under runs/reproduce is reused, and a stopped one is continued. The exit
code is 1 if the mean of the new scores lies outside the 95 % interval (Student's t over seeds) of the
published ones. A single published seed has no interval; then the two scores are only printed.
"""

from __future__ import annotations

import csv
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated

import tyro
import yaml
from trainings import ROOT, Training, train_all

from agents.comparison.intervals import Interval, mean_interval

TABLE = Path(__file__).with_name("published.yaml")
README = ROOT / "results" / "README.md"
BEGIN, END = "<!-- benchmarks/reproduce.py --write -->\n", "<!-- end -->\n"
VERDICTS = ("reached", "not reached", "not comparable", "not run")


@dataclass(frozen=True)
class Row:
    """A row of published.yaml, which documents the entries."""

    name: str
    paper: str
    task: str
    figure: str
    score: str
    better: str
    protocol: str
    verdict: str
    beside: str = "–"
    train: str = ""
    command: str = ""
    where: Mapping[str, str] = field(default_factory=dict)
    seeds: Sequence[int] = ()
    each: Sequence[float] = ()
    unit: str = ""
    minutes: str | float = ""

    def __post_init__(self) -> None:
        if not self.verdict.startswith(VERDICTS) or self.better not in ("higher", "lower"):
            raise ValueError(f"{self.name}: the verdict begins with one of {VERDICTS}; better is higher or lower")
        if len(self.seeds) != len(self.each) or bool(self.each) == self.verdict.startswith("not run"):
            raise ValueError(f"{self.name}: expected a score in each for every seed, and none where it was not run")
        if bool(self.train) == bool(self.command):
            raise ValueError(f"{self.name}: expected train or command, and not both")

    @property
    def interval(self) -> Interval | None:
        """The interval of the mean of the published scores; None for fewer than two seeds."""
        return mean_interval(self.each, "t") if len(self.each) > 1 else None

    @property
    def ours(self) -> str:
        """The published score as the table shows it."""
        if not self.each:
            return "–"
        unit = f" {self.unit}".rstrip()
        seeds = f"{len(self.each)} seed{'s' if len(self.each) > 1 else ''}"
        mean = f"{_number(statistics.mean(self.each))}{unit}"
        if self.interval is None:
            return f"{mean} ({seeds})"
        lowest = 0.0 if min(self.each) >= 0 else -float("inf")  # these errors and returns are never negative
        highest = 1.0 if self.unit in ("F1", "located") else float("inf")
        low, high = max(lowest, self.interval.low), min(highest, self.interval.high)
        return f"{mean} [{_number(low)}, {_number(high)}] ({seeds})"


def _number(value: float) -> str:
    return f"{value:.4g}"


def rows(file: Path = TABLE) -> dict[str, Row]:
    """The rows by their names, in order.

    Raises:
        ValueError: an entry is missing or unknown, or does not fit the others.
    """
    found = {}
    for name, entries in yaml.safe_load(file.read_text(encoding="utf-8")).items():
        if unknown := set(entries) - {each.name for each in fields(Row)}:
            raise ValueError(f"{file.name}, {name}: unknown entries {sorted(unknown)}")
        try:
            found[name] = Row(name=name, **entries)
        except TypeError as error:
            raise ValueError(f"{file.name}, {name}: {error}") from None
    return found


def table(all_rows: Mapping[str, Row]) -> str:
    """The rows as Markdown."""
    lines = [
        "| paper | task, our memory | paper's figure | ours | compared with | same protocol? | verdict | name |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in all_rows.values():
        head, colon, rest = row.verdict.partition(":")
        verdict = f"**{head}**{colon}{rest}"
        cells = (row.paper, row.task, row.figure, row.ours, row.beside, row.protocol, verdict, f"`{row.name}`")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def with_table(page: str, drawn: str) -> str:
    """The page with `drawn` as the table between its two marks."""
    before, mark, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"expected the lines {BEGIN.strip()} and {END.strip()} around the table")
    return f"{before}{mark}\n{drawn}\n{end}{after}"


def rerun(row: Row, seeds: Sequence[int], runs: Path, jobs: int = 1) -> list[float]:
    """New scores of a row, one per seed."""
    folders = [runs / row.name / str(seed) for seed in seeds]
    if row.train:
        arguments = [(*shlex.split(row.train), "--seed", str(seed)) for seed in seeds]
        train_all([Training(*pair) for pair in zip(folders, arguments, strict=True)], jobs)
        return [trained_score(folder, row.score) for folder in folders]
    for folder, seed in zip(folders, seeds, strict=True):
        if not (folder / "scores.csv").exists():
            folder.mkdir(parents=True, exist_ok=True)
            command = shlex.split(row.command.format(seed=seed, out=folder))
            subprocess.run([sys.executable, *command], cwd=ROOT, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return [table_score(folder / "scores.csv", row.where, row.score) for folder in folders]


def trained_score(folder: Path, score: str) -> float:
    """A score of a run of train.py; see published.yaml."""
    if score == "training":
        with (folder / "progress.csv").open(newline="") as file:
            return float([row for row in csv.DictReader(file) if row["rollout/ep_rew_mean"]][-1]["rollout/ep_rew_mean"])
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    scores = {"return": summary.get("mean_return"), **(summary.get("metrics") or {})}
    if scores.get(score) is None:
        raise ValueError(f"{folder} has no {score}; expected one of {', '.join(scores)}")
    return float(scores[score])


def table_score(file: Path, where: Mapping[str, str], score: str) -> float:
    """A column of the row of a table whose entries are `where`."""
    with file.open(newline="") as opened:
        for row in csv.DictReader(opened):
            if all(row.get(key) == str(value) for key, value in where.items()):
                return float(row[score])
    raise ValueError(f"{file} has no row with {dict(where)}")


def verdict(row: Row, scores: Sequence[float]) -> tuple[bool | None, str]:
    """Whether the mean of new scores is in the published interval (None without one), and a sentence about it."""
    new = f"{row.score} {_number(statistics.mean(scores))}" + (f" {row.unit}" if row.unit else "")
    new += f" (seeds: {', '.join(map(_number, scores))})" if len(scores) > 1 else " (one seed)"
    if not row.each:
        return None, f"{row.name}: {new}; nothing is published to compare it with"
    if row.interval is None:
        return None, f"{row.name}: {new}; published {_number(row.each[0])}, one seed, which has no interval"
    low, high = row.interval.low, row.interval.high
    inside = low <= statistics.mean(scores) <= high
    where = "is in" if inside else "is outside"
    return inside, f"{row.name}: {new} {where} the published [{_number(low)}, {_number(high)}]"


@dataclass
class Args:
    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Rows to rerun."""
    list: bool = False
    """List all rows and run nothing."""
    write: bool = False
    """Write the table in results/README.md and run nothing."""
    seeds: tuple[int, ...] = ()
    """Seeds; default: the published ones, or 0."""
    jobs: int = 1
    """Number of parallel trainings, one thread each."""
    runs: Path = ROOT / "runs" / "reproduce"
    """Folder of the runs."""


def main(args: Args) -> int:
    all_rows = rows()
    if args.write:
        README.write_text(with_table(README.read_text(encoding="utf-8"), table(all_rows)), encoding="utf-8")
        return 0
    if unknown := set(args.names) - set(all_rows):
        raise SystemExit(f"error: no row {', '.join(sorted(unknown))}; expected {', '.join(all_rows)}")
    if args.list or not args.names:
        for row in all_rows.values():
            minutes = f"{row.minutes} min per seed" if row.minutes else ""
            print(f"{row.name:<20} {row.figure:<38} {row.ours:<34} {row.verdict.partition(':')[0]:<12} {minutes}")
        return 0
    results = []
    for name in args.names:
        row = all_rows[name]
        inside, text = verdict(row, rerun(row, args.seeds or row.seeds or (0,), args.runs, args.jobs))
        print(text)
        results.append(inside)
    return 1 if False in results else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
