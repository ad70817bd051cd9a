"""The order of a `Dict` decides which weight reads which entry: the same everywhere, whatever a dictionary's order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from agent_stubs import collect
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor

from agents import PPO, CheckpointError, as_tensor_env, load
from agents.checkpoint import MANIFEST, load_weights
from agents.checkpoint.encoding import decode_space, encode_space
from agents.evaluation import evaluate
from envs.tensor_env import TensorEnv
from policies.encoders import MLPEncoder

CUE = {"cue": spaces.Discrete(5), "ask": spaces.Box(0.0, 1.0, (2,))}
VIEW = {"view": spaces.Box(0.0, 1.0, (2, 3, 3)), **CUE, "area": spaces.Box(0.0, 1.0, (1, 3, 3))}
QUESTIONS = {**VIEW, "query_place": spaces.Box(0.0, 1.0, (1, 3, 3)), "query_a": spaces.Box(0.0, 1.0, (2, 3, 3))}
MULTIGRID = {"memory": "multigrid", "memory_kwargs": {"channels": [4, 4, 4]}}
CASES: dict[str, tuple[dict[str, spaces.Space[Any]], dict[str, Any]]] = {
    "CombinedExtractor": (CUE, {"memory": "gru"}),
    "MLPEncoder": (CUE, {"memory": "gru", "features_extractor_class": MLPEncoder}),
    "GridEncoder folds": (CUE, MULTIGRID),
    "GridEncoder stacks": (VIEW, MULTIGRID),
    "QueryEncoder, grids": (QUESTIONS, MULTIGRID),
    "QueryEncoder, vectors": (CUE | {"query": spaces.Box(0.0, 1.0, (2,))}, {"memory": "kanerva++"}),
}


def turned(entries: dict[str, Any]) -> dict[str, Any]:
    """The same entries in the opposite order."""
    return dict(reversed(entries.items()))


class OnDevice(TensorEnv):
    """Random entries, handed out in the opposite order of the space; the reward is the action; 4 steps."""

    def __init__(self, entries: dict[str, spaces.Space[Any]], num_envs: int = 4) -> None:
        super().__init__(num_envs, spaces.Dict(list(entries.items())), spaces.Discrete(3), horizon=4)

    def _begin(self, where: Tensor | None) -> None: ...

    def _advance(self, action: Tensor) -> tuple[Tensor, None, None]:
        return action.float(), None, None

    def _observe(self) -> dict[str, Tensor]:
        assert isinstance(self.single_observation_space, spaces.Dict)

        def draw(space: spaces.Space[Any]) -> Tensor:
            shape = (self.num_envs, *(space.shape or ()))
            if isinstance(space, spaces.Discrete):
                return torch.randint(int(space.n), shape, generator=self.generator)
            return torch.rand(shape, generator=self.generator)

        return turned({name: draw(space) for name, space in self.single_observation_space.items()})


class OnHost(gym.Env[Any, Any]):
    """The same as an ordinary environment."""

    action_space = spaces.Discrete(3)

    def __init__(self, entries: dict[str, spaces.Space[Any]]) -> None:
        self.observation_space = spaces.Dict(list(entries.items()))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        return turned(self.observation_space.sample()), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return turned(self.observation_space.sample()), float(action), self.steps == 4, False, {}


def on_host(entries: dict[str, spaces.Space[Any]]) -> SyncVectorEnv:
    return SyncVectorEnv([lambda: OnHost(entries)] * 4, autoreset_mode=AutoresetMode.SAME_STEP)


@pytest.mark.parametrize("where", [OnDevice, on_host])
@pytest.mark.parametrize("case", CASES)
def test_acting_replay_and_loaded_agents_read_the_same_entries(where: Any, case: str, tmp_path: Path) -> None:
    entries, policy_kwargs = CASES[case]
    env = as_tensor_env(where(entries))
    space = env.single_observation_space
    assert list(space) == list(entries)  # type: ignore[call-overload]
    model = PPO("MemoryPolicy", env, n_steps=8, n_minibatches=1, policy_kwargs=policy_kwargs, seed=0)
    with torch.no_grad():
        model.policy.action_net.weight *= 100  # else all actions are equally probable, whatever is read
    rollout = collect(model)
    with torch.no_grad():
        again, _ = model.policy.evaluate_actions(
            rollout.obs, rollout.actions, rollout.state, rollout.starts, rollout.resets
        )
    assert rollout.log_probs.std() > 1e-3
    assert (again.log_prob - rollout.log_probs).abs().max() < 1e-5

    model.save(tmp_path / "it")
    observation = turned({name: value.numpy() for name, value in env.reset(seed=1)[0].items()})  # type: ignore[union-attr]
    expected = _log_probs(model, observation)
    score = evaluate(model, env, 4, deterministic=True, seed=3)
    for other in (None, where(turned(entries)), where(dict(sorted(entries.items())))):
        loaded = load(tmp_path / "it", other)
        assert list(loaded.policy.observation_space) == list(entries)  # type: ignore[call-overload]
        assert torch.equal(_log_probs(loaded, observation), expected)
        assert torch.equal(_log_probs(loaded, turned(observation)), expected)
        assert evaluate(loaded, as_tensor_env(where(entries)), 4, deterministic=True, seed=3) == score


def _log_probs(model: Any, observation: dict[str, np.ndarray[Any, Any]]) -> Tensor:
    obs, _ = model.policy.obs_to_tensor(observation)
    with torch.no_grad():
        distribution = model.policy.get_distribution(obs, model.policy.initial_state(4))
    return distribution.distribution.logits  # type: ignore[no-any-return]


def test_training_goes_on_in_an_environment_of_another_order(tmp_path: Path) -> None:
    model = PPO("MemoryPolicy", OnDevice(CUE), n_steps=8, n_minibatches=1, policy_kwargs={"memory": "gru"}, seed=0)
    model.learn(32).save(tmp_path / "it")
    other = load(tmp_path / "it", OnDevice(turned(CUE))).learn(64, reset_num_timesteps=False)
    with torch.no_grad():
        rollout = collect(other)
        again, _ = other.policy.evaluate_actions(rollout.obs, rollout.actions, rollout.state, rollout.starts)
    assert (again.log_prob - rollout.log_probs).abs().max() < 1e-5


def test_spaces_keep_their_order() -> None:
    space = spaces.Dict([("b", spaces.Dict([("z", spaces.Discrete(2)), ("y", spaces.Discrete(3))])), ("a", CUE["cue"])])
    back = decode_space(json.loads(json.dumps(encode_space(space))))
    assert back == space
    assert list(back) == ["b", "a"]  # type: ignore[call-overload]
    assert list(back["b"]) == ["z", "y"]  # type: ignore[index]


def test_weights_of_another_order_are_not_taken(tmp_path: Path) -> None:
    kwargs: dict[str, Any] = {"policy_kwargs": {"memory": "gru"}, "n_steps": 8, "seed": 0}
    entries = {"cue": spaces.Box(0.0, 1.0, (2,)), "ask": spaces.Box(0.0, 1.0, (2,))}
    PPO("MemoryPolicy", OnDevice(entries), **kwargs).save(tmp_path / "it")
    load_weights(PPO("MemoryPolicy", OnDevice(entries), **kwargs).policy, tmp_path / "it")
    with pytest.raises(CheckpointError, match=r"in the order cue, ask, but the environment has ask, cue") as caught:
        load_weights(PPO("MemoryPolicy", OnDevice(turned(entries)), **kwargs).policy, tmp_path / "it")
    assert "\n" not in str(caught.value)
    assert list(json.loads((tmp_path / "it" / MANIFEST).read_text())["observation_space"]["spaces"]) == ["cue", "ask"]
