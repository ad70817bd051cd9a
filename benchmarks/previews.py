"""Measures what previews (`TensorEnv.preview`) gain in supervised training: an episode taken at once, not step by step.

    python benchmarks/previews.py
    python benchmarks/previews.py --recipes copy-dnc n-grams --repeats 20

Two learners of a recipe are trained alternately in one process, one of them with previews switched off. Without them,
the environments of most tasks are stepped twice, for observations and for scores; in a curriculum the memory is stepped
too, since the next lesson depends on the answers. A figure is the median over repeats of (time without) / (time with),
of processor time, on one thread.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

from agents import Supervised
from agents.run.recipes import find_recipe, load_config


@dataclass
class Args:
    recipes: tuple[str, ...] = (
        "copy-dnc",
        "double-copy-50",
        "repeat-copy",
        "priority-sort",
        "copy-ntm",
        "n-grams",
        "dictionary-8-4",
        "mnist-recall",
        "graph-traversal-6",
        "mapping-9-deltanet",
        "mapping-9-random",
        "mapping-15-questions",
    )
    """Recipes to measure."""
    repeats: int = 10
    """Pairs of trainings."""
    iterations: int = 3
    """Iterations of each training."""


def learner(recipe: str) -> Supervised:
    config = load_config(find_recipe(recipe))
    return Supervised("MemoryPolicy", config.make_env(config.num_envs), device="cpu", **config.learner_kwargs())


def seconds(model: Supervised, iterations: int, previews: bool) -> float:
    """Processor time of some iterations."""
    steps = iterations * model.n_steps * model.n_envs
    env = type(model.tensor_env)
    with mock.patch.object(env, "previews", env.previews if previews else False):
        started = time.process_time()
        model.learn(steps, reset_num_timesteps=False)
        return time.process_time() - started


def main() -> None:
    args = tyro.cli(Args)
    torch.set_num_threads(1)
    for recipe in args.recipes:
        models = [learner(recipe) for _ in range(2)]
        pairs = []
        for _ in range(args.repeats + 1):
            pairs.append([seconds(model, args.iterations, bool(on)) for on, model in enumerate(models)])
        without, fast = (statistics.median(times) / args.iterations for times in zip(*pairs[1:], strict=True))
        ratios = sorted(slow / quick for slow, quick in pairs[1:])
        print(
            f"{recipe:<20} {1e3 * without:8.1f} -> {1e3 * fast:6.1f} ms per iteration, "
            f"{statistics.median(ratios):.2f} times as fast ({ratios[0]:.2f} to {ratios[-1]:.2f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
