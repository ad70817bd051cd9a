"""Counts the files and functions that one iteration runs, from `env.step` to the optimiser's step.

    python benchmarks/path_of_a_step.py                 # A2C with an LSTM, other learners, sb3-contrib RecurrentPPO
    python benchmarks/path_of_a_step.py --list          # lists them, for A2C

The second iteration is counted, because the first includes initialisation. Comprehensions are not counted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import sb3_contrib
import stable_baselines3
from stable_baselines3.common.env_util import make_vec_env

import agents

ROOT = Path(agents.__file__).resolve().parents[1]
OURS = tuple(f"{ROOT / package}/" for package in ("agents", "policies", "envs"))
THEIRS = tuple(str(Path(package.__file__ or "").parent) for package in (stable_baselines3, sb3_contrib))


def entered(iteration: Callable[[], Any], roots: tuple[str, ...], step: str) -> set[tuple[str, str]]:
    """Files and functions below `roots` that run after the first `step` of the environments starts.

    Args:
        iteration: runs one rollout and update.
        roots: folders.
        step: end of the path of the file with the environments' `step`.
    """
    seen: set[tuple[str, str]] = set()
    counting = False

    def look(frame: FrameType, event: str, _: Any) -> None:
        nonlocal counting
        code = frame.f_code
        if event != "call":
            return
        if code.co_filename.endswith(step) and code.co_name in ("step", "step_wait"):
            counting = True
        if counting and code.co_filename.startswith(roots) and not code.co_name.startswith("<"):
            seen.add((code.co_filename, code.co_qualname))
        if code.co_name == "step" and "/torch/optim/" in code.co_filename and "scheduler" not in code.co_filename:
            counting = False

    sys.setprofile(look)
    iteration()
    sys.setprofile(None)
    return seen


def ours(algo: str, memory: str) -> set[tuple[str, str]]:
    """An iteration of one of this project's learners."""
    env = agents.make_env("Engram/RepeatFirst-v0", 4)
    model = agents.LEARNERS[algo]("MemoryPolicy", env, n_steps=8, device="cpu", policy_kwargs={"memory": memory})
    model.learn(32)
    return entered(lambda: model.learn(32, reset_num_timesteps=False), OURS, "envs/tensor_env.py")


def theirs() -> set[tuple[str, str]]:
    """An iteration of sb3-contrib's RecurrentPPO."""
    env = make_vec_env("CartPole-v1", 4)
    model = sb3_contrib.RecurrentPPO("MlpLstmPolicy", env, n_steps=8, batch_size=32, n_epochs=1, device="cpu")
    model.learn(32)
    return entered(lambda: model.learn(32, reset_num_timesteps=False), THEIRS, "dummy_vec_env.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true")
    if parser.parse_args().list:
        for file, function in sorted(ours("a2c", "lstm")):
            print(Path(file).relative_to(ROOT), function)
        return
    for algo, memory in (("a2c", "lstm"), ("ppo", "lstm"), ("ppo", "mnm-p"), ("supervised", "gru"), ("vtrace", "gru")):
        found = ours(algo, memory)
        print(f"{algo + ' ' + memory:20} {len({file for file, _ in found}):3} files {len(found):4} functions")
    found = theirs()
    print(f"{'RecurrentPPO':20} {len({file for file, _ in found}):3} files {len(found):4} functions")


if __name__ == "__main__":
    main()
