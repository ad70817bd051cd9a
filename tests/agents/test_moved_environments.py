"""A callback may move the training environment: the learner goes on from what it shows, as from an episode's start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from agent_stubs import set_critic
from clocks import Clock, TensorClock
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor, VecNormalize

from agents import A2C, PPO, Supervised
from agents.collect import SequenceCollector
from agents.sb3.callback_locals import Locals
from envs.repeat_first import RepeatFirst

GRU: dict[str, Any] = {"memory": "gru", "memory_kwargs": {"hidden_size": 4}}
same = AutoresetMode.SAME_STEP


BUILT: dict[str, Callable[[], Any]] = {
    "TensorEnv": lambda: TensorClock(2),
    "VecEnv": lambda: DummyVecEnv([Clock] * 2),
    "VecEnv in wrappers": lambda: VecMonitor(VecNormalize(DummyVecEnv([Clock] * 2), norm_obs=False, norm_reward=False)),
    "VectorEnv": lambda: SyncVectorEnv([Clock] * 2, autoreset_mode=same),
    "Env": Clock,
}
MOVES: dict[str, Callable[[Any, VecEnv, Any], Any]] = {
    "training_env.reset": lambda built, env, model: env.reset(),
    "some steps": lambda built, env, model: [env.step(np.zeros(env.num_envs, int))[0] for _ in range(3)][-1],
    "evaluate_policy": lambda built, env, model: evaluate_policy(model, env, 3, warn=False) and None,
    "a variable": lambda built, env, model: _first(built.reset()),
    "env_method": lambda built, env, model: env.env_method("reset") and None,
}


def _first(result: Any) -> Any:
    return np.atleast_2d(np.asarray(result[0] if isinstance(result, tuple) else result))


class Mover(BaseCallback):
    """Moves the training environment once, and looks at how the learner goes on."""

    def __init__(self, when: str, move: Callable[[Any, VecEnv, Any], Any], built: Any) -> None:
        super().__init__()
        self.when, self.move, self.built = when, move, built
        self.moved, self.shown = False, None
        self.first: dict[str, Any] = {}

    def _maybe(self, when: str, due: bool) -> None:
        if when == self.when and due and not self.moved:
            self.moved, self.shown = True, self.move(self.built, self.training_env, self.model)

    def _on_rollout_start(self) -> None:
        self._maybe("rollout_start", self.num_timesteps > 0)

    def _on_rollout_end(self) -> None:
        self._maybe("rollout_end", True)

    def _on_step(self) -> bool:
        t = self.locals["t"]
        if self.moved and not self.first:
            self.first = {"obs": self.model.rollout.obs[t].clone(), "starts": self.model.rollout.starts[t].clone()}
            if "count" in self.model.rollout_state.memory:
                self.first["count"] = self.model.rollout_state.memory["count"].clone()
        self._maybe("step", t == 3)
        return True


@pytest.mark.parametrize("when", ["rollout_end", "rollout_start", "step"])
@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("built", BUILT)
def test_a_callback_moves_the_training_environment(built: str, move: str, when: str, counter: str) -> None:
    """The learner goes on from what the environment shows, as from the start of an episode."""
    learner, arguments = (A2C, {}) if when == "rollout_end" else (PPO, {"n_epochs": 1, "n_minibatches": 1})
    env = BUILT[built]()
    model = learner("MemoryPolicy", env, n_steps=8, policy_kwargs={"memory": counter}, device="cpu", **arguments)
    mover = Mover(when, MOVES[move], env)
    model.learn(8 * model.n_envs * 4, callback=mover)
    assert mover.moved
    assert mover.first["starts"].all()
    assert (mover.first["count"] == 1).all()
    if mover.shown is not None and (built, move) != ("Env", "a variable"):  # where all are reset once more
        np.testing.assert_array_equal(mover.first["obs"].numpy(), mover.shown)
    assert all(torch.isfinite(parameter).all() for parameter in model.policy.parameters())
    lengths = {int(episode["l"]) for episode in model.ep_info_buffer}
    if move == "some steps" and built != "VecEnv in wrappers":  # VecMonitor counts the callback's steps
        assert lengths == ({5, 6} if when == "step" else {1, 6})
    else:
        assert lengths == {6}


@pytest.mark.parametrize("when", ["rollout_end", "rollout_start", "step"])
def test_a_supervised_learner_that_takes_whole_sequences(when: str) -> None:
    """Its rollout is made by the time that callbacks hear of its steps: what they do counts from the next one on."""
    env = RepeatFirst(2, length=5)
    model = Supervised("MemoryPolicy", env, n_steps=8, policy_kwargs=GRU, device="cpu", seed=0)
    assert isinstance(model.collector(), SequenceCollector)
    mover = Mover(when, MOVES["training_env.reset"], env)
    starts: list[list[int]] = []

    class Note(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            starts.append(self.model.rollout.starts[:, 0].nonzero().flatten().tolist())

    model.learn(16 * 3, callback=[Note(), mover])
    # episodes of 5 steps from the start, and from the second rollout on, before which the callback has reset
    assert starts == [[0, 5], [0, 5], [2, 7]]
    assert {episode["l"] for episode in model.ep_info_buffer} == {5}


def test_an_episode_that_a_callback_cuts_off_is_bootstrapped(counter: str) -> None:
    """As a truncated one: by the value of what would have come, with the memory as it was. It counts as no episode."""
    env = TensorClock(2)
    model = PPO(
        "MemoryPolicy", env, n_steps=8, n_minibatches=1, gamma=0.5, policy_kwargs={"memory": counter}, device="cpu"
    )
    set_critic(model, [100.0, 0.0, 1.0], 0.0)  # 100 · steps remembered + step of the episode
    _, callback = model._setup_learn(10**9, Mover("step", MOVES["training_env.reset"], env))
    callback.on_training_start(Locals(), {})
    assert model.collect_rollouts(model.env, callback, model.rollout, 8)
    rollout = model.rollout
    assert rollout.truncated[:, 0].nonzero().flatten().tolist() == [3]
    assert rollout.final_values[3].tolist() == [504.0, 504.0]  # after four steps a fifth would be remembered
    assert rollout.starts[:, 0].nonzero().flatten().tolist() == [0, 4]
    model.train()
    assert len(model.ep_info_buffer) == 0
