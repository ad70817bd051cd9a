"""Environments with fifty kinds of mistakes that a user might make."""

from __future__ import annotations

import os
import random
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from fault_children import Must, Try, command, complaint
from gymnasium import spaces

ID = "Faulty/Environment-v0"


class Mine(Exception):
    """An exception of the user's own, whose message has two lines."""

    def __str__(self) -> str:
        return "bad joint\nstate"


def _raise(error: BaseException) -> Any:
    raise error


def _deep(number: int = 0) -> int:
    return _deep(number + 1) + 1


NAN = np.full(3, np.nan, np.float32)
RAISES: dict[str, Callable[[], Any]] = {
    "ValueError": lambda: _raise(ValueError("bad joint\nstate")),
    "RuntimeError": lambda: _raise(RuntimeError("solver diverged")),
    "KeyError": lambda: {}["joint"],
    "TypeError": lambda: len(3),  # type: ignore[arg-type]
    "IndexError": lambda: [][1],
    "AssertionError": lambda: _raise(AssertionError()),
    "ZeroDivisionError": lambda: 1 // 0,
    "OSError": lambda: Path("/nowhere/model.xml").read_bytes(),
    "MemoryError": lambda: _raise(MemoryError()),
    "StopIteration": lambda: next(iter(())),
    "RecursionError": _deep,
    "NotImplementedError": lambda: _raise(NotImplementedError("reset")),
    "UnicodeDecodeError": lambda: b"\xff".decode(),
    "its own": lambda: _raise(Mine()),
    "SystemExit": lambda: sys.exit("the simulator has closed"),
}
OBS: dict[str, tuple[Any, Must]] = {
    "NaN": (NAN, "refuse"),
    "inf": (NAN * 0 + np.inf, "refuse"),
    "of another length": (np.zeros(5, np.float32), "refuse"),
    "of another rank": (np.zeros((3, 3), np.float32), "refuse"),
    "None": (None, "refuse"),
    "text": ("left", "refuse"),
    "a dictionary": ({"x": 1}, "refuse"),
    "objects": (np.array([None, 1, "x"], object), "refuse"),
    "empty": (np.zeros(0, np.float32), "refuse"),
    "float64": (np.ones(3), "work"),
    "whole numbers": (np.ones(3, int), "work"),
    "a list": ([1.0, 2.0, 3.0], "work"),
    "outside of its space": (np.full(3, 1e6, np.float32), "work"),
    "a tensor": (torch.ones(3), "either"),
    "large": (np.full(3, 1e38, np.float32), "either"),
}
REWARDS: dict[str, tuple[Any, Must]] = {
    "NaN": (float("nan"), "refuse"),
    "inf": (float("inf"), "refuse"),
    "None": (None, "refuse"),
    "text": ("good", "refuse"),
    "two numbers": (np.zeros(2), "refuse"),
    "one number in an array": (np.ones(1), "either"),
    "a whole number": (3, "work"),
    "complex": (1j, "refuse"),
    "huge": (1e300, "either"),
    "a truth value": (True, "work"),
}
STEPS: dict[str, tuple[Any, Must]] = {
    "four values": ((np.zeros(3, np.float32), 0.0, False, {}), "refuse"),
    "three values": ((np.zeros(3, np.float32), 0.0, False), "refuse"),
    "None": (None, "refuse"),
    "six values": ((np.zeros(3, np.float32), 0.0, False, False, {}, 1), "refuse"),
    "terminated is None": ((np.zeros(3, np.float32), 0.0, None, False, {}), "either"),
    "terminated is text": ((np.zeros(3, np.float32), 0.0, "no", False, {}), "either"),
    "terminated is an array": ((np.zeros(3, np.float32), 0.0, np.zeros(2, bool), False, {}), "refuse"),
    "info is None": ((np.zeros(3, np.float32), 0.0, False, False, None), "either"),
    "info is a list": ((np.zeros(3, np.float32), 0.0, False, False, [1]), "either"),
    "info has odd names": (
        (np.zeros(3, np.float32), 0.0, False, False, {"episode": 3, "final_obs": 1, 5: 2}),
        "either",
    ),
}
RESETS: dict[str, tuple[Any, Must]] = {
    "no info": (np.zeros(3, np.float32), "refuse"),
    "None": (None, "refuse"),
    "NaN": ((NAN, {}), "refuse"),
    "three values": ((np.zeros(3, np.float32), {}, 1), "refuse"),
    "of another length": ((np.zeros(4, np.float32), {}), "refuse"),
}
HABITS = (
    *("never ends", "ends at once", "truncates at once", "both flags", "random lengths", "slow", "prints", "warns"),
    *("one array", "changes its array later", "seeds numpy and torch", "changes the folder", "sets threads"),
    *("closes twice", "raises in close", "keeps everything", "attributes without pickle", "no metadata", "no spec"),
)


class Faulty(gym.Env[Any, Any]):
    """Ten steps of noise; the mistake `kind` happens at step `at` (0: `reset`; -1: the constructor)."""

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, kind: str, what: str = "", at: int = 30) -> None:
        self.kind, self.what, self.at, self.steps, self.time = kind, what, at, 0, 0
        self.observation_space = spaces.Box(-1, 1, (3,), np.float32)
        self.action_space: spaces.Space[Any] = spaces.Discrete(2)
        self.array = np.zeros(3, np.float32)
        self.kept: list[Any] = [self]
        if what == "attributes without pickle":
            self.kept.append(lambda: self)
        if what == "no metadata":
            self.metadata = None  # type: ignore[assignment]
        if kind == "raises" and at < 0:
            RAISES[what]()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.time = 0
        if self.kind == "raises" and self.at == 0:
            RAISES[self.what]()
        if self.kind == "reset" and self.steps >= self.at:
            return RESETS[self.what][0]
        return self._seen(), {}

    def _seen(self) -> Any:
        if self.what in ("one array", "changes its array later"):
            self.array[:] = self.np_random.random(3)
            return self.array
        return self.np_random.random(3).astype(np.float32)

    def step(self, action: Any) -> Any:
        self.steps += 1
        self.time += 1
        now = self.steps >= self.at
        if self.kind == "raises" and now:
            RAISES[self.what]()
        if self.kind == "step" and now:
            return STEPS[self.what][0]
        obs = OBS[self.what][0] if self.kind == "obs" and now else self._seen()
        reward = REWARDS[self.what][0] if self.kind == "reward" and now else 1.0
        terminated, truncated = self._habit()
        return obs, reward, terminated, truncated, {}

    def _habit(self) -> tuple[bool, bool]:
        what, end = self.what, self.time >= 10
        if what == "slow":
            time.sleep(0.002)
        elif what == "prints":
            print("\x1b[31m[bold]step[/]\x1b[0m \r\a 100%|####|")
        elif what == "warns":
            warnings.warn("old simulator", stacklevel=1)
        elif what == "seeds numpy and torch":
            np.random.seed(0)  # noqa: NPY002  (as old environments do)
            torch.manual_seed(0)
        elif what == "changes the folder":
            os.chdir("/")
        elif what == "sets threads":
            torch.set_num_threads(2)
            torch.set_num_threads(1)
        elif what == "keeps everything":
            self.kept.append(np.zeros(1000))
        ends = {
            "never ends": (False, False),
            "ends at once": (True, False),
            "truncates at once": (False, True),
            "both flags": (end, end),
            "random lengths": (bool(self.np_random.random() < 0.3), False),
        }
        return ends.get(what, (end, False))

    def close(self) -> None:
        if self.what == "raises in close":
            raise RuntimeError("the simulator has gone")


def cases() -> list[tuple[str, str, int, Must]]:
    """Kind, description, step, and expected outcome."""
    found: list[tuple[str, str, int, Must]] = []
    for kind, pool in (("obs", OBS), ("reward", REWARDS), ("step", STEPS), ("reset", RESETS)):
        found += [(kind, what, at, must) for what, (_, must) in pool.items() for at in (1, 30)]
    found += [("raises", what, at, "refuse") for what in RAISES for at in (-1, 0, 1, 30)]
    either = ("raises in close", "no metadata")
    return [*found, *(("habit", what, 0, "either" if what in either else "work") for what in HABITS)]


TRAINING = [
    *("--memory", "gru", "--memory-kwargs", "hidden_size=8", "--num-envs", "2", "--n-steps", "8"),
    *("--n-minibatches", "2", "--n-epochs", "1", "--total-timesteps", "128", "--checkpoint-every", "0"),
    *("--eval-episodes", "3", "--eval-steps", "1000", "--no-baseline", "--no-progress", "--panels-every", "0"),
]


def environments(seed: int, count: int, folder: Path) -> Iterator[Try]:
    """Trainings in such environments; in a third of them the mistake happens in the first rollout."""
    if ID not in gym.registry:
        gym.register(ID, entry_point=Faulty)
    rng = random.Random(seed)
    every = cases()
    by_kind = {
        kind: [case for case in every if case[0] == kind]
        for kind in ("raises", "habit", "obs", "reward", "step", "reset")
    }
    for pool in by_kind.values():
        rng.shuffle(pool)
    chosen: list[tuple[str, str, int, Must]] = []
    while len(chosen) < count:  # of each kind in turn
        left = [pool for pool in by_kind.values() if pool]
        if not left:
            break
        chosen += [pool.pop() for pool in left][: count - len(chosen)]
    for kind, what, at, must in chosen:
        run = folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        words = [
            "--env",
            ID,
            "--env-kwargs",
            f"kind={kind}",
            f"what={what}",
            f"at={at}",
            *TRAINING,
            "--run-dir",
            str(run),
        ]
        out = command(words, folder, 90)
        wrong = complaint(
            out,
            must,
            [ID, "Faulty", "out of memory", "reward" if kind == "reward" else "observation"],
            users="fault_environments.py" if kind == "raises" else "",
        )
        if what == "SystemExit" and out.status == 1 and "the simulator has closed" in out.output:
            wrong = ""  # the user's code ended the process and reported why
        kept = sorted(run.glob("checkpoints/step_*/manifest.json"))
        if not wrong and out.status and kept and kept[-1].parent.name not in out.output:
            wrong = f"does not name the last good checkpoint: {out.output.strip()[-200:]!r}"
        yield Try("environments", f"{kind} {what} at {at}", wrong, out.seconds)
