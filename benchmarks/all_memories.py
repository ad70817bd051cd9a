"""Trains every memory and `identity` on one environment with `train.py`, and compares them with `compare.py`.

    python benchmarks/all_memories.py --env repeat-first
    python benchmarks/all_memories.py --env maze --seeds 0 1 --jobs 2
    python benchmarks/all_memories.py --env maze-10k --seeds 0 1 2            # equal parameters, 10,000 episodes
    python benchmarks/all_memories.py --env maze --out results --overwrite    # replaces the published files

Runs go to `runs/memories/ENV/MEMORY-SEED`; an existing run is reused if it is the same training, and refused otherwise.
`OUT/memories-ENV.md`, `.csv`, `-curves.csv` and `.png` have the table, the best memory first, and the curves. All
memories have the same learner, environment and number of steps; none was tuned. The sizes for `repeat-first` and `maze`
train within minutes on one core; those for `maze-10k` give every agent about the 74,885 parameters of one with an LSTM
of 128 units, within 8 %.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from memory_sizes import EQUAL_SIZES, SIZES
from trainings import ROOT, Training, train_all

from agents.common.terminal import make_console
from agents.comparison import Comparison, find_runs
from agents.comparison.command import refuse_existing, write
from agents.comparison.references import with_random
from agents.comparison.tables import show
from policies.memories import registered

FLAGS = {"stack-rnn": "--normalize-obs"}
"""Flags of single memories: stack-rnn's sigmoids have no bias, so sums of non-negative observations saturate them."""
ENVIRONMENTS = {
    "repeat-first": "--env Engram/RepeatFirst-v0 --num-envs 32 --n-steps 16 --total-timesteps 120000 "
    "--learning-rate 3e-3 --gamma 0.5 --eval-episodes 512",
    "maze": "--env Engram/InvisibleGoalMaze-v0 --env-kwargs size=5 episode_length=100 --num-envs 32 --n-steps 100 "
    "--total-timesteps 160000 --learning-rate 3e-3 --gamma 0.95 --reward-scale 0.1 --clip-range 0.5 "
    "--eval-episodes 512",
    "maze-10k": "--recipe maze-ppo --total-timesteps 2000000 --eval-episodes 512",
}
COMMON = (
    "--algo ppo --n-epochs 4 --n-minibatches 4 --ent-coef 0.01 --anneal --no-normalize-values --no-baseline "
    "--panels-every 0"
)


@dataclass
class Args:
    env: str = "repeat-first"
    """repeat-first, maze or maze-10k."""
    memories: tuple[str, ...] = ()
    """Memories to train; default: all that have a size for the environment."""
    seeds: tuple[int, ...] = (0,)
    """Each memory is trained once with each seed."""
    jobs: int = 2
    """Number of parallel trainings, one thread each."""
    runs: Path | None = None
    """Folder of the runs; default: runs/memories/ENV."""
    collect: bool = False
    """Train nothing; compare the finished runs only."""
    out: Path | None = None
    """Folder for memories-ENV.md, .csv, -curves.csv and .png; default: the folder of the runs."""
    overwrite: bool = False
    """Replace existing files."""


def sizes_of(env: str) -> dict[str, str]:
    """The `--memory-kwargs` of each memory, by name."""
    return EQUAL_SIZES if env == "maze-10k" else SIZES


def training(args: Args, runs: Path, memory: str, seed: int) -> Training:
    """The training of one memory with one seed."""
    chosen = sizes_of(args.env)[memory]
    sizes = ["--memory-kwargs", *chosen.split()] if chosen else []
    flags = f"--memory {memory} --seed {seed} {ENVIRONMENTS[args.env]} {COMMON} {FLAGS.get(memory, '')}"
    return Training(runs / f"{memory}-{seed}", (*flags.split(), *sizes))


def main(args: Args) -> None:
    runs = args.runs or ROOT / "runs" / "memories" / args.env
    out, name = args.out or runs, f"memories-{args.env}"
    if not args.overwrite:
        refuse_existing(out, name)
    memories = args.memories or [name for name in registered() if name in sizes_of(args.env)]
    trainings = [training(args, runs, memory, seed) for seed in args.seeds for memory in memories]
    if not args.collect:
        train_all(trainings, args.jobs)
    finished = [one.folder for one in trainings if (one.folder / "summary.json").exists()]
    comparison = with_random(Comparison.of(find_runs(finished), ["memory"]))
    show(make_console(), comparison)
    command = shlex.join(["python", "benchmarks/all_memories.py", *sys.argv[1:]])
    files = write([comparison], out, command=command, overwrite=args.overwrite, stem=name)
    print("written:", *files)


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
