"""Every memory trained through `train.py` on one environment, beside `identity`: a table and a CSV.

    python benchmarks/all_memories.py --env repeat-first
    python benchmarks/all_memories.py --env maze --seeds 0 1 --jobs 2

Each run lands under `runs/memories/ENV/`; what is there already is used again. The table is ordered by the mean return
of fresh episodes. All memories have the same learner, environment and number of steps, and sizes that train within
minutes on one core; none was tuned for its place in the table.
"""

from __future__ import annotations

import csv
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

from policies.memories import registered

ROOT = Path(__file__).resolve().parents[1]
SIZES = {
    "identity": "",
    "d-ntm": "hidden_size=64 memory_size=32",
    "dkm": "memory_size=16 code_size=32",
    "dmn": "capacity=16 hidden_size=32",
    "dnc": "hidden_size=64 slots=32 word_size=16 read_heads=2",
    "gru": "hidden_size=64",
    "homo-plastic": "hidden_size=64",
    "kanerva++": "",
    "lstm": "hidden_size=64",
    "memn2n": "",
    "mnm-g": "hidden_size=64 key_size=24 value_size=24 memory_units=24 heads=1 mean_over_units=true",
    "mnm-p": "hidden_size=64 key_size=24 value_size=24 memory_units=24 heads=1 mean_over_units=true",
    "multigrid": "",
    "ntm": "hidden_size=64 memory_size=32",
    "plastic": "hidden_size=64",
    "salu": "hidden_size=64 key_size=32 value_size=32 capacity=64",
    "sdnc": "hidden_size=64 slots=64 word_size=16 read_heads=2",
    "stack-rnn": "hidden_size=64",
}
FLAGS = {"stack-rnn": "--normalize-obs"}
"""Of memories that want another input: sums of observations that are never negative saturate sigmoids without bias."""
ENVIRONMENTS = {
    "repeat-first": "--env Engram/RepeatFirst-v0 --num-envs 32 --n-steps 16 --total-timesteps 120000 "
    "--learning-rate 3e-3 --gamma 0.5 --eval-episodes 512",
    "maze": "--env Engram/InvisibleGoalMaze-v0 --env-kwargs size=5 episode_length=100 --num-envs 32 --n-steps 100 "
    "--total-timesteps 160000 --learning-rate 3e-3 --gamma 0.95 --reward-scale 0.1 --clip-range 0.5 "
    "--eval-episodes 512",
}
COMMON = (
    "--algo ppo --n-epochs 4 --n-minibatches 4 --ent-coef 0.01 --anneal --no-normalize-values --no-baseline "
    "--no-progress --panels-every 0"
)


@dataclass
class Args:
    env: str = "repeat-first"
    """repeat-first or maze."""
    memories: tuple[str, ...] = tuple(name for name in registered() if name in SIZES)
    """Which."""
    seeds: tuple[int, ...] = (0,)
    """Each memory is trained once with each."""
    jobs: int = 2
    """Trainings at a time, one thread each."""
    out: Path = ROOT / "results"
    """Folder for memories-ENV.csv and memories-ENV.md."""


def train(args: Args, memory: str, seed: int) -> dict[str, float]:
    """One run, unless it is there; its summary."""
    folder = ROOT / "runs" / "memories" / args.env / f"{memory}-{seed}"
    if not (folder / "summary.json").exists():
        sizes = ["--memory-kwargs", *SIZES[memory].split()] if SIZES[memory] else []
        flags = f"{ENVIRONMENTS[args.env]} {COMMON} {FLAGS.get(memory, '')}"
        words = f"--memory {memory} --seed {seed} --run-dir {folder} {flags}".split()
        command = [sys.executable, str(ROOT / "train.py"), *words, *sizes]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
        print(memory, seed, json.loads((folder / "summary.json").read_text())["mean_return"], flush=True)
    summary: dict[str, float] = json.loads((folder / "summary.json").read_text())
    return summary


def main(args: Args) -> None:
    pairs = [(memory, seed) for seed in args.seeds for memory in args.memories]
    with ThreadPoolExecutor(args.jobs) as pool:
        found = dict(zip(pairs, pool.map(lambda pair: train(args, *pair), pairs), strict=True))
    rows = []
    for memory in args.memories:
        runs = [found[memory, seed] for seed in args.seeds]
        rows.append(
            {
                "memory": memory,
                "return": round(statistics.mean(run["mean_return"] for run in runs), 3),
                "each seed": " ".join(f"{run['mean_return']:.3g}" for run in runs),
                "ci95 of a seed": round(statistics.mean(run["ci95"] for run in runs), 3),
                "steps/s": round(statistics.median(run["steps_per_s"] for run in runs)),
                "sizes": f"{SIZES[memory] or 'its defaults'} {FLAGS.get(memory, '')}".strip(),
            }
        )
    rows.sort(key=lambda row: -float(row["return"]))
    args.out.mkdir(exist_ok=True)
    with open(args.out / f"memories-{args.env}.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    lines += ["| " + " | ".join(str(value) for value in row.values()) + " |" for row in rows]
    (args.out / f"memories-{args.env}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
