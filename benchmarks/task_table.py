"""The supervised tasks: every recipe of one, trained beside `lstm` and `identity`, as curves and a table.

    python benchmarks/task_table.py
    python benchmarks/task_table.py --tasks copy-dnc mapping-9 --seeds 0 1 --jobs 2
    python benchmarks/task_table.py --collect   # only what is under runs/tasks already

trains `python train.py --recipe TASK` and the same with `--memory lstm` and `--memory identity` (their default sizes)
under `runs/tasks/`, where whatever is there already is used again; a lesson that follows another (`LESSONS`) begins
with its weights, so name both. It then writes `results/supervised-tasks.csv` (the points of every curve), `.png` (the
curves) and `.md` (the table: each task's own score over fresh episodes).
"""

from __future__ import annotations

import csv
import json
import math
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import tyro
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

from agents.run.config import RECIPES, load_config

ROOT = RECIPES.parent
METRICS = {
    "stack-anbn": "success",
    "copy-dnc": "wrong_bits",
    "copy-ntm": "wrong_bits",
    "mapping-9": "f1",
    "mapping-15": "f1",
    "associative-recall": "wrong_bits",
    "priority-sort-10": "wrong_bits",
    "priority-sort": "wrong_bits",
    "dictionary-4-1": "error",
    "dictionary-3-2": "error",
    "dictionary-8-4": "error",
    "double-copy-5": "error",
    "double-copy-12": "error",
    "double-copy-25": "error",
    "double-copy-50": "error",
    "mnist-recall-2": "error",
    "mnist-recall-4": "error",
    "mnist-recall-each": "error",
    "mnist-recall-10": "error",
}
"""Recipes, and the score of each: the one its paper gives."""
LESSONS = {task: before for task in METRICS if (before := load_config(RECIPES / f"{task}.yaml").follows)}
"""Recipes that begin with the weights of another, of the same memory and seed, by `--init-from`."""
BESIDE = ("lstm", "identity")


@dataclass
class Args:
    tasks: tuple[str, ...] = tuple(METRICS)
    """Recipes."""
    seeds: tuple[int, ...] = (0,)
    """Each agent is trained once with each."""
    jobs: int = 2
    """Trainings at a time, one thread each."""
    collect: bool = False
    """Train nothing; leave out what is not there."""
    runs: Path = ROOT / "runs" / "tasks"
    """Where the runs are."""
    out: Path = ROOT / "results"
    """Where the table, the points and the picture go."""


@dataclass
class Run:
    """One training."""

    task: str
    beside: str
    """The memory that takes the place of the recipe's; empty: none does."""
    seed: int
    folder: Path

    @property
    def lessons(self) -> int:
        """How many go before it."""
        count, task = 0, self.task
        while task := LESSONS.get(task, ""):
            count += 1
        return count

    def train(self) -> None:
        """Train it, unless it is done; one that was cut off goes on."""
        if (self.folder / "summary.json").exists():
            return
        command = [sys.executable, str(ROOT / "train.py"), "--no-progress", "--no-baseline"]
        if any(self.folder.glob("checkpoints/step_*")):
            command += ["--resume", str(self.folder)]
        else:
            command += ["--recipe", self.task, "--seed", str(self.seed), "--run-dir", str(self.folder)]
            command += ["--memory", self.beside, "--precision", "float32"] if self.beside else []
            if self.task in LESSONS:
                command += ["--init-from", str(self.folder.parent / named(LESSONS[self.task], self.beside, self.seed))]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stderr}")

    @property
    def config(self) -> dict[str, Any]:
        return yaml.safe_load((self.folder / "config.yaml").read_text(encoding="utf-8"))

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))

    def curve(self, points: int = 100) -> list[dict[str, Any]]:
        """Steps, seconds, the task's score and the loss, each score the mean of a hundredth of the training."""
        with (self.folder / "progress.csv").open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["train/target_loss"]]
        metric = f"task/{METRICS[self.task]}"
        length = math.ceil(len(rows) / points)
        parts = [rows[at : at + length] for at in range(0, len(rows), length)]

        def mean(part: list[dict[str, str]], name: str) -> float:
            values = [float(row[name]) for row in part if row.get(name)]
            return sum(values) / len(values) if values else math.nan

        return [
            {
                **{"task": self.task, "memory": self.config["memory"], "seed": self.seed},
                **{"steps": int(part[-1]["time/total_timesteps"]), "seconds": int(part[-1]["time/time_elapsed"])},
                **{"score": f"{mean(part, metric):.5g}", "target_loss": f"{mean(part, 'train/target_loss'):.5g}"},
            }
            for part in parts
        ]


def named(task: str, beside: str, seed: int) -> str:
    """The folder of a run."""
    return "-".join(filter(None, (task, beside, str(seed))))


def main(args: Args) -> None:
    runs = [
        Run(task, beside, seed, args.runs / named(task, beside, seed))
        for task in args.tasks
        for seed in args.seeds
        for beside in ("", *BESIDE)
    ]
    if not args.collect:
        with ThreadPoolExecutor(args.jobs) as pool:
            for lessons in range(1 + max(run.lessons for run in runs)):
                list(pool.map(Run.train, [run for run in runs if run.lessons == lessons]))
    runs = [run for run in runs if (run.folder / "summary.json").exists()]
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "supervised-tasks.csv").open("w", newline="", encoding="utf-8") as file:
        points = [point for run in runs for point in run.curve()]
        writer = csv.DictWriter(file, list(points[0]))
        writer.writeheader()
        writer.writerows(points)
    (args.out / "supervised-tasks.md").write_text(table(runs), encoding="utf-8")
    draw(args.out / "supervised-tasks.png", points)
    print(table(runs))


def table(runs: list[Run]) -> str:
    lines = ["| recipe | memory | seed | score | of fresh episodes | median loss at the end | steps | minutes |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for run in runs:
        summary, metric = run.summary, METRICS[run.task]
        with (run.folder / "progress.csv").open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["train/target_loss"]]
        loss = statistics.median(float(row["train/target_loss"]) for row in rows[-100:])
        clock = [float(row["time/time_elapsed"]) for row in rows]
        ends = [*(at for at, after in pairwise(clock) if after < at), clock[-1]]  # a run gone on with starts it anew
        minutes = sum(ends) / 60
        cells = [run.task, run.config["memory"], run.seed, metric, f"{summary['metrics'].get(metric, math.nan):.4g}"]
        cells += [f"{loss:.4g}", f"{summary['env_steps']:,}", f"{minutes:.1f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def draw(path: Path, points: list[dict[str, Any]]) -> None:
    """A small picture for every task: its score against steps, by memory."""
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(point["task"] for point in points))
    columns = min(3, len(tasks))
    rows = math.ceil(len(tasks) / columns)
    figure = Figure(figsize=(4 * columns, 2.7 * rows), dpi=120, layout="constrained")
    panes = list(figure.subplots(rows, columns, squeeze=False).flat)
    colors = {"identity": "#8a8f98", "lstm": "#2a6fb0"}
    for axes, task in zip(panes, tasks, strict=False):
        of_task = [point for point in points if point["task"] == task]
        for memory, seed in dict.fromkeys((point["memory"], point["seed"]) for point in of_task):
            curve = [point for point in of_task if (point["memory"], point["seed"]) == (memory, seed)]
            xs, ys = [point["steps"] / 1e6 for point in curve], [float(point["score"]) for point in curve]
            name, line = (memory, "-") if seed == points[0]["seed"] else (f"{memory}, seed {seed}", "--")
            axes.plot(xs, ys, line, color=colors.get(memory, "#d1495b"), label=name)
        axes.set_title(f"{task}: {METRICS[task]}", fontsize=9)
        axes.set_xlabel("million steps", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=8)
    for axes in panes[len(tasks) :]:
        axes.set_axis_off()
    figure.savefig(path)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
