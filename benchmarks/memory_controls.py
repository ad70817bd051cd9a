"""Tests whether trained agents use their memories: scores unchanged, with a frozen memory and with another's.

    python benchmarks/memory_controls.py runs/maze/kanerva++-0 runs/maze/dnc-0 --episodes 512 --csv results/controls.csv

`agents.evaluation.controls` documents both controls. An agent whose score does not fall does not use its memory.
"""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

import agents
from agents.environments import make_env
from agents.evaluation import evaluate
from agents.evaluation.controls import CONTROLS, controlled, memory_entries
from agents.run.recipes import load_config


@dataclass
class Args:
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs of `train.py`."""
    episodes: int = 512
    """Episodes of each score, in parallel."""
    entries: tuple[str, ...] = ()
    """Entries of the memory's state; default: all except the controller's."""
    seed: int = 1234
    """Seed of the episodes, equal for all controls."""
    csv: Path | None = None
    """File for the table."""


def main(args: Args) -> None:
    rows: list[dict[str, Any]] = []
    for run in args.runs:
        config = load_config(run / "config.yaml")
        env = make_env(config.env, args.episodes, **config.env_kwargs)
        policy = agents.load(run, env=env, device="cpu").policy
        entries = list(args.entries) or memory_entries(policy.initial_state(1))
        scores = {"own": evaluate(policy, env, args.episodes, seed=args.seed)}
        for control in CONTROLS:
            with controlled(policy, control, entries):
                scores[control] = evaluate(policy, env, args.episodes, seed=args.seed)
        row = {"run": run.name, "memory": policy.memory_name, "entries": " ".join(entries)}
        rows.append(row | {name: f"{score.mean:.1f} ± {score.ci95:.1f}" for name, score in scores.items()})
        print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    if args.csv is not None:
        with args.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(tyro.cli(Args, description=__doc__))
