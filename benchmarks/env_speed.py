"""Measures environment steps per second with uniform random actions, including the time to draw them.

    python benchmarks/env_speed.py --num-envs 64 1024 16384 --threads 1 2 --csv results/env_speed.csv
    python benchmarks/env_speed.py --envs Engram/Mapping-v0 --env-kwargs size=25 --num-envs 1024 --against CHECKOUT

A step of 1,024 environments counts as 1,024. Each figure is the median of the repeats: of processor time with one CPU
thread, else of wall-clock time. With `--against`, another checkout is measured alternately in the same process.
"""

from __future__ import annotations

import csv
import importlib
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import torch
import tyro
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

import envs
from envs.bits import random_words
from envs.tensor_env import TensorEnv


@dataclass
class Args:
    envs: tuple[str, ...] = field(default_factory=envs.registered)
    """Registered ids to measure."""
    env_kwargs: tuple[str, ...] = ()
    """Arguments of the environments, as key=value."""
    num_envs: tuple[int, ...] = (64, 1024, 16384)
    """Numbers of copies to measure."""
    threads: tuple[int, ...] = (1,)
    """Numbers of CPU threads to measure."""
    actions: str = "draw"
    """"draw": new actions at every step, bits as int8; "once": the same actions, to measure the environment alone."""
    device: str = "cpu"
    """Device of the environments."""
    seconds: float = 0.5
    """Steps of one repeat."""
    repeats: int = 7
    """Number of repeats; the median is reported."""
    against: Path | None = None
    """Another checkout to compare with."""
    csv: Path | None = None
    """File for the table."""


class Timed:
    """An environment that has been reset and warmed up, and a way to time its steps."""

    def __init__(self, env: TensorEnv, once: bool, clock: Callable[[], float]) -> None:
        self.env, self.clock, self.draw = env, clock, _actions(env)
        env.reset(seed=0)
        if once:
            action = self.draw()
            self.draw = lambda: action
        self.seconds(50)

    def seconds(self, steps: int) -> float:
        """Seconds of `steps` steps."""
        start = self.clock()
        for _ in range(steps):
            self.env.step(self.draw())
        if self.env.device.type == "cuda":
            torch.cuda.synchronize(self.env.device)
        return self.clock() - start


def in_turns(sides: list[Timed], seconds: float, repeats: int) -> list[list[float]]:
    """Steps per second of each side, summed over copies, in each repeat."""
    steps = [
        side.env.horizon or 200 for side in sides
    ]  # whole episodes, because a reset can cost as much as many steps
    steps = [count * max(1, round(seconds / side.seconds(count))) for side, count in zip(sides, steps, strict=True)]
    found: list[list[float]] = [[] for _ in sides]
    for _ in range(repeats):
        for side, count, speeds in zip(sides, steps, found, strict=True):
            speeds.append(side.env.num_envs * count / side.seconds(count))
    return found


def _actions(env: TensorEnv) -> Callable[[], torch.Tensor]:
    """Draws random actions of all copies; bits (up to 784 per copy) as int8, 64 from each random word."""
    space, shape = env.single_action_space, env.action_space.shape
    assert shape is not None
    if isinstance(space, gymnasium.spaces.MultiBinary):
        size, place = math.prod(shape), torch.arange(8, dtype=torch.int8, device=env.device)[:, None]

        def bits() -> torch.Tensor:
            octets = random_words(-(-size // 64), None, env.device).view(torch.int8)
            return (octets >> place & 1).flatten()[:size].view(shape)

        return bits
    if isinstance(space, gymnasium.spaces.Discrete):
        choices = int(space.n)
    elif isinstance(space, gymnasium.spaces.MultiDiscrete):
        choices = int(space.nvec.min())
    else:
        raise TypeError(f"env_speed draws actions for discrete spaces only, not {space}")
    return lambda: torch.randint(choices, shape, device=env.device)


def classes(ids: tuple[str, ...], checkout: Path) -> dict[str, Any]:
    """The environment classes of another checkout."""
    ours = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "envs"}
    sys.path.insert(0, str(checkout.resolve()))
    try:
        places = [str(gymnasium.spec(env_id).vector_entry_point).split(":") for env_id in ids]
        found = {env_id: importlib.import_module(where) for env_id, (where, _) in zip(ids, places, strict=True)}
        if not all(Path(str(module.__file__)).is_relative_to(checkout.resolve()) for module in found.values()):
            raise FileNotFoundError(f"{checkout} has no envs/; expected a checkout of this repository")
        return {env_id: getattr(found[env_id], name) for env_id, (_, name) in zip(ids, places, strict=True)}
    finally:
        sys.path.pop(0)
        for name in [name for name in sys.modules if name.split(".")[0] == "envs"]:
            del sys.modules[name]
        sys.modules.update(ours)


def main(args: Args) -> None:
    """Measures the workloads, prints the table and writes it."""
    kwargs = {key: yaml.safe_load(value) for key, _, value in (pair.partition("=") for pair in args.env_kwargs)}
    other = classes(args.envs, args.against) if args.against else {}
    rows = []
    print(f"{'environment':<32}{'copies':>8}{'threads':>9}{'M steps/s':>12}{'us/step':>10}   {args.device}")
    for env_id in args.envs:
        for num_envs in args.num_envs:
            env = gymnasium.make_vec(env_id, num_envs=num_envs, device=args.device, **kwargs)
            assert isinstance(env, TensorEnv)
            both = [env, *([other[env_id](num_envs, device=args.device, **kwargs)] if other else [])]
            for threads in args.threads:
                torch.set_num_threads(threads)
                clock = time.process_time if args.device == "cpu" and threads == 1 else time.perf_counter
                sides = [Timed(one, args.actions == "once", clock) for one in both]
                turns = in_turns(sides, args.seconds, args.repeats)
                speed = statistics.median(turns[0])
                micro = num_envs / speed * 1e6
                line = f"{env_id:<32}{num_envs:>8}{threads:>9}{speed / 1e6:>12.3f}{micro:>10.1f}"
                if other:
                    ratios = sorted(ours / theirs for ours, theirs in zip(*turns, strict=True))
                    line += f"   {statistics.median(turns[1]) / 1e6:.3f} there: {statistics.median(ratios):.2f} times"
                    line += f" as fast ({ratios[0]:.2f} to {ratios[-1]:.2f})"
                print(line, flush=True)
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
