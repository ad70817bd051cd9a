"""V-trace as a learner: its loss against numbers worked out by hand. The estimator alone: test_returns.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from agent_stubs import collect, script, set_critic

from agents import A2C, VTrace
from envs.repeat_first import RepeatFirst


def test_its_loss_by_hand(counter: str) -> None:
    """Critic 4, discount 1/2, rewards 1, 2, 3, ratios 2, 1/2, 1: targets 3.125, 4.25, 5, as in test_returns.py."""
    kwargs: dict[str, Any] = {"n_steps": 3, "gamma": 0.5, "normalize_values": False, "seed": 0}
    model = VTrace("MemoryPolicy", script([[1.0], [2.0], [3.0]]), policy_kwargs={"memory": counter}, **kwargs)
    set_critic(model, [0.0, 0.0], 4.0)
    rollout = collect(model)
    log_probs = rollout.log_probs.clone()
    rollout.log_probs = log_probs - torch.tensor([[2.0], [0.5], [1.0]]).log()
    loss, parts = model.loss(rollout)
    assert parts["train/value_loss"].item() == pytest.approx((0.875**2 + 0.25**2 + 1) / 3)
    advantages = torch.tensor([[-0.875], [0.25], [1.0]])
    assert parts["train/policy_loss"].item() == pytest.approx(-(advantages * log_probs).mean().item())
    assert parts["train/cut_fraction"].item() == pytest.approx(1 / 3)
    entropy = parts["train/entropy"].item()
    expected = parts["train/policy_loss"].item() + 0.5 * parts["train/value_loss"].item() - 0.01 * entropy
    assert loss.item() == pytest.approx(expected)


def test_with_one_update_a_rollout_it_is_a2c_with_whole_returns() -> None:
    shared: dict[str, Any] = {
        "learning_rate": 1e-2,
        "n_steps": 6,
        "ent_coef": 0.02,
        "seed": 0,
        "normalize_values": False,
    }
    shared["policy_kwargs"] = {"memory": "gru", "memory_kwargs": {"hidden_size": 8}}
    found = []
    for learner, own in (
        (VTrace, {"n_epochs": 1, "n_minibatches": 1}),
        (A2C, {"gae_lambda": 1.0, "use_rms_prop": False}),
    ):
        model = learner("MemoryPolicy", RepeatFirst(4, length=4), **own, **shared)
        found.append(model.learn(24))  # the order of minibatches is drawn, so actions differ from here on
        assert model._n_updates == 1
    for one, other in zip(*(model.policy.parameters() for model in found), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_an_older_policy_is_noticed() -> None:
    """By ratios above 1.01: those of the policy that acted are 1 up to rounding."""
    found = []
    for rate in (1e-2, 0.0):
        env, kwargs = RepeatFirst(4, length=4), {"memory": "gru"}
        model = VTrace("MemoryPolicy", env, rate, 8, rho_bar=1.01, policy_kwargs=kwargs, seed=0)
        model.learn(64, log_interval=None)
        found.append(model.logger.name_to_value["train/cut_fraction"])
    assert found[0] > found[1] == 0
