"""Learning curves of several memories over several seeds: trained through `train.py`, shown as `compare.py` shows them.

    python benchmarks/learning_curves.py --recipe maze-ppo --memories identity lstm mnm-p --seeds 0 1 2
    python benchmarks/learning_curves.py --recipe maze-ppo-long --out results --overwrite  # replaces what is published
    python benchmarks/learning_curves.py --name short -- --total-timesteps 64000           # more words for train.py

Runs go to `runs/curves/NAME/MEMORY-SEED`. One that is there is used again if it is the same training, and refused
otherwise. `OUT/NAME.md`, `.csv`, `-curves.csv` and `.png` have scores and curves with their 95 % intervals over seeds.
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
    parser.add_argument("--name", help="of runs and files; default: the recipe's")
    parser.add_argument("--memories", nargs="+", default=["identity", "lstm", "mnm-p"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--target", type=float, help="score whose first reaching is shown")
    parser.add_argument("--x", choices=["steps", "minutes", "episodes"], default="episodes", help="horizontal axis")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, one thread each")
    parser.add_argument("--title", default="", help="of the picture")
    parser.add_argument("--runs", type=Path, help="folder of the runs; default: runs/curves/NAME")
    parser.add_argument("--out", type=Path, help="folder of the files; default: that of the runs")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    parser.add_argument("extra", nargs="*", help="further arguments of train.py, after --")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    name = args.name or args.recipe
    runs = args.runs or ROOT / "runs" / "curves" / name
    out = args.out or runs
    if not args.overwrite:
        refuse_existing(out, name)
    words = ("--recipe", args.recipe, "--no-baseline", *args.extra)
    trainings = [
        Training(runs / f"{memory}-{seed}", (*words, "--memory", memory, "--seed", str(seed)))
        for seed in args.seeds
        for memory in args.memories
    ]
    train_all(trainings, args.jobs)
    found = with_random(Comparison.of(find_runs(training.folder for training in trainings), ["memory"]))
    found = replace(found, title=args.title)
    show(make_console(), found, args.target)
    command = shlex.join(["python", "benchmarks/learning_curves.py", *sys.argv[1:]])
    files = write([found], out, args.target, args.x, command, args.overwrite, name)
    print("written:", *files)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
