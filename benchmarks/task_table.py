"""Trains every recipe of a supervised task, and other memories for as many steps, lessons included.

    python benchmarks/task_table.py
    python benchmarks/task_table.py --tasks copy-dnc mapping-9 --seeds 0 1 --jobs 2
    python benchmarks/task_table.py --out results --overwrite    # replaces the published files
    python benchmarks/task_table.py --name copy-and-sort --tasks copy-ntm copy-dnc --seeds 0 1 2  # other files
    python benchmarks/task_table.py --collect                    # only runs that exist under runs/tasks

Runs `python train.py --recipe TASK`, also with `--memory lstm` and `--memory identity` (or `--baselines`), under
`runs/tasks/`; an existing run is reused if it is the same training, and refused otherwise. A task that follows another
starts from the weights of that lesson, so name both. `OUT/NAME.md`, `.csv`, `-curves.csv` and `.png` have a table and a
panel for each task: the task's own score with its 95 % interval over seeds.
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
from agents.run.recipes import RECIPES, load_config

TASKS = (
    *("stack-anbn", "copy-dnc", "copy-ntm", "mapping-9", "mapping-15", "associative-recall"),
    *("mapping-9-deltanet", "mapping-9-random", "mapping-9-explore", "mapping-15-questions"),
    *("priority-sort-10", "priority-sort", "dictionary-2-1", "dictionary-4-1"),
    *("dictionary-1-4", "dictionary-8-4", "dictionary-1-8", "dictionary-12-8", "dictionary-1-12", "dictionary-16-12"),
    *("double-copy-5", "double-copy-12", "double-copy-25", "double-copy-50"),
    *("repeat-copy-2", "repeat-copy-3", "repeat-copy", "n-grams", "mnist-recall", "mnist-recall-last"),
    *("mnist-recall-2", "mnist-recall-4", "mnist-recall-each", "mnist-recall-10"),
)
SCORES = {"stack-anbn": "success"}
"""Scores of tasks that are not compared by their error or F1."""
SIZES = {"mnm-p": ("hidden_size=100", "heads=1", "mean_over_units=true"), "salu": ("hidden_size=100",)}
"""Sizes of baselines; the others have their default sizes."""


@dataclass
class Args:
    tasks: tuple[str, ...] = TASKS
    """Recipes."""
    seeds: tuple[int, ...] = (0,)
    """Each agent is trained once with each seed."""
    baselines: tuple[str, ...] = ("lstm", "identity")
    """Memories that are trained with the recipe's settings, steps and lessons, beside its own."""
    jobs: int = 2
    """Number of parallel trainings, one thread each."""
    collect: bool = False
    """Train nothing; compare the finished runs only."""
    runs: Path = ROOT / "runs" / "tasks"
    """Folder of the runs."""
    out: Path | None = None
    """Folder of the files; default: the folder of the runs."""
    overwrite: bool = False
    """Replace existing files."""
    name: str = "supervised-tasks"
    """Name of the files."""


def lesson_of(task: str) -> str | None:
    """The recipe whose weights a task starts from."""
    return load_config(RECIPES / f"{task}.yaml").follows


def depth(task: str) -> int:
    """Number of lessons before a task."""
    before = lesson_of(task)
    return 0 if before is None else 1 + depth(before)


def training(args: Args, task: str, baseline: str, seed: int) -> Training:
    """The training of a task with its own memory (`baseline` is empty), or with a baseline's."""

    def folder(task: str) -> Path:
        return args.runs / "-".join(filter(None, (task, baseline, str(seed))))

    words = ["--no-baseline", "--recipe", task, "--seed", str(seed)]
    if baseline:
        words += ["--memory", baseline, "--precision", "float32"]
        words += ["--memory-kwargs", *SIZES[baseline]] if baseline in SIZES else []
    before = lesson_of(task)
    words += ["--init-from", str(folder(before))] if before else []
    return Training(folder(task), tuple(words))


def main(args: Args) -> None:
    out = args.out or args.runs
    if not args.overwrite:
        refuse_existing(out, args.name)
    trainings = {
        task: [training(args, task, baseline, seed) for seed in args.seeds for baseline in ("", *args.baselines)]
        for task in args.tasks
    }
    if not args.collect:
        for lessons in range(1 + max(map(depth, args.tasks))):
            train_all((one for task in args.tasks if depth(task) == lessons for one in trainings[task]), args.jobs)
    comparisons = []
    for task in args.tasks:
        finished = [one.folder for one in trainings[task] if (one.folder / "summary.json").exists()]
        if finished:
            found = Comparison.of(find_runs(finished), ["memory"], SCORES.get(task))
            comparisons.append(dataclasses.replace(found, title=task))
    if not comparisons:
        raise ValueError(f"{args.runs} has none of these tasks")
    for found in comparisons:
        show(make_console(), found)
    command = shlex.join(["python", "benchmarks/task_table.py", *sys.argv[1:]])
    print("written:", *write(comparisons, out, command=command, overwrite=args.overwrite, stem=args.name))


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
