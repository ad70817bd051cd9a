"""Values of final observations: the same whether each step's are taken at once or those of many steps together."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from agent_stubs import collect, script, set_critic
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from agents import A2C, PPO, make_env
from agents import collect as collect_module
from agents.collect import BUDGET_DIVISOR, FinalValues
from agents.rollout import Rollout


def in_batches(most: int, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(FinalValues, "_steps_that_fit", lambda self, obs, state: most)


@pytest.mark.parametrize("most", [1, 2, 4, 99])
def test_final_memories_of_many_steps_are_told_apart(most: int, counter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in test_returns.py: 100 * (steps remembered) + (step of the episode)."""
    in_batches(most, monkeypatch)
    env = script([[0.0, 0.0]] * 6, terminated=[(3, 1)], truncated=[(2, 0), (5, 0), (5, 1)])
    model = PPO("MemoryPolicy", env, n_steps=6, policy_kwargs={"memory": counter}, seed=0, normalize_values=False)
    set_critic(model, [100.0, 1.0], 0.0)
    for _ in range(2):  # rollouts that follow one another have nothing of the one before
        found = collect(model).final_values
        assert found.tolist() == [[0, 0], [0, 0], [403, 0], [0, 0], [0, 0], [403, 1302]]


def test_steps_that_do_not_follow_one_another(counter: str) -> None:
    env = script([[0.0, 0.0]] * 6)
    model = PPO("MemoryPolicy", env, n_steps=6, policy_kwargs={"memory": counter}, seed=0, normalize_values=False)
    set_critic(model, [100.0, 1.0], 0.0)
    rollout: Rollout = collect(model)
    rollout.truncated[:] = True
    finals = FinalValues(model.policy, rollout, batch_steps=4)
    state = model.policy.initial_state(2)
    for t in (0, 1, 4):
        finals.add(t, rollout.obs[t], state)  # type: ignore[index]
    finals.finish()
    finals.finish()  # nothing is left
    assert rollout.final_values[:, 0].tolist() == [100, 101, 0, 0, 104, 0]


def test_observations_count_in_the_memory_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    class Truncated(list[int]):
        device = torch.device("cuda")

    monkeypatch.setattr(collect_module, "max_stored_bytes", lambda device: 1600 * BUDGET_DIVISOR)
    policy: Any = None
    rollout: Any = SimpleNamespace(truncated=Truncated(range(100)))
    obs, state = torch.zeros(10, 9), {"hidden": torch.zeros(10, 1)}  # 400 bytes per step
    assert FinalValues(policy, rollout)._steps_that_fit(obs, state) == 4


@pytest.mark.parametrize("memory", ["lstm", "mnm-p", "dnc", "kanerva++"])
@pytest.mark.parametrize("learner", [A2C, PPO])
def test_a_rollout_has_the_same_values_either_way(
    learner: type[PPO | A2C], memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Tensor] = []
    for most in (1, 3):
        in_batches(most, monkeypatch)
        env = make_env("Engram/TMaze-v0", 4, "cpu", length=2, max_steps=5)
        model = learner("MemoryPolicy", env, n_steps=11, policy_kwargs={"memory": memory}, seed=0)
        found.append(collect(model).final_values)
    assert found[0].any()
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


class Normed(BaseFeaturesExtractor):
    """An encoder with batch normalisation."""

    def __init__(self, space: spaces.Space[Any]) -> None:
        super().__init__(space, 8)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(space.shape or ())), 8), nn.BatchNorm1d(8))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


def test_bootstraps_do_not_change_batch_statistics() -> None:
    """A2C's rollout trains as it is collected; values after its end or an episode's are only predicted."""
    env = make_env("Engram/TMaze-v0", 4, "cpu", length=2, max_steps=5)
    policy: dict[str, Any] = {"memory": "gru", "features_extractor_class": Normed}
    model = A2C("MemoryPolicy", env, n_steps=11, policy_kwargs=policy, seed=0)
    rollout = collect(model)
    assert rollout.final_values.any()
    norm: Any = model.policy.features_extractor.layers[2]
    assert norm.num_batches_tracked == 11
    assert all(module.training for module in model.policy.modules())


class Counting(gym.Env[Any, Any]):
    """Counts the steps of an episode, in entries with names of any form; truncated after three."""

    def __init__(self, names: list[str]) -> None:
        self.observation_space = spaces.Dict({name: spaces.Box(0.0, 9.0, (1,)) for name in names})
        self.action_space = spaces.Discrete(2)
        self.steps = 0

    def _observation(self) -> dict[str, Any]:
        return {name: np.full(1, self.steps, np.float32) for name in self.observation_space}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self._observation(), 0.0, False, self.steps == 3, {}


@pytest.mark.parametrize("names", [["", "a"], [""], ["obs", "state/hidden"]])
def test_entries_may_have_any_name(names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Tensor] = []
    for most in (1, 3):
        in_batches(most, monkeypatch)
        model = PPO("MemoryPolicy", Counting(names), n_steps=8, policy_kwargs={"memory": "gru"}, seed=0)
        found.append(collect(model).final_values)
    assert found[0].any()
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)
