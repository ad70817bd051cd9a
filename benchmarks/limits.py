"""Compares the speed of the README's workloads with the limits of this machine.

    python benchmarks/limits.py                        # all workloads, one thread, about three minutes on a quiet core
    python benchmarks/limits.py --works main --turns 9

An iteration (64 mazes × 200 steps and its update) is timed in processor time, the workloads alternately; the median is
reported. Three limits are computed, each as the steps/s that it alone would allow:

- **arithmetic**: the FLOP of all matrix products, counted operation by operation where the equations are stepped
  (`fast="off"`, few steps), at the rate of a large product;
- **traffic**: the bytes that sequences store for their backward pass, written and read once, at the rate of a large
  copy;
- **operations**: torch's operations that the iteration launches, C loops on, at the rate of a tiny one.

If arithmetic, traffic and launches do not overlap, their times add up; "share" is that sum over the measured time. The
rest is Python between operations, elementwise arithmetic, products that are slower than large ones, and other programs.
"""

from __future__ import annotations

import csv
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a checkout that is not installed

from agents import A2C, PPO  # noqa: E402
from benchmarks.scaling import Work  # noqa: E402
from envs.maze import InvisibleGoalMaze  # noqa: E402
from policies.memories.time.measure import stored_bytes  # noqa: E402
from policies.native.allocator import tune_allocator  # noqa: E402

COPIES, STEPS, FEW = 64, 200, 10
Name = Literal["main", "a2c-mnm-p", "ppo-lstm", "ppo-gru", "a2c-lstm"]
MAIN = {"hidden_size": 128, "key_size": 32, "value_size": 32, "memory_units": 32, "heads": 1, "mean_over_units": True}
"""Sizes of recipes/maze-ppo.yaml, whose other settings are in `learner`."""


WIDTHS = {"steps_per_s": 9, "arithmetic": 12, "traffic": 9, "operations": 12, "all_three": 11}


@dataclass
class Args:
    works: tuple[Name, ...] = ("main", "a2c-mnm-p", "ppo-lstm", "ppo-gru", "a2c-lstm")
    """`main`: the first command of the README. The others have the sizes of `throughput.py`."""
    turns: int = 5
    """Number of timed iterations of each workload."""
    csv: Path | None = ROOT / "results" / "limits.csv"
    """File for the table."""


def learner(name: Name, steps: int = STEPS, fast: str = "auto") -> Any:
    env = InvisibleGoalMaze(COPIES)
    if name == "main":
        policy: dict[str, Any] = {"memory": "mnm-p", "memory_kwargs": MAIN}
        settings: dict[str, Any] = {"gamma": 0.95, "ent_coef": 0.01, "reward_scale": 0.1, "clip_range": 0.5}
        settings |= {"learning_rate": 2e-3, "normalize_values": False}
    else:
        policy, settings = {"memory": name.split("-", 1)[1]}, {}
    common = {"n_steps": steps, "policy_kwargs": policy, "seed": 0, "fast": fast, **settings}
    if name.startswith("a2c"):
        return A2C("MemoryPolicy", env, use_rms_prop=False, **common)
    return PPO("MemoryPolicy", env, n_epochs=4, n_minibatches=4, **common)


def passes(name: Name) -> int:
    """Number of training passes over each step."""
    return 1 if name.startswith("a2c") else 4


def rate(run: Callable[[], Any], amount: float) -> float:
    """`amount` / the shortest processor time of seven runs."""
    run()
    return amount / min(spent(run) for _ in range(7))


def spent(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def rates() -> dict[str, float]:
    """FLOP, bytes (read and written) and operations per second."""
    square, large, small = torch.randn(1536, 1536), torch.randn(2**25), torch.zeros(64, 9)
    product, other = torch.empty_like(square), torch.empty_like(large)

    def many() -> None:
        for _ in range(5_000):
            small.add_(1.0)

    return {
        "arithmetic": rate(lambda: torch.mm(square, square, out=product), 2 * 1536.0**3),
        "traffic": rate(lambda: other.copy_(large), 2.0 * large.nbytes),
        "operations": rate(many, 5_000.0),
    }


def amounts(name: Name, model: Any, iteration: Callable[[], Any]) -> dict[str, float]:
    """FLOP, bytes and operations of one iteration."""
    plain = learner(name, FEW, "off")
    with Work() as work:
        plain.learn(1)
    with torch.autograd.profiler.profile(use_kineto=False) as profile:
        iteration()
    torchs = [event for event in profile.function_events if event.name.startswith("aten::")]
    launched = sum(event.cpu_parent is None or not event.cpu_parent.name.startswith("aten::") for event in torchs)
    memory, few = model.policy.memory, 16
    xs = torch.randn(STEPS, few, model.policy.features_extractor.features_dim)
    state = memory.initial_state(few)
    own = [*memory.parameters(), *memory.buffers(), xs, *state.values()]
    held = stored_bytes(lambda: memory.unroll(xs, None, state, ()), own)
    return {
        "arithmetic": float(work.flop) * STEPS / FEW,
        "traffic": 2.0 * held * COPIES / few * passes(name),
        "operations": float(launched),
    }


def main(args: Args) -> None:
    """Measures the workloads, prints the table and writes it."""
    torch.set_num_threads(1)
    tune_allocator()
    can = rates()
    print("  ".join(f"{name} {value:.3g}/s" for name, value in can.items()), f" load {os.getloadavg()[0]:.1f}")
    models = {name: learner(name) for name in args.works}
    runs = {name: lambda m=model: m.learn(1, reset_num_timesteps=False) for name, model in models.items()}
    for run in runs.values():
        run()
    needs = {name: amounts(name, model, runs[name]) for name, model in models.items()}
    times: dict[Name, list[float]] = {name: [] for name in args.works}
    for _ in range(args.turns):
        for name, run in runs.items():
            times[name].append(spent(run))
    rows = []
    print(f"{'work':<11}{'steps/s':>9}{'arithmetic':>12}{'traffic':>9}{'operations':>12}{'all three':>11}{'share':>7}")
    for name, taken in times.items():
        seconds = {kind: amount / can[kind] for kind, amount in needs[name].items()}
        count, together = COPIES * STEPS, sum(seconds.values())
        limits = {kind: round(count / second) for kind, second in seconds.items()}
        speed, share = round(count / statistics.median(taken)), together / statistics.median(taken)
        row = {"work": name, "steps_per_s": speed, **limits, "all_three": round(count / together)}
        rows.append({**row, "share": round(share, 3), "turns": args.turns})
        numbers = "".join(f"{row[key]:>{width},}" for key, width in WIDTHS.items())
        print(f"{name:<11}{numbers}{share:>7.2f}", flush=True)
    if args.csv is not None:
        with args.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
