"""Environment steps per second of Engram and of other libraries: the same maze, hidden size and work for each step.

    python benchmarks/throughput.py                       # all workloads, about three minutes on one core
    python benchmarks/throughput.py --quick               # two repeats instead of five
    python benchmarks/throughput.py --works ppo --peers   # one workload, with all installed peers

Both sides are measured alternately, iteration by iteration, in one process, with the same number of threads and the
same allocator, so that other load of the machine affects both. An iteration is one rollout and its update; the first of
each side is not counted. A ratio is ours / theirs of one repeat; the table has the median and range over the repeats.

Workloads (64 invisible-goal mazes, rollouts of 200 steps, an LSTM of 200 units, unless noted):
    env     the maze alone, uniform random actions, 1,024 environments
    ppo     PPO, 4 passes over 4 minibatches
    a2c     A2C: one pass over one full batch. The peers have no recurrent A2C, and run PPO with as much work
    mnm-p   A2C with MNM-p at the paper's size (controller 200, 3 x 100 memory, 3 heads)
    host    an ordinary numpy environment: 8 of CartPole without velocities, rollouts of 128 steps, an LSTM of
            64 units, one layer of 64 before each head, PPO with 4 passes over 4 minibatches
"""

from __future__ import annotations

import csv
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.env_util import make_vec_env

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a checkout that is not installed

from agents import A2C, PPO, make_env  # noqa: E402
from benchmarks.peers import CleanStyle, Iteration, PlainMaze, fast_maze, plain_mazes, sb3_contrib  # noqa: E402
from envs.maze import InvisibleGoalMaze  # noqa: E402
from policies.native.allocator import tune_allocator  # noqa: E402

COPIES, STEPS, HIDDEN = 64, 200, 200
ENV_COPIES, ENV_STEPS = 1024, 1000
HOST_ENV = "benchmarks.foreign_tasks:HiddenVelocityCartPole-v1"
HOST_COPIES, HOST_STEPS, HOST_HIDDEN = 8, 128, 64
Work = Literal["env", "ppo", "a2c", "mnm-p", "host"]


@dataclass
class Args:
    works: tuple[Work, ...] = ("env", "ppo", "a2c", "mnm-p", "host")
    """Workloads, see above."""
    peers: bool = False
    """Also measure the CleanRL-style loop, and list which other libraries are installed."""
    repeats: int = 5
    """Number of repeats."""
    quick: bool = False
    """Two repeats."""
    threads: int = 1
    """CPU threads of torch, on both sides."""
    allocator: Literal["tuned", "default"] = "tuned"
    """The C library's allocator, on both sides; see `policies.native.allocator`."""
    clock: Literal["wall", "processor"] = "wall"
    """Processor: seconds of this process, all threads together; for a CPU that other jobs use as well."""
    devices: tuple[str, ...] = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    """Devices to measure on."""
    csv: Path | None = ROOT / "results" / "throughput.csv"
    """File for the table."""


@dataclass
class Contender:
    """One side: its name, and how to build an iteration of `steps` environment steps."""

    name: str
    build: Callable[[], Iteration]
    steps: int = COPIES * STEPS


def learner(cls: Any, memory: str, device: str, **kwargs: Any) -> Iteration:
    env = InvisibleGoalMaze(COPIES, device=device)
    # the sizes of LSTM and MNM that the table is about are the memories' defaults
    model = cls("MemoryPolicy", env, n_steps=STEPS, policy_kwargs={"memory": memory}, seed=0, device=device, **kwargs)
    return lambda: model.learn(COPIES * STEPS, reset_num_timesteps=False)


def random_batched(device: str) -> Iteration:
    env = InvisibleGoalMaze(ENV_COPIES, device=device)
    env.reset(seed=0)

    def run() -> None:
        for _ in range(ENV_STEPS):
            env.step(torch.randint(4, (ENV_COPIES,), device=device))

    return run


def random_single(make: Callable[[], gym.Env[Any, Any]], steps: int) -> Iteration:
    env = SyncVectorEnv([make] * ENV_COPIES, autoreset_mode=AutoresetMode.SAME_STEP)
    env.reset(seed=0)
    random = np.random.default_rng(0)

    def run() -> None:
        for _ in range(steps):
            env.step(random.integers(4, size=ENV_COPIES))

    return run


def contenders(work: Work, device: str, peers: bool) -> tuple[list[Contender], list[tuple[str, float]]]:
    """The sides, ours first, and target numbers by name."""
    if work == "env":
        few = 20
        sync = f"SyncVectorEnv of {ENV_COPIES} plain Python mazes"
        return [
            Contender("TensorEnv", partial(random_batched, device), ENV_COPIES * ENV_STEPS),
            Contender(sync, partial(random_single, PlainMaze, few), ENV_COPIES * few),
        ], [("target", 10e6)]
    if work == "mnm-p":
        return [Contender("A2C mnm-p", partial(learner, A2C, "mnm-p", device, use_rms_prop=False))], [("target", 8e3)]
    if work == "host":
        return host_contenders(device), []
    epochs, minibatches = (4, 4) if work == "ppo" else (1, 1)
    ours = (
        Contender("PPO lstm", partial(learner, PPO, "lstm", device, n_epochs=4, n_minibatches=4))
        if work == "ppo"
        else Contender("A2C lstm", partial(learner, A2C, "lstm", device, use_rms_prop=False))
    )
    size = {"n_steps": STEPS, "hidden": HIDDEN, "epochs": epochs, "minibatches": minibatches, "device": device}

    def recurrent_ppo(envs: Any, shared: bool) -> Iteration:
        return sb3_contrib(envs(COPIES, device), shared=shared, **size)

    others = [
        Contender(f"sb3-contrib RecurrentPPO, {lstms}, {env_name}", partial(recurrent_ppo, env, shared))
        for lstms, shared in (("two LSTMs (default)", False), ("shared LSTM", True))
        for env_name, env in (("our batched maze", fast_maze), ("DummyVecEnv", plain_mazes))
    ]
    if peers:
        style = "CleanRL-style loop (our re-write), our batched maze"
        others.append(Contender(style, lambda: CleanStyle(fast_maze(COPIES, device), **size).iteration))
    return [ours, *others], []


def host_contenders(device: str) -> list[Contender]:
    """PPO on the same numpy environment, by `SyncVectorEnv` here and by `DummyVecEnv` there."""

    def ours() -> Iteration:
        network = {"memory": "lstm", "memory_kwargs": {"hidden_size": HOST_HIDDEN}, "net_arch": [64]}
        env = make_env(HOST_ENV, HOST_COPIES, device)
        work = {"n_steps": HOST_STEPS, "n_epochs": 4, "n_minibatches": 4}
        model = PPO("MemoryPolicy", env, policy_kwargs=network, seed=0, device=device, **work)
        return lambda: model.learn(HOST_COPIES * HOST_STEPS, reset_num_timesteps=False)

    def theirs(shared: bool) -> Iteration:
        env = make_vec_env(HOST_ENV, HOST_COPIES)
        return sb3_contrib(env, HOST_STEPS, HOST_HIDDEN, 4, 4, shared, device, layers=[64])

    steps = HOST_COPIES * HOST_STEPS
    others = [
        Contender(f"sb3-contrib RecurrentPPO, {lstms}, DummyVecEnv", partial(theirs, shared), steps)
        for lstms, shared in (("two LSTMs (default)", False), ("shared LSTM", True))
    ]
    return [Contender("PPO lstm", ours, steps), *others]


def take_turns(sides: list[Contender], repeats: int, device: str, now: Callable[[], float]) -> list[list[float]]:
    """Steps per second of each side in each turn, `[repeats][sides]`, after one turn to warm up. `now`: time in s."""
    iterations = [side.build() for side in sides]

    def seconds(iteration: Iteration) -> float:
        start = now()
        iteration()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return now() - start

    turns = [
        [side.steps / seconds(run) for side, run in zip(sides, iterations, strict=True)] for _ in range(repeats + 1)
    ]
    return turns[1:]


def main(args: Args) -> None:
    """Measures the workloads, prints the table and writes it."""
    torch.set_num_threads(args.threads)
    if args.allocator == "tuned":
        tune_allocator()
    repeats = 2 if args.quick else args.repeats
    now = time.process_time if args.clock == "processor" else time.perf_counter
    print(f"torch {torch.__version__}, {args.threads} thread(s), {args.allocator} allocator, {repeats} turns; steps/s")
    if args.peers:
        for name in ("torchrl", "tianshou", "ray.rllib", "sample_factory"):
            found = importlib.util.find_spec(name.split(".")[0]) is not None
            print(f"  {name}: {'installed, but this script has no loop for it' if found else 'not installed'}")
    print(f"\n{'work':<7}{'device':<7}{'ours':>11}{'theirs':>11}{'ratio':>8}  {'(range)':<16}against")
    rows = []
    for device in args.devices:
        for work in args.works:
            sides, targets = contenders(work, device, args.peers)
            turns = take_turns(sides, repeats, device, now)
            ours = [turn[0] for turn in turns]
            compared = [(side.name, [turn[index] for turn in turns]) for index, side in enumerate(sides) if index]
            compared += [(name, [target] * repeats) for name, target in targets]
            for name, theirs in compared:
                ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
                low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
                speeds = statistics.median(ours), statistics.median(theirs)
                span = f"({low:.2f}-{high:.2f})"
                numbers = f"{speeds[0]:>11,.0f}{speeds[1]:>11,.0f}{middle:>8.2f}  {span:<16}"
                print(f"{work:<7}{device:<7}{numbers}{name}", flush=True)
                figures = (round(speeds[0]), round(speeds[1]), name, round(middle, 3), round(low, 3), round(high, 3))
                rows.append((work, *figures, device, args.threads, args.allocator, repeats))
    if args.csv is not None:
        args.csv.parent.mkdir(parents=True, exist_ok=True)
        with args.csv.open("w", newline="") as file:
            writer = csv.writer(file)
            ratio = ("ratio", "ratio_min", "ratio_max")
            writer.writerow(("work", "ours", "peer", "peer_name", *ratio, "device", "threads", "allocator", "repeats"))
            writer.writerows(rows)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
