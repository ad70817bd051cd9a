"""Iterations on a GPU: eager, as CUDA graphs, and Stable-Baselines3's RecurrentPPO on the same GPU.

    python benchmarks/gpu_iteration.py
    python benchmarks/gpu_iteration.py --memories lstm dnc --num-envs 512 --algos ppo

The environment is the invisible-goal maze with rollouts of 40 steps, the memories have the sizes of
`benchmarks/scaling.py`, and PPO makes 4 passes over 4 minibatches (`--minibatches`). Eager and graph iterations are
measured alternately in one process. Eager iterations use the fast forms, as with `--fast auto`, so that `ratio`, graph
/ eager, shows the effect of graphs alone; `--reference` also measures `--fast off`.

**Limits.** As in `benchmarks/scaling.py`: matrix products, copies and launches are timed first, one eager iteration is
counted operation by operation, and `share` is the longest of the three times that its work takes at these rates,
divided by the measured time. A graph is not limited by Python's launch rate, so `share_graph` uses the other two rates:
near 1 the device is fully used; far below 1 the kernels are too small to fill it. `launches_per_s` is the graph's
kernels per second.
"""

from __future__ import annotations

import csv
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a checkout that is not installed

import agents.scale.cuda_graphs.replay  # noqa: E402
from agents import LEARNERS, MemoryOnPolicyAlgorithm  # noqa: E402
from benchmarks import scaling  # noqa: E402
from benchmarks.peers import fast_maze, sb3_contrib  # noqa: E402
from envs.maze import InvisibleGoalMaze  # noqa: E402

MEMORIES: dict[str, dict[str, Any]] = {
    "lstm": {"hidden_size": 128},
    "mnm-p": {"hidden_size": 128, "key_size": 32, "value_size": 32, "memory_units": 32, "heads": 1},
    "dnc": {"hidden_size": 128, "slots": 32, "word_size": 16, "read_heads": 2},
    "multigrid": {},
    "kanerva++": {},
}


@dataclass
class Args:
    memories: tuple[str, ...] = tuple(MEMORIES)
    """Memories from the list in this file."""
    algos: tuple[Literal["a2c", "ppo"], ...] = ("a2c", "ppo")
    """Learners."""
    num_envs: tuple[int, ...] = (512, 1024, 2048, 4096)
    """Numbers of environments."""
    repeats: int = 5
    """Number of repeats."""
    steps: int = 40
    """Steps of a rollout."""
    episode: int = 200
    """Steps of an episode. Each rollout of an episode has its own graph; all are captured before measuring."""
    minibatches: int = 4
    """Minibatches of PPO."""
    probe: int = 2048
    """Side of the matrices that measure the device's limits."""
    device: str = "cuda"
    """The GPU."""
    reference: bool = False
    """Also measure `--fast off`."""
    sb3: bool = True
    """Also measure sb3-contrib's RecurrentPPO with an LSTM of the same size, with the fewest environments."""
    csv: Path | None = ROOT / "results" / "gpu_iteration.csv"
    """File for the table."""
    threads: int = field(default=1, init=False)


def learner(algo: str, memory: str, num_envs: int, fast: str, args: Args) -> MemoryOnPolicyAlgorithm:
    """One side of a comparison; with "auto", CUDA graphs are disabled."""
    agents.scale.cuda_graphs.replay.TESTED_ON_GPU = False
    env = InvisibleGoalMaze(num_envs, episode_length=args.episode, device=args.device)
    kwargs = {"n_epochs": 4, "n_minibatches": args.minibatches} if algo == "ppo" else {"use_rms_prop": False}
    policy = {"memory": memory, "memory_kwargs": MEMORIES[memory]}
    return LEARNERS[algo](
        "MemoryPolicy", env, n_steps=args.steps, policy_kwargs=policy, seed=0, device=args.device, fast=fast, **kwargs
    )


def turns(model: MemoryOnPolicyAlgorithm, args: Args) -> Callable[[], float]:
    """Seconds of the next iteration, after the graphs of all rollouts of an episode are captured."""

    def iteration() -> None:
        model.learn(1, log_interval=None, reset_num_timesteps=model.num_timesteps == 0)

    for _ in range(2 * args.episode // args.steps + 1):
        iteration()
    return lambda: scaling.timed(iteration, args.device)


def counted(model: MemoryOnPolicyAlgorithm) -> dict[str, float]:
    """FLOPs, bytes and operations of one eager iteration, for each step of a rollout."""
    with scaling.Work() as work, FlopCounterMode(display=False) as flops:
        model.learn(1, log_interval=None, reset_num_timesteps=False)
    amounts = {"flop": flops.get_total_flops(), "bytes": work.bytes, "operations": work.operations}
    return {name: amount / model.n_steps for name, amount in amounts.items()}


def point(algo: str, memory: str, num_envs: int, rates: dict[str, float], args: Args) -> dict[str, Any]:
    """Measures eager and graph iterations alternately."""
    ways = ("auto", "graph", "off") if args.reference else ("auto", "graph")
    models = {fast: learner(algo, memory, num_envs, fast, args) for fast in ways}
    clocks = {fast: turns(model, args) for fast, model in models.items()}
    work = counted(models["auto"])
    taken: dict[str, list[float]] = {fast: [] for fast in ways}
    for _ in range(args.repeats):
        for fast, clock in clocks.items():
            taken[fast].append(clock())
    eager, graph = (statistics.median(taken[fast]) / args.steps for fast in ("auto", "graph"))
    reference = (
        {"reference_per_s": round(num_envs * args.steps / statistics.median(taken["off"]))} if args.reference else {}
    )
    least = {name: work[name] / rates[name] for name in work}
    on_device = max(least["flop"], least["bytes"])
    return {
        "algo": algo,
        "memory": memory,
        "num_envs": num_envs,
        "eager_per_s": round(num_envs / eager),
        "graph_per_s": round(num_envs / graph),
        "ratio": round(statistics.median(a / b for a, b in zip(taken["auto"], taken["graph"], strict=True)), 2),
        **reference,
        "operations": round(work["operations"]),
        "eager_bound_by": max(least, key=lambda name: least[name]),
        "share_eager": round(max(least.values()) / eager, 3),
        "share_graph": round(on_device / graph, 3),
        "launches_per_s": round(work["operations"] / graph),
        "peak_mib": round(scaling.peak(args.device) / 2**20),
    }


def main(args: Args) -> None:
    if not torch.cuda.is_available():
        sys.exit("gpu_iteration: no CUDA device here, and there is nothing else that this measures")
    rates = scaling.limits(scaling.Args(device=args.device), args.probe, 5 * args.probe)
    print(torch.cuda.get_device_name(args.device), "  ".join(f"{name} {rate:.3g}/s" for name, rate in rates.items()))
    rows: list[dict[str, Any]] = []
    for algo in args.algos:
        for memory in args.memories:
            for num_envs in args.num_envs:
                torch.cuda.reset_peak_memory_stats()
                rows.append(point(algo, memory, num_envs, rates, args))
                print("  ".join(f"{name}={value}" for name, value in rows[-1].items()), flush=True)
    if args.sb3:
        num_envs = min(args.num_envs)
        hidden = MEMORIES["lstm"]["hidden_size"]
        run = sb3_contrib(fast_maze(num_envs, args.device), args.steps, hidden, 4, 4, True, args.device)
        run()
        seconds = statistics.median(scaling.timed(run, args.device) for _ in range(3))
        rows.append({"algo": "sb3-contrib", "memory": "lstm", "num_envs": num_envs})
        rows[-1] |= {"eager_per_s": round(num_envs * args.steps / seconds)}
        print("  ".join(f"{name}={value}" for name, value in rows[-1].items()), flush=True)
    if args.csv is not None:
        args.csv.parent.mkdir(parents=True, exist_ok=True)
        with args.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*rows[0], "device"])
            writer.writeheader()
            writer.writerows({**row, "device": torch.cuda.get_device_name(args.device)} for row in rows)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
