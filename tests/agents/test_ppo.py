"""PPO: the replay agrees with what was done, minibatches, the loss by hand, early stopping."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from agent_stubs import SMALL, VECTOR_MEMORIES, collect, script
from torch import Tensor

from agents import PPO
from agents.rollout import Rollout
from envs.repeat_first import RepeatFirst
from envs.tmaze import TMaze
from policies.heads import ActionEvaluation


def ppo(memory: str, env: Any, **kwargs: Any) -> PPO:
    policy_kwargs = {"memory": memory, "memory_kwargs": SMALL.get(memory, {})}
    return PPO("MemoryPolicy", env, policy_kwargs=policy_kwargs, seed=0, **kwargs)


@pytest.mark.parametrize("memory", VECTOR_MEMORIES)
@pytest.mark.parametrize("env", ["variable", "horizon"])
def test_the_ratio_is_one_before_the_first_update(memory: str, env: str) -> None:
    """Over a rollout that begins in the middle of episodes, after an update, and in which episodes start."""
    made = TMaze(6, length=1, max_steps=5) if env == "variable" else RepeatFirst(6, length=5)
    model = ppo(memory, made, n_steps=7, n_epochs=1)
    model.learn(2 * 7 * 6)
    rollout = collect(model)
    assert not rollout.starts[0].all()
    assert rollout.starts[1:].any()
    for index in torch.randperm(6).tensor_split(3):
        minibatch = rollout.environments(index)
        judgement, _ = model.evaluate_actions(minibatch)
        assert (judgement.log_prob - rollout.log_probs[:, index]).abs().max() <= 1e-6
        torch.testing.assert_close(judgement.value, rollout.values[:, index], rtol=1e-5, atol=1e-6)
        _, parts = model.loss(minibatch, 0.2, None)
        assert parts["train/approx_kl"].abs() <= 1e-6
        assert parts["train/clip_fraction"] == 0


def test_a_replay_from_the_wrong_state_is_noticed() -> None:
    """The test above can fail: zeros in place of the stored state move the log-probabilities."""
    model = ppo("gru", TMaze(6, length=1, max_steps=5), n_steps=7, n_epochs=1)
    model.learn(2 * 7 * 6)
    rollout = collect(model)
    stale = replace(rollout, state=model.policy.initial_state(6))
    judgement, _ = model.evaluate_actions(stale)
    assert (judgement.log_prob - rollout.log_probs).abs().max() > 1e-5


def test_minibatches_are_cut_over_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pass sees each environment once, with all of its steps in order."""
    model = ppo("gru", script([[0.0] * 6] * 9), n_steps=9, n_minibatches=4, n_epochs=3)
    seen: list[Tensor] = []
    loss = PPO.loss

    def spy(self: PPO, rollout: Rollout, *clips: Any) -> Any:
        seen.append(rollout.obs.squeeze(-1))
        return loss(self, rollout, *clips)

    monkeypatch.setattr(PPO, "loss", spy)
    model.learn(9 * 6)
    assert [minibatch.shape for minibatch in seen] == 3 * [(9, 2), (9, 2), (9, 1), (9, 1)]
    for minibatch in seen:
        assert (minibatch - minibatch[0] == torch.arange(9.0)[:, None]).all()
    orders = [torch.cat([m[0] for m in seen[start : start + 4]]).div(1000).int().tolist() for start in (0, 4, 8)]
    assert all(sorted(order) == list(range(6)) for order in orders)
    assert len({tuple(order) for order in orders}) > 1


def test_fewer_environments_than_minibatches() -> None:
    model = ppo("gru", script([[0.0] * 2] * 5), n_steps=5, n_minibatches=4, n_epochs=2)
    model.learn(10)
    assert model._n_updates == 4


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("clip_vf", [None, 0.1])
def test_the_loss_by_hand(normalize: bool, clip_vf: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equation 7 of the paper, the value loss and the entropy, one number at a time."""
    steps, copies, clip = 3, 4, 0.2
    generator = torch.Generator().manual_seed(1)

    def normal(scale: float = 1.0) -> Tensor:
        return scale * torch.randn(steps, copies, generator=generator, dtype=torch.float64)

    model = ppo(
        "identity", RepeatFirst(copies), n_steps=steps, vf_coef=0.7, ent_coef=0.03, normalize_advantage=normalize
    )
    model.aux_coef = 0.4
    old_log_prob, old_value, advantages, returns = normal(), normal(), normal(), normal()
    judgement = ActionEvaluation(old_value + normal(0.2), old_log_prob + normal(0.3), normal().abs())
    extra = normal().abs()
    monkeypatch.setattr(model, "evaluate_actions", lambda rollout: (judgement, {"meta": extra}))
    rollout = replace(model.rollout, log_probs=old_log_prob, values=old_value, advantages=advantages, returns=returns)
    total, parts = model.loss(rollout, clip, clip_vf)

    gains = advantages.flatten().tolist()
    if normalize:
        mean = sum(gains) / 12
        deviation = math.sqrt(sum((a - mean) ** 2 for a in gains) / 11)
        gains = [(a - mean) / (deviation + 1e-8) for a in gains]
    policy_loss = value_loss = divergence = clipped = 0.0
    for index, gain in enumerate(gains):
        t, n = divmod(index, copies)
        ratio = math.exp(judgement.log_prob[t, n].item() - old_log_prob[t, n].item())
        policy_loss -= min(gain * ratio, gain * max(1 - clip, min(1 + clip, ratio))) / 12
        clipped += (abs(ratio - 1) > clip) / 12
        divergence += (ratio - 1 - math.log(ratio)) / 12
        value, old = judgement.value[t, n].item(), old_value[t, n].item()
        if clip_vf is not None:
            value = old + max(-clip_vf, min(clip_vf, value - old))
        value_loss += (value - returns[t, n].item()) ** 2 / 12
    entropy, meta = judgement.entropy.mean().item(), extra.mean().item()
    expected = {
        "train/policy_loss": policy_loss,
        "train/value_loss": value_loss,
        "train/entropy": entropy,
        "train/approx_kl": divergence,
        "train/clip_fraction": clipped,
        "train/meta_loss": meta,
        "train/loss": policy_loss + 0.7 * value_loss - 0.03 * entropy + 0.4 * meta,
    }
    assert 0 < clipped < 1
    assert {name: value.item() for name, value in parts.items()} == pytest.approx(expected, rel=1e-6)
    assert total.item() == pytest.approx(expected["train/loss"], rel=1e-6)


def test_target_kl_ends_the_passes() -> None:
    """With a step far too large, the first pass is over the limit and is the last one."""
    updates = {}
    for target in (None, 1e-9, 1e9):
        env = RepeatFirst(8, length=4)
        model = ppo("gru", env, n_steps=8, n_epochs=5, n_minibatches=2, learning_rate=0.1, target_kl=target)
        model.learn(8 * 8)
        updates[target] = model._n_updates
    assert updates == {None: 10, 1e-9: 2, 1e9: 10}


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="n_minibatches is 0"):
        ppo("gru", RepeatFirst(2), n_minibatches=0)
    with pytest.raises(ValueError, match="n_steps is -1"):
        ppo("gru", RepeatFirst(2), n_steps=-1)
    assert ppo("gru", RepeatFirst(2, length=9), n_steps=0).n_steps == 9
    with pytest.raises(ValueError, match=r"n_steps is 0 .a whole episode"):
        ppo("gru", TMaze(2), n_steps=0)
