"""How many environment steps a second: uniform random actions, drawn anew for every step and counted in.

    python benchmarks/env_speed.py --num-envs 64 1024 16384 --threads 1 2 --csv results/env_speed.csv

A step of 1,024 copies counts as 1,024. Each figure is the median of the repeats.
"""

from __future__ import annotations

import csv
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import gymnasium
import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

import envs
from envs.tensor_env import TensorEnv


@dataclass
class Args:
    envs: tuple[str, ...] = field(default_factory=envs.registered)
    """Registered ids to measure."""
    num_envs: tuple[int, ...] = (64, 1024, 16384)
    """Numbers of copies to measure."""
    threads: tuple[int, ...] = (1,)
    """Numbers of CPU threads to measure."""
    device: str = "cpu"
    """Where the environments live."""
    seconds: float = 0.5
    """Length of one repeat."""
    repeats: int = 7
    """Repeats, of which the median counts."""
    csv: Path | None = None
    """Write the table here too."""


def steps_per_second(env: TensorEnv, seconds: float, repeats: int) -> float:
    """Median steps a second, all copies together."""
    env.reset(seed=0)
    shape, actions = env.action_space.shape, _number_of_actions(env)

    def run(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            env.step(torch.randint(actions, shape, device=env.device))
        if env.device.type == "cuda":
            torch.cuda.synchronize(env.device)
        return time.perf_counter() - start

    run(50)
    steps = max(1, int(seconds / (run(200) / 200)))
    return statistics.median(env.num_envs * steps / run(steps) for _ in range(repeats))


def _number_of_actions(env: TensorEnv) -> int:
    """How many values one entry of an action can take, where all entries are alike."""
    space = env.single_action_space
    if isinstance(space, gymnasium.spaces.Discrete):
        return int(space.n)
    if isinstance(space, gymnasium.spaces.MultiBinary):
        return 2
    if isinstance(space, gymnasium.spaces.MultiDiscrete):
        return int(space.nvec.min())
    raise TypeError(f"env_speed draws actions for discrete spaces only, not {space}")


def main(args: Args) -> None:
    """Measure, print, write."""
    rows = []
    print(f"{'environment':<32}{'copies':>8}{'threads':>9}{'M steps/s':>12}{'us/step':>10}   {args.device}")
    for env_id in args.envs:
        for num_envs in args.num_envs:
            env = gymnasium.make_vec(env_id, num_envs=num_envs, device=args.device)
            assert isinstance(env, TensorEnv)
            for threads in args.threads:
                torch.set_num_threads(threads)
                speed = steps_per_second(env, args.seconds, args.repeats)
                micro = num_envs / speed * 1e6
                print(f"{env_id:<32}{num_envs:>8}{threads:>9}{speed / 1e6:>12.2f}{micro:>10.1f}", flush=True)
                rows.append((env_id, num_envs, threads, args.device, round(speed), round(micro, 2)))
    if args.csv is not None:
        args.csv.parent.mkdir(parents=True, exist_ok=True)
        with args.csv.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(
                ("environment", "num_envs", "threads", "device", "steps_per_second", "microseconds_per_step")
            )
            writer.writerows(rows)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
