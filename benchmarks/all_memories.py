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
from trainings import ROOT, Training, train_all

from agents.common.terminal import make_console
from agents.comparison import Comparison, find_runs
from agents.comparison.command import refuse_existing, write
from agents.comparison.references import with_random
from agents.comparison.tables import show
from policies.memories import registered

SIZES = {
    "identity": "",
    "d-ntm": "hidden_size=64 slots=32",
    "dkm": "slots=16 word_size=32",
    "dmn": "capacity=16 hidden_size=32",
    "dnc": "hidden_size=64 slots=32 word_size=16 read_heads=2",
    "gated-deltanet": "hidden_size=64 num_layers=1",
    "gru": "hidden_size=64",
    "gtrxl": "hidden_size=64 num_layers=1 capacity=32",
    "homo-plastic": "hidden_size=64",
    "kanerva++": "",
    "lru": "hidden_size=64",
    "lstm": "hidden_size=64",
    "memn2n": "",
    "mingru": "hidden_size=64",
    "mnm-g": "hidden_size=64 key_size=24 value_size=24 memory_units=24 heads=1 mean_over_units=true",
    "mnm-p": "hidden_size=64 key_size=24 value_size=24 memory_units=24 heads=1 mean_over_units=true",
    "multigrid": "",
    "ntm": "hidden_size=64 slots=32",
    "plastic": "hidden_size=64",
    "salu": "hidden_size=64 key_size=32 value_size=32 capacity=64",
    "sdnc": "hidden_size=64 slots=64 word_size=16 read_heads=2",
    "stack-rnn": "hidden_size=64",
}
EQUAL_SIZES = {
    "identity": "",
    "dnc": "hidden_size=94 slots=32 word_size=16 read_heads=2",
    "gated-deltanet": "hidden_size=72 num_layers=1",
    "gru": "hidden_size=149",
    "gtrxl": "hidden_size=56 num_layers=1 capacity=32",
    "homo-plastic": "hidden_size=263",
    "kanerva++": "hidden_size=98 output_size=32 dense_size=16 latent_size=8",
    "lru": "hidden_size=77",
    "lstm": "hidden_size=128",
    "mingru": "hidden_size=89",
    "mnm-p": "hidden_size=89 key_size=32 value_size=32 memory_units=32 heads=1 mean_over_units=true",
    "multigrid": "base=2 levels=[1,2] channels=[16,16]",
    "ntm": "hidden_size=98 slots=32",
    "plastic": "hidden_size=188",
    "salu": "hidden_size=94 key_size=32 value_size=32 capacity=64",
    "stack-rnn": "hidden_size=237",
}
"""Sizes for about 74,885 parameters, as with the LSTM; gtrxl (+7 %) and gated-deltanet (-5 %) come no closer."""
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
