"""Kernel launches of a step of A2C or PPO by phase, counted on the pretend CUDA device; no GPU is needed.

    python benchmarks/launches.py
    python benchmarks/launches.py --memories dnc --where        # each operation with file and line

The environment is the invisible-goal maze, the memories have the sizes of `benchmarks/gpu_iteration.py`. Launches per
step are the difference between rollouts of two lengths, divided by the difference of the lengths. The forward count
includes environment and bookkeeping. A recurrent sequence, one kernel per step on CUDA, is counted here by its
operations: about 15 for dmn.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
import tyro

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]  # runs from a checkout that is not installed

from pretend_cuda import PretendCuda  # noqa: E402

from agents import LEARNERS  # noqa: E402
from benchmarks.gpu_iteration import MEMORIES  # noqa: E402
from envs.maze import InvisibleGoalMaze  # noqa: E402

SIZES: dict[str, dict[str, Any]] = {**MEMORIES, "dmn": {"hidden_size": 64}}
LENGTHS = 6, 10
"""Steps of the two rollouts that are compared."""


@dataclass
class Args:
    memories: tuple[str, ...] = tuple(SIZES)
    """Memories; those without a size in this file have their default sizes."""
    algo: Literal["a2c", "ppo"] = "a2c"
    """Learner; PPO with one pass over one minibatch."""
    where: bool = False
    """Also print each operation of the memory with file and line."""


Launches = dict[str, Counter[tuple[str, str]]]
"""Launches by phase, operation and file:line."""


@contextmanager
def counted(gpu: PretendCuda) -> Iterator[Launches]:
    """Context manager that counts launches."""
    found: Launches = {"forward": Counter(), "backward": Counter()}
    phase = ["forward"]
    operate, back = gpu.operate, torch.Tensor.backward

    def count(func: Any, args: Any, kwargs: Any) -> Any:
        before = gpu.launches
        out = operate(func, args, kwargs)
        if gpu.launches > before:
            found[phase[0]][func._schema.name.removeprefix("aten::"), gpu.place()] += gpu.launches - before
        return out

    def backward(tensor: Any, *args: Any, **kwargs: Any) -> None:
        phase[0] = "backward"
        back(tensor, *args, **kwargs)
        phase[0] = "forward"

    with mock.patch.object(gpu, "operate", count), mock.patch.object(torch.Tensor, "backward", backward):
        yield found


def iteration(memory: str, algo: str, length: int) -> Launches:
    """The launches of the second iteration."""
    kwargs: dict[str, Any] = {"use_rms_prop": False} if algo == "a2c" else {"n_epochs": 1, "n_minibatches": 1}
    with PretendCuda() as gpu:
        env = InvisibleGoalMaze(2, episode_length=200, device="cuda")
        policy = {"memory": memory, "memory_kwargs": SIZES.get(memory, {})}
        model = LEARNERS[algo](
            "MemoryPolicy", env, n_steps=length, policy_kwargs=policy, seed=0, device="cuda", **kwargs
        )
        model.learn(1, log_interval=None)
        with counted(gpu) as found:
            model.learn(1, log_interval=None, reset_num_timesteps=False)
    return found


def main(args: Args) -> None:
    for memory in args.memories:
        short, long = (iteration(memory, args.algo, length) for length in LENGTHS)
        for phase, counts in long.items():
            grown = {key: (n - short[phase][key]) / (LENGTHS[1] - LENGTHS[0]) for key, n in counts.items()}
            own = {key: n for key, n in grown.items() if n and (phase == "backward" or "memories" in key[1])}
            once = sum(counts.values()) - LENGTHS[1] * sum(grown.values())
            print(
                f"{memory:10} {args.algo} {phase:8} {sum(own.values()):6.0f} of the memory, "
                f"{sum(grown.values()):6.0f} in total per step, {once:6.0f} per rollout",
                flush=True,
            )
            for (name, place), n in sorted(own.items(), key=lambda item: item[0][1]) if args.where else ():
                print(f"    {n:7.2f} {name:28} {place}")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
