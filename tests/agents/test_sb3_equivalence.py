"""The same weights give the same numbers: our LSTM agent and sb3-contrib's, our memoryless agent and SB3's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3 import PPO as SB3PPO
from stable_baselines3.common.env_util import make_vec_env

from agents import PPO
from agents.environments import TensorVecEnv
from envs.repeat_first import RepeatFirst

T, B, HIDDEN = 9, 4, 11
RAW: dict[str, Any] = {"normalize_values": False}
"""SB3 learns values in the units of the rewards."""


def sequence(width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Observations, actions and starts `[T, B, ...]`; copy 0 starts at once, copy 1 never, others here and there."""
    generator = torch.Generator().manual_seed(2)
    starts = torch.rand(T, B, generator=generator) < 0.25
    starts[0, 0], starts[:, 1] = True, False
    obs = torch.rand(T, B, width, generator=generator)
    return obs, torch.randint(4, (T, B), generator=generator), starts


@pytest.fixture
def pair() -> tuple[PPO, Any]:
    """Our LSTM agent, and sb3-contrib's with one LSTM for actor and critic, with the same weights."""
    theirs = RecurrentPPO(
        "MlpLstmPolicy",
        TensorVecEnv(RepeatFirst(B)),
        policy_kwargs={
            "lstm_hidden_size": HIDDEN,
            "net_arch": [],
            "shared_lstm": True,
            "enable_critic_lstm": False,
        },
        seed=3,
    )
    kwargs = {"memory": "lstm", "memory_kwargs": {"hidden_size": HIDDEN}}
    ours = PPO("MemoryPolicy", RepeatFirst(B), policy_kwargs=kwargs, seed=4, **RAW)
    ours.policy.memory.rnn.load_state_dict(theirs.policy.lstm_actor.state_dict())
    for head in ("action_net", "value_net"):
        getattr(ours.policy, head).load_state_dict(getattr(theirs.policy, head).state_dict())
    with torch.no_grad():  # SB3 starts with an almost uniform policy: nothing to tell apart
        for agent in (ours, theirs):
            agent.policy.action_net.weight.mul_(100)
    return ours, theirs


def test_lstm_agent_against_sb3_contrib(pair: tuple[PPO, Any]) -> None:
    ours, theirs = pair
    obs, actions, starts = sequence(5)
    generator = torch.Generator().manual_seed(5)
    hidden, cell = (torch.randn(1, B, HIDDEN, generator=generator) for _ in range(2))
    state = {"hidden": hidden.transpose(0, 1), "cell": cell.transpose(0, 1)}
    judgement, unrolled = ours.policy.evaluate_actions(obs, actions, state, starts)

    def by_copy(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.transpose(0, 1).flatten(0, 1)  # sb3-contrib lays sequences end to end

    both = RNNStates((hidden, cell), (hidden, cell))
    values, log_prob, entropy = theirs.policy.evaluate_actions(
        by_copy(obs), by_copy(actions), both, by_copy(starts.float())
    )
    latent, (last_hidden, last_cell) = theirs.policy._process_sequence(
        by_copy(obs), (hidden, cell), by_copy(starts.float()), theirs.policy.lstm_actor
    )
    close: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(by_copy(unrolled.outputs), latent, **close)
    torch.testing.assert_close(unrolled.state["hidden"].transpose(0, 1), last_hidden, **close)
    torch.testing.assert_close(unrolled.state["cell"].transpose(0, 1), last_cell, **close)
    torch.testing.assert_close(by_copy(judgement.value), values.flatten(), **close)
    torch.testing.assert_close(by_copy(judgement.log_prob), log_prob, **close)
    torch.testing.assert_close(by_copy(judgement.entropy), entropy, **close)
    assert log_prob.std() > 0.1


def test_lstm_agent_predicts_as_sb3_contrib_does(pair: tuple[PPO, Any]) -> None:
    """Step by step through `predict`, each with its own state."""
    ours, theirs = pair
    obs, _, starts = sequence(5)
    state, other = None, None
    for t in range(T):
        start = starts[t].numpy()
        action, state = ours.predict(obs[t].numpy(), state, start, deterministic=True)
        expected, other = theirs.predict(obs[t].numpy(), other, start, deterministic=True)
        assert np.array_equal(action, expected)
        assert state is not None
        np.testing.assert_allclose(state["hidden"][:, 0].numpy(), other[0][0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fast", ["off", "auto"])
def test_memoryless_agent_against_sb3(fast: str) -> None:
    """`identity` is SB3's PPO with MlpPolicy: the same layers, the same outputs; fast paths differ by rounding."""
    theirs = SB3PPO("MlpPolicy", TensorVecEnv(RepeatFirst(B)), seed=3)
    ours = PPO("MemoryPolicy", RepeatFirst(B), policy_kwargs={"memory": "identity"}, seed=4, fast=fast, **RAW)
    weights = theirs.policy.state_dict()
    assert weights.keys() == ours.policy.state_dict().keys()
    ours.policy.load_state_dict(weights)
    obs, actions, starts = sequence(5)
    judgement, _ = ours.policy.evaluate_actions(obs, actions, {}, starts)
    values, log_prob, entropy = theirs.policy.evaluate_actions(obs.flatten(0, 1), actions.flatten())
    assert entropy is not None
    assert torch.equal(judgement.value.flatten(), values.flatten())
    near = {"rtol": 0.0, "atol": 0.0} if fast == "off" else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(judgement.log_prob.flatten(), log_prob, **near)
    torch.testing.assert_close(judgement.entropy.flatten(), entropy, **near)


@pytest.mark.parametrize("memory", ["identity", "lstm"])
def test_the_start_is_sb3s(memory: str) -> None:
    """Orthogonal heads with SB3's gains, Adam with its epsilon."""
    model = PPO("MemoryPolicy", RepeatFirst(B), policy_kwargs={"memory": memory}, seed=4)
    actor, critic = model.policy.action_net.weight, model.policy.value_net.weight
    torch.testing.assert_close(actor @ actor.T, 1e-4 * torch.eye(4), rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(critic @ critic.T, torch.eye(1))
    assert model.policy.optimizer.defaults["eps"] == 1e-5


def test_same_gradient_as_sb3(monkeypatch: pytest.MonkeyPatch) -> None:
    """One full-batch PPO update of the memoryless agent moves every weight as SB3's does, on the same experience."""
    shared: dict[str, Any] = {"n_steps": 16, "n_epochs": 1, "gamma": 0.9, "learning_rate": 0.01, "ent_coef": 0.02}
    ours = PPO(
        "MemoryPolicy", RepeatFirst(B), n_minibatches=1, policy_kwargs={"memory": "identity"}, seed=4, **RAW, **shared
    )
    theirs = SB3PPO("MlpPolicy", TensorVecEnv(RepeatFirst(B)), batch_size=16 * B, seed=4, **shared)
    theirs.policy.load_state_dict(ours.policy.state_dict())
    ours.learn(16 * B)
    rollout = ours.rollout

    buffer = theirs.rollout_buffer
    buffer.reset()
    for t in range(16):
        tensors = (rollout.obs[t], rollout.actions[t][:, None], rollout.rewards[t], rollout.starts[t])
        buffer.add(*(value.numpy() for value in tensors), rollout.values[t], rollout.log_probs[t])
    # the rollout ends with an episode: nothing is bootstrapped
    buffer.compute_returns_and_advantage(torch.zeros(B), np.ones(B))
    np.testing.assert_allclose(buffer.advantages, rollout.advantages.numpy(), rtol=1e-5, atol=1e-6)
    theirs._setup_learn(1)
    theirs.train()
    for name, value in ours.policy.state_dict().items():
        torch.testing.assert_close(value, theirs.policy.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_the_benchmarks_faster_recurrent_ppo_trains_as_sb3_contrib_does() -> None:
    """`whole_sequences` replaces a loop over time: same parameters after two rollouts with many episode ends."""
    from benchmarks.any_env import recurrent_ppo, whole_sequences

    def trained(own_loop: bool) -> Any:
        small: dict[str, Any] = {"n_steps": 32, "batch_size": 48, "n_epochs": 3, "learning_rate": 1e-2}
        model = recurrent_ppo(make_vec_env("CartPole-v1", 3, seed=0), seed=0, device="cpu", **small)
        if own_loop:
            del model.policy._process_sequence
        start = model.policy.lstm_actor.weight_hh_l0.detach().clone()
        model.learn(2 * 3 * 32)
        assert (model.policy.lstm_actor.weight_hh_l0 - start).abs().max() > 0.01
        return model

    ours, theirs = trained(False).policy, trained(True).policy
    for (name, mine), its in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-3, atol=1e-4, msg=name)

    state = (torch.zeros(1, 2, 4), torch.zeros(1, 2, 4))
    with pytest.raises(ValueError, match="inside a sequence"):
        whole_sequences(torch.zeros(6, 3), state, torch.tensor([1.0, 0, 0, 1, 0, 1]), torch.nn.LSTM(3, 4))
