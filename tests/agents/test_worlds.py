"""Environments of other packages as they are; each is left out where its package is not installed (extra `worlds`)."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy

from agents import PPO, load, make_env

GRU: dict[str, Any] = {"memory": "gru", "memory_kwargs": {"hidden_size": 8}}
WORLDS = [
    "minigrid:MiniGrid-MemoryS7-v0",
    "minigrid:MiniGrid-Empty-5x5-v0",
    "minigrid:BabyAI-GoToRedBall-v0",
    "popgym:popgym-RepeatPreviousEasy-v0",
    "popgym:popgym-AutoencodeEasy-v0",  # Tuple observations
    "popgym:popgym-ConcentrationEasy-v0",
    "popgym:popgym-NoisyPositionOnlyCartPoleEasy-v0",
    "FrozenLake-v1",
    "Taxi-v4",
    "CliffWalking-v1",
    "Blackjack-v1",  # Tuple observations
    "memory_gym:MortarMayhem-Grid-v0",
]
WRAPPED = [
    ("minigrid:MiniGrid-MemoryS7-v0", "minigrid.wrappers:ImgObsWrapper"),
    ("minigrid:MiniGrid-MemoryS7-v0", "minigrid.wrappers:OneHotPartialObsWrapper"),
    ("minigrid:MiniGrid-MemoryS7-v0", "minigrid.wrappers:RGBImgPartialObsWrapper"),
    ("minigrid:MiniGrid-Empty-5x5-v0", "minigrid.wrappers:FullyObsWrapper"),
]


def here(env_id: str) -> None:
    """Skip where the environment's package is not installed, or no longer has the id."""
    module, _, name = env_id.rpartition(":")
    if module:
        pytest.importorskip(module)
    try:
        gym.spec(name)
    except gym.error.Error as error:
        pytest.skip(str(error))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("vector", ["sync", "async"])
@pytest.mark.parametrize("env_id", WORLDS)
def test_worlds_train_save_and_are_played(env_id: str, vector: Any, tmp_path: Any) -> None:
    here(env_id)
    if vector == "async" and env_id not in WORLDS[::4]:
        pytest.skip("a few are enough")
    env = make_env(env_id, 2, vector=vector)
    model = PPO("MemoryPolicy", env, n_steps=8, n_minibatches=1, n_epochs=1, policy_kwargs=GRU, seed=0).learn(16)
    model.save(tmp_path / "it")
    single = gym.make(env_id.rpartition(":")[2])
    obs, _ = single.reset(seed=0)
    state = None
    for _ in range(3):
        action, state = load(tmp_path / "it").predict(obs, state)
        assert single.action_space.contains(action[()]), action
        obs, *_ = single.step(action[()])
    env.close()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("env_id", "wrapper"), WRAPPED)
@pytest.mark.parametrize("memory", ["gru", "multigrid"])
def test_minigrid_in_its_wrappers(env_id: str, wrapper: str, memory: str) -> None:
    here(env_id)
    env = make_env(env_id, 1, wrappers=[wrapper])
    space = env.single_observation_space
    pictures = [space] if not isinstance(space, spaces.Dict) else list(space.values())
    if memory == "multigrid" and any(len(entry.shape or ()) == 3 and max(entry.shape) > 48 for entry in pictures):
        with pytest.raises(ValueError, match="support sides up to 48"):
            PPO("MemoryPolicy", env, policy_kwargs={"memory": memory})
        return
    PPO("MemoryPolicy", env, n_steps=4, n_minibatches=1, n_epochs=1, policy_kwargs={"memory": memory}).learn(4)


@pytest.mark.filterwarnings("ignore")
def test_pettingzoo_through_supersuit() -> None:
    supersuit = pytest.importorskip("supersuit")
    world = pytest.importorskip("mpe2.simple_spread_v3")
    parallel = supersuit.pettingzoo_env_to_vec_env_v1(world.parallel_env(max_cycles=5))
    env = supersuit.concat_vec_envs_v1(parallel, 2, base_class="stable_baselines3")
    model = PPO("MemoryPolicy", env, n_steps=8, n_minibatches=1, n_epochs=1, policy_kwargs=GRU).learn(48)
    evaluate_policy(model, env, n_eval_episodes=6, warn=False)
    with pytest.raises(ValueError, match=r"does not say when it resets.*base_class='stable_baselines3'"):
        PPO("MemoryPolicy", supersuit.concat_vec_envs_v1(parallel, 2), policy_kwargs=GRU)


def test_minigrids_mission_is_read() -> None:
    """Whose colour is all that says where to go: two missions, two distributions of actions."""
    here("minigrid:BabyAI-GoToObj-v0")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        env = make_env("minigrid:BabyAI-GoToObj-v0")
    assert list(env.single_observation_space) == ["direction", "image", "mission"]  # type: ignore[call-overload]
    model = PPO("MemoryPolicy", env, policy_kwargs=GRU, seed=0)
    with torch.no_grad():
        model.policy.action_net.weight *= 100
    obs, _ = gym.make("BabyAI-GoToObj-v0").reset(seed=0)
    found = []
    for mission in ("go to the red ball", "go to the green ball"):
        seen, _ = model.policy.obs_to_tensor({**obs, "mission": mission})
        with torch.no_grad():
            found.append(model.policy.get_distribution(seen, model.policy.initial_state(1)).distribution.probs)
    assert (found[0] - found[1]).abs().max() > 0.01
