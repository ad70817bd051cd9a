"""The supervised tasks: every recipe of one, trained beside `lstm` and `identity` for as many steps, lessons included.

    python benchmarks/task_table.py
    python benchmarks/task_table.py --tasks copy-dnc mapping-9 --seeds 0 1 --jobs 2
    python benchmarks/task_table.py --out results --overwrite    # replaces what is published
    python benchmarks/task_table.py --name copy-and-sort --tasks copy-ntm copy-dnc --seeds 0 1 2  # other files
    python benchmarks/task_table.py --collect                    # only what is under runs/tasks already

trains `python train.py --recipe TASK` and the same with `--memory lstm` and `--memory identity` (their default sizes)
under `runs/tasks/`; one that is there is used again if it is the same training, and refused otherwise. A task that
follows another begins with the weights of its lesson, so name both. `OUT/NAME.md`, `.csv`, `-curves.csv`
and `.png` have a table and a panel a task: each task's own score with its 95 % interval over seeds.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from trainings import ROOT, Training, train_all

from agents.common.terminal import make_console
from agents.comparison import Comparison, find_runs
from agents.comparison.command import refuse_existing, write
from agents.comparison.tables import show
from agents.run.config import RECIPES, load_config

TASKS = (
    *("stack-anbn", "copy-dnc", "copy-ntm", "mapping-9", "mapping-15", "associative-recall"),
    *("priority-sort-10", "priority-sort", "dictionary-2-1", "dictionary-4-1", "dictionary-3-2", "dictionary-8-4"),
    *("double-copy-5", "double-copy-12", "double-copy-25", "double-copy-50"),
    *("mnist-recall-2", "mnist-recall-4", "mnist-recall-each", "mnist-recall-10"),
)
SCORES = {"stack-anbn": "success"}
"""Of tasks that are not judged by their share of wrong answers, or F1."""
BESIDE = ("lstm", "identity")


@dataclass
class Args:
    tasks: tuple[str, ...] = TASKS
    """Recipes."""
    seeds: tuple[int, ...] = (0,)
    """Each agent is trained once with each."""
    jobs: int = 2
    """Trainings at a time, one thread each."""
    collect: bool = False
    """Train nothing; leave out what is not there."""
    runs: Path = ROOT / "runs" / "tasks"
    """Where the runs are."""
    out: Path | None = None
    """Folder of the files; default: that of the runs."""
    overwrite: bool = False
    """Replace files that are there."""
    name: str = "supervised-tasks"
    """Of the files."""


def lesson_of(task: str) -> str | None:
    """The recipe whose weights a task begins with."""
    return load_config(RECIPES / f"{task}.yaml").follows


def depth(task: str) -> int:
    """How many lessons go before a task."""
    before = lesson_of(task)
    return 0 if before is None else 1 + depth(before)


def training(args: Args, task: str, beside: str, seed: int) -> Training:
    """A task's own memory (`beside` is empty) or another in its place."""

    def folder(task: str) -> Path:
        return args.runs / "-".join(filter(None, (task, beside, str(seed))))

    words = ["--no-baseline", "--recipe", task, "--seed", str(seed)]
    words += ["--memory", beside, "--precision", "float32"] if beside else []
    before = lesson_of(task)
    words += ["--init-from", str(folder(before))] if before else []
    return Training(folder(task), tuple(words))


def main(args: Args) -> None:
    out = args.out or args.runs
    if not args.overwrite:
        refuse_existing(out, args.name)
    trainings = {
        task: [training(args, task, beside, seed) for seed in args.seeds for beside in ("", *BESIDE)]
        for task in args.tasks
    }
    if not args.collect:
        for lessons in range(1 + max(map(depth, args.tasks))):
            train_all((one for task in args.tasks if depth(task) == lessons for one in trainings[task]), args.jobs)
    comparisons = []
    for task in args.tasks:
        there = [one.folder for one in trainings[task] if (one.folder / "summary.json").exists()]
        if there:
            found = Comparison.of(find_runs(there), ["memory"], SCORES.get(task))
            comparisons.append(dataclasses.replace(found, title=task))
    if not comparisons:
        raise ValueError(f"{args.runs} holds none of these tasks")
    for found in comparisons:
        show(make_console(), found)
    command = shlex.join(["python", "benchmarks/task_table.py", *sys.argv[1:]])
    print("written:", *write(comparisons, out, command=command, overwrite=args.overwrite, stem=args.name))


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
