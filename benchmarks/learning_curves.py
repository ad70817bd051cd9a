"""Trains several memories with several seeds with `train.py`, and compares their curves with `compare.py`.

    python benchmarks/learning_curves.py --recipe maze-ppo --memories identity lstm mnm-p --seeds 0 1 2
    python benchmarks/learning_curves.py --recipe maze-ppo-long --out results --overwrite  # replaces published files
    python benchmarks/learning_curves.py --name short -- --total-timesteps 64000           # arguments of train.py

Runs go to `runs/curves/NAME/MEMORY-SEED`; an existing run is reused if it is the same training, and refused otherwise.
`OUT/NAME.md`, `.csv`, `-curves.csv` and `.png` have scores and curves with their 95 % intervals over seeds.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import replace
from pathlib import Path

from trainings import ROOT, Training, train_all

from agents.common.terminal import make_console
from agents.comparison import Comparison, find_runs
from agents.comparison.command import refuse_existing, write
from agents.comparison.references import with_random
from agents.comparison.tables import show


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="maze-ppo")
    parser.add_argument("--name", help="name of runs and files; default: the recipe's")
    parser.add_argument("--memories", nargs="+", default=["identity", "lstm", "mnm-p"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--target", type=float, help="score: show when each memory first reached it")
    parser.add_argument("--x", choices=["steps", "minutes", "episodes"], default="episodes", help="horizontal axis")
    parser.add_argument("--jobs", type=int, default=2, help="number of parallel trainings, one thread each")
    parser.add_argument("--title", default="", help="title of the picture")
    parser.add_argument("--runs", type=Path, help="folder of the runs; default: runs/curves/NAME")
    parser.add_argument("--out", type=Path, help="folder of the files; default: the folder of the runs")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    parser.add_argument("extra", nargs="*", help="further arguments of train.py, after --")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    name = args.name or args.recipe
    runs = args.runs or ROOT / "runs" / "curves" / name
    out = args.out or runs
    if not args.overwrite:
        refuse_existing(out, name)
    shared = ("--recipe", args.recipe, "--no-baseline", *args.extra)
    trainings = [
        Training(runs / f"{memory}-{seed}", (*shared, "--memory", memory, "--seed", str(seed)))
        for seed in args.seeds
        for memory in args.memories
    ]
    train_all(trainings, args.jobs)
    comparison = with_random(Comparison.of(find_runs(training.folder for training in trainings), ["memory"]))
    comparison = replace(comparison, title=args.title)
    show(make_console(), comparison, args.target)
    command = shlex.join(["python", "benchmarks/learning_curves.py", *sys.argv[1:]])
    files = write([comparison], out, args.target, args.x, command, args.overwrite, name)
    print("written:", *files)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
