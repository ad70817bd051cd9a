"""What the tests of several ranks run, in two processes that joined and, where it can be compared, in one.

As a program it is one rank: `RANK=0 WORLD_SIZE=2 ... python rank_cases.py FOLDER` leaves what it saw in FOLDER.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import gymnasium as gym
import numpy as np
import torch
from agent_stubs import SMALL
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor

import train
from agents import A2C, LEARNERS, MemoryOnPolicyAlgorithm
from agents.metrics.task import TaskMetrics
from agents.rollout import Rollout
from agents.scale import distributed
from envs.repeat_first import RepeatFirst

RANKS, COPIES, STEPS, EPOCHS, SETS = 2, 4, 6, 2, 2  # COPIES of each rank
VALID = "rollout/valid_actions"

# Learner, memory, further arguments.
UPDATES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "a2c": ("a2c", "gru", {}),
    "a2c, normalised": ("a2c", "gru", {"normalize_advantage": True}),
    "a2c, losses of the memory": ("a2c", "mnm-p", {"normalize_advantage": True}),
    "a2c, clipped": ("a2c", "gru", {"max_grad_norm": 0.05}),
    "a2c, right answers": ("a2c", "gru", {"target_coef": 0.5}),
    "ppo": ("ppo", "gru", {"normalize_advantage": False}),
    "ppo, right answers": ("ppo", "gru", {"target_coef": 0.5}),
    "ppo, normalised": ("ppo", "gru", {}),
    "ppo, losses of the memory": ("ppo", "mnm-p", {"ent_coef": 0.01}),
    "ppo, one rank beyond target_kl": ("ppo", "gru", {"target_kl": 0.35}),
    "ppo, stopped by target_kl": ("ppo", "gru", {"target_kl": 0.2}),
    "a2c, values normalised": ("a2c", "gru", {"normalize_values": True}),
    "ppo, values normalised": ("ppo", "gru", {"normalize_values": True, "normalize_obs": True}),
    "supervised": ("supervised", "gru", {}),
    "supervised, losses of the memory": ("supervised", "mnm-p", {}),
}

TRAIN = ["--env", "Engram/RepeatFirst-v0", "--env-kwargs", "length=8", "--num-envs", "8", "--n-steps", "8"]
TRAIN += ["--memory", "gru", "--memory-kwargs", "hidden_size=16", "--eval-episodes", "16", "--no-progress"]
TRAIN += ["--panels-every", "0"]
BAD = {
    "shares": [*TRAIN, "--num-envs", "7"],
    "minibatches": [*TRAIN, "--n-minibatches", "5"],
    "name": [*TRAIN, "--memory", "ltsm"],
    "sweep": [*TRAIN, "--sweep", "repeat-first"],
}


class Dying(RepeatFirst):
    """Kills its process, if that is rank 1 and not yet started anew, at its step number `at`."""

    def __init__(self, *args: Any, at: int = 100, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.left = at if os.environ.get("RANK") == "1" and not distributed.restarts() else -1

    def step(self, action: Tensor) -> Any:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


if "Dying-v0" not in gym.registry:
    gym.register("Dying-v0", entry_point=RepeatFirst, vector_entry_point=Dying)


def learner(algo: str, memory: str, copies: int, **kwargs: Any) -> MemoryOnPolicyAlgorithm:
    policy_kwargs = {"memory": memory, "memory_kwargs": SMALL[memory]}
    if algo == "ppo":
        kwargs = {"n_epochs": EPOCHS, "n_minibatches": SETS, **kwargs}
    env = RepeatFirst(copies, length=STEPS)
    return LEARNERS[algo](
        "MemoryPolicy",
        env,
        n_steps=STEPS,
        policy_kwargs=policy_kwargs,
        **{"seed": 0, **kwargs},  # type: ignore[arg-type]
    )


def whole_rollout(model: MemoryOnPolicyAlgorithm) -> Rollout:
    """The rollout of the environments of all ranks, made up, in float64; its halves differ in every respect."""
    generator = torch.Generator().manual_seed(1)
    copies = RANKS * COPIES
    half = torch.arange(copies) >= COPIES

    def normal(scale: float = 1.0) -> Tensor:
        return torch.randn(STEPS, copies, generator=generator, dtype=torch.float64) * scale * (1 + 2 * half) + half

    env = RepeatFirst(copies, length=STEPS)
    rollout = Rollout.allocate(STEPS, env)
    rollout.obs = torch.rand(rollout.obs.shape, generator=generator, dtype=torch.float64)  # type: ignore[union-attr]
    rollout.actions = torch.randint(4, rollout.actions.shape, generator=generator)
    rollout.targets = torch.randint(4, rollout.actions.shape, generator=generator)
    rollout.weights = normal().abs()
    rollout.starts[0], rollout.starts[3] = True, half
    rollout.resets = [0, 3]
    rollout.terminated = torch.rand(STEPS, copies, generator=generator) < 0.3
    rollout.rewards, rollout.values, rollout.advantages, rollout.returns = normal(), normal(), normal(), normal()
    rollout.log_probs = -torch.ones(STEPS, copies, dtype=torch.float64) * (1.4 + half)  # a policy of four actions: 1.4
    rollout.state = model.policy.initial_state(copies)
    return rollout


def orders(rank: int) -> list[Tensor]:
    """A rank's permutations of its environments, one a pass."""
    generator = torch.Generator().manual_seed(rank)
    return [torch.randperm(COPIES, generator=generator) for _ in range(8 * EPOCHS)]


def orders_of_one() -> list[Tensor]:
    """Permutations for one process whose minibatches are the ranks' minibatches, put together."""
    passes = zip(*(orders(rank) for rank in range(RANKS)), strict=True)
    sets = [[(order + rank * COPIES).view(SETS, -1) for rank, order in enumerate(each)] for each in passes]
    return [torch.cat(each, 1).flatten() for each in sets]


def updates(name: str) -> dict[str, Any]:
    """Two iterations of a learner on a given rollout, or on this rank's part of it: what it then holds and logs."""
    algo, memory, kwargs = UPDATES[name]
    rank, ranks = distributed.rank(), distributed.size()
    copies = RANKS * COPIES // ranks
    model = learner(algo, memory, copies, **kwargs)
    model.policy.double()
    norm = model.policy.obs_norm or torch.nn.Identity()
    model.policy.encode = lambda obs: (norm(obs),)  # type: ignore[method-assign] # SB3's preprocessing ends in float32
    model._setup_learn(10**6)
    mine = torch.arange(rank * copies, (rank + 1) * copies)
    whole = whole_rollout(model)
    amounts = torch.rand(2, RANKS * COPIES, generator=torch.Generator().manual_seed(2))[:, mine]
    logs = []
    drawn = iter(orders(rank) if ranks > 1 else orders_of_one())
    for _ in range(2):
        model.rollout = rollout = whole.environments(mine)
        if model.collector().graph:
            unrolled = model.policy.remember_sequence(rollout.obs, rollout.starts, rollout.state, rollout.resets)
            model.rollout = replace(rollout, latents=unrolled.outputs, losses=unrolled.losses)
        model.task_metrics = TaskMetrics(("right",), model.device)
        model.task_metrics.add({"metrics": {"right": tuple(amounts)}})
        model.scores = model.task_metrics.sums()
        if "values normalised" in name:
            model.compute_advantages(model.rollout)
        with mock.patch.object(torch, "randperm", side_effect=drawn):
            model.train()
        logs.append(dict(model.logger.name_to_value))
        model.logger.name_to_value.clear()
    assert model.ep_info_buffer is not None
    return {
        "parameters": {key: value.clone() for key, value in model.policy.state_dict().items()},
        "logs": logs,
        "episodes": [[episode["r"], episode["l"]] for episode in model.ep_info_buffer],
    }


def learned() -> dict[str, Any]:
    """Some iterations from parameters that were drawn apart, and what the rank saw."""
    torch.manual_seed(100 + distributed.rank())
    model = learner("ppo", "mnm-p", COPIES, seed=None)
    before = model.policy.state_dict()["value_net.weight"].clone()
    model.learn(3 * STEPS * COPIES * RANKS)
    return {
        "before": before,
        "parameters": model.policy.state_dict(),
        "obs": model.rollout.obs,
        "actions": model.rollout.actions,
        "steps": model.num_timesteps,
        "episodes": model._episode_num,
    }


def seeded() -> dict[str, Any]:
    """What a seed gives a rank to see and to do."""
    model = learner("a2c", "gru", COPIES, seed=3).learn(STEPS * COPIES * RANKS)
    return {"obs": model.rollout.obs, "actions": model.rollout.actions}


class Steps(gym.Env[Any, Any]):
    """Episodes of `length` steps of 1 each; a success where that is odd."""

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, length: int) -> None:
        self.length = length

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        over = self.time == self.length
        return np.zeros(1, np.float32), 1.0, over, False, {"is_success": self.length % 2 == 1} if over else {}


def hosted(monitored: bool) -> dict[str, Any]:
    """Episodes of environments on the host, which are longer than a rollout on rank 1 alone."""
    length = 3 + 3 * distributed.rank()
    env = DummyVecEnv([lambda: Monitor(Steps(length)) if monitored else Steps(length)])
    model = A2C("MemoryPolicy", env, n_steps=4, policy_kwargs={"memory": "gru"}, device="cpu").learn(8 * RANKS)
    episodes = [(episode["r"], episode["l"]) for episode in model.ep_info_buffer or ()]
    return {"episodes": episodes, "successes": list(model.ep_success_buffer or ())}


def masked(where: int) -> list[float]:
    """The logged share of valid actions if only rank `where` gives masks, which leave one of two actions."""
    mask = {"action_mask": np.array([0, 1], np.int8)} if distributed.rank() == where else {}

    class Masked(Steps):
        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            return super().reset(seed=seed)[0], mask

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            obs, reward, terminated, truncated, _ = super().step(action)
            return obs, reward, terminated, truncated, mask

    env = DummyVecEnv([lambda: Masked(3)])
    model = A2C("MemoryPolicy", env, n_steps=4, policy_kwargs={"memory": "gru"}, device="cpu")
    shares: list[float] = []

    def note(iteration: int = 0) -> None:
        shares.append(model.logger.name_to_value.get(VALID, -1.0))

    with mock.patch.object(model, "dump_logs", note):
        model.learn(8 * RANKS)
    return shares


def command(*words: str) -> dict[str, Any]:
    """train.py in this process: its exit status and what it said."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            train.main(list(words))
        except SystemExit as end:
            return {"status": end.code, "said": said.getvalue()}
    raise AssertionError("train.main did not exit")


def runs(folder: Path) -> dict[str, Any]:
    """An uninterrupted run, and one that one rank is asked to stop half way and that is then resumed."""
    whole, parts = folder / "whole", folder / "parts"
    common = [*TRAIN, "--no-baseline", "--anneal", "--total-timesteps", "768"]
    found = {"whole": command(*common, "--run-dir", str(whole))}
    dump = MemoryOnPolicyAlgorithm.dump_logs

    def stop_half_way(self: MemoryOnPolicyAlgorithm, iteration: int = 0) -> None:
        dump(self, iteration)
        self.stop_requested = distributed.rank() == 1 and self.num_timesteps == 384

    with mock.patch.object(MemoryOnPolicyAlgorithm, "dump_logs", stop_half_way):
        found["stopped"] = command(*common, "--run-dir", str(parts))
    found["resumed"] = command("--resume", str(parts), "--no-progress")
    found["baseline"] = command(*TRAIN, "--total-timesteps", "64", "--run-dir", str(folder / "baseline"))
    return found


def poisoned() -> dict[str, Any]:
    """A reward that is none, on rank 1 alone."""
    step = RepeatFirst.step

    def bad(self: RepeatFirst, action: Tensor) -> Any:
        obs, reward, *rest = step(self, action)
        return (obs, reward * float("nan") if distributed.rank() == 1 else reward, *rest)

    model = learner("a2c", "gru", COPIES)
    with mock.patch.object(RepeatFirst, "step", bad):
        try:
            model.learn(STEPS * COPIES * RANKS)
        except FloatingPointError as error:
            return {"said": str(error)}
    return {"said": ""}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with distributed.session():
        found: dict[str, Any] = {name: updates(name) for name in UPDATES}
        found["learned"], found["seeded"], found["runs"] = learned(), seeded(), runs(folder)
        found["steps"] = {
            algo: learner(algo, "gru", COPIES).learn(2 * STEPS * COPIES * RANKS).num_timesteps for algo in LEARNERS
        }
        found["poisoned"] = poisoned()
        found["hosted"] = [hosted(monitored) for monitored in (True, False)]
        found["masked"] = [masked(where) for where in (0, 1, RANKS)]
        found["bad"] = {name: command(*words, "--run-dir", str(folder / "bad")) for name, words in BAD.items()}
        own = ["--imports", "rank_learner", "--algo", "of-ranks", "--of-ranks", "2", "--no-baseline"]
        own += ["--total-timesteps", "128", "--run-dir", str(folder / "imported")]
        os.chdir(Path(__file__).with_name("rank_modules"))  # where a process finds the module only if it is told to
        found["imported"] = command(*TRAIN, *own)
        found["any"] = [distributed.any_rank(distributed.rank() == 1), distributed.any_rank(False)]
        torch.save(found, folder / f"rank{distributed.rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
