"""Normalised values and observations in the learners: scale, replay, evaluation, checkpoints, the warning, learning."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from agent_stubs import SMALL, collect, set_critic
from cases import LEARNERS
from gymnasium import spaces
from gymnasium.vector.utils import batch_space
from test_checkpoint import assert_same, fingerprint

from agents import A2C, PPO, MemoryOnPolicyAlgorithm, Supervised, load, make_env
from agents.checkpoint import MANIFEST, digest, load_weights
from agents.evaluation import evaluate
from agents.metrics.critic import PATIENCE, STEPS, CriticWatch
from agents.replaying import ReplayLearner
from agents.run.recipes import base_config
from envs.repeat_first import RepeatFirst
from envs.tensor_env import Obs, TensorEnv
from envs.tmaze import TMaze

T, N = 6, 4
REPLAYING = [row.learner for row in LEARNERS.values() if issubclass(row.learner, ReplayLearner)]


class Scaled(TMaze):
    """TMaze whose rewards are `scale` times as large."""

    scale = 1.0

    def _advance(self, action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        reward, terminated, truncated = super()._advance(action)
        return reward * self.scale, terminated, truncated


class Sensors(TMaze):
    """TMaze with its observation as numbers of very different sizes beside a choice."""

    def __init__(self, num_envs: int = 1, **kwargs: Any) -> None:
        super().__init__(num_envs, **kwargs)
        numbers = spaces.Box(-np.inf, np.inf, (3,))
        self.single_observation_space = spaces.Dict({"far": numbers, "which": spaces.Discrete(2)})
        self.observation_space = batch_space(self.single_observation_space, num_envs)

    def _observe(self) -> Obs:  # type: ignore[override]
        code = super()._observe()
        return {"far": 5000 + 300 * code, "which": code[:, 0].long()}


def build(learner: type[MemoryOnPolicyAlgorithm], env: TensorEnv, **kwargs: Any) -> Any:
    if learner in REPLAYING:
        kwargs = {"n_epochs": 2, "n_minibatches": 2, **kwargs}
    policy_kwargs = {"memory": "gru", "memory_kwargs": SMALL["gru"]}
    return learner("MemoryPolicy", env, n_steps=T, policy_kwargs=policy_kwargs, seed=3, device="cpu", **kwargs)


@pytest.mark.parametrize("learner", [A2C, PPO])
def test_the_size_of_rewards_does_not_matter(learner: type[MemoryOnPolicyAlgorithm]) -> None:
    """Rewards a thousand times as large: the same policy after training, and values a thousand times as large."""
    policies, values = [], []
    for scale in (1.0, 1000.0):
        env = Scaled(N, length=1, max_steps=5)
        env.scale = scale
        model = build(learner, env, learning_rate=1e-3)
        set_critic(model, [0.0] * 16, 0.0)  # the first values, of which there are no statistics yet
        model.learn(5 * T * N)
        rollout = collect(model)
        policies.append(rollout.log_probs)
        values.append(rollout.values / scale)
        assert rollout.rewards.abs().max() >= scale / 10
        assert rollout.values.abs().max() > scale / 100, "values are reported as raw as rewards"
    torch.testing.assert_close(policies[0], policies[1], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(values[0], values[1], rtol=1e-2, atol=1e-3)


def test_values_are_raw_at_every_door() -> None:
    model = build(PPO, Scaled(N, length=1, max_steps=5))
    model.learn(2 * T * N)
    rollout = collect(model)
    policy, obs, state = model.policy, model.rollout_state.obs, model.rollout_state.memory
    with torch.no_grad():
        step = policy.remember(obs, state)
        expected = policy.value_norm.mean + policy.value_norm.std * policy.value_net(step.output)[:, 0]
        torch.testing.assert_close(policy.predict_values(obs, state), expected)
        torch.testing.assert_close(policy.decide(step.output).value, expected)
        torch.testing.assert_close(policy.forward(obs, state)[1], expected)
        judgement, _ = model.evaluate_actions(rollout)
    torch.testing.assert_close(judgement.value, rollout.values, rtol=1e-4, atol=1e-5)
    errors = (judgement.value - rollout.returns) / policy.value_norm.std
    _, parts = model.loss(rollout, 0.2, None)
    torch.testing.assert_close(parts["train/value_loss"], errors.square().mean())


@pytest.mark.parametrize("learner", REPLAYING)
def test_the_first_rollout_has_one_scale(learner: type[MemoryOnPolicyAlgorithm]) -> None:
    """Its values were computed before the first statistics, and are compared with values computed with them."""
    env = Scaled(N, length=1, max_steps=5)
    env.scale = 100.0
    model = build(learner, env, learning_rate=0.0)
    rollout = collect(model)
    assert rollout.truncated.any()
    model.learn_from(rollout)
    with torch.no_grad():
        judgement, _ = model.evaluate_actions(rollout)
        current = model.rollout_state
        last = model.policy.predict_values(current.obs, current.memory, current.resets)
    torch.testing.assert_close(judgement.value, rollout.values, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(last, rollout.last_values, rtol=1e-4, atol=1e-3)
    before = rollout.values.clone()
    model.convert_first_values(rollout)
    assert torch.equal(rollout.values, before), "converted once"
    norm = model.policy.value_norm
    finals = (rollout.final_values[rollout.truncated] - norm.mean) / norm.std
    assert finals.abs().max() < 3, "as the head's other outputs at the start"
    if learner is PPO:
        losses = [model.loss(rollout, 0.2, clip)[1]["train/value_loss"] for clip in (None, 0.2)]
        torch.testing.assert_close(losses[0], losses[1])


def test_without_normalisation_the_policy_is_what_it_was() -> None:
    model = build(PPO, TMaze(N, length=1, max_steps=5), normalize_values=False)
    assert not any("norm" in name for name in model.policy.state_dict())
    assert build(Supervised, RepeatFirst(N, length=T)).policy.value_norm is None


def test_the_ratio_is_one_with_normalised_observations() -> None:
    """Acting and replay see the same statistics, and these have moved since the rollout before."""
    model = build(PPO, Sensors(N, length=1, max_steps=5), normalize_obs=True)
    model.learn(2 * T * N)
    mean = model.policy.obs_norm.moments(0)[0].clone()
    assert (mean > 4000).all()
    rollout = collect(model)
    judgement, _ = model.evaluate_actions(rollout)
    assert (judgement.log_prob - rollout.log_probs).abs().max() <= 1e-6
    _, parts = model.loss(rollout.environments(torch.arange(2)), 0.2, None)
    assert parts["train/approx_kl"].abs() <= 1e-6
    assert parts["train/clip_fraction"] == 0
    model.learn_and_update_obs_norm(rollout)
    assert not torch.equal(model.policy.obs_norm.moments(0)[0], mean)


def test_statistics_are_those_of_what_was_seen() -> None:
    model = build(A2C, Sensors(N, length=1, max_steps=5), normalize_obs=True)
    seen = []
    for _ in range(3):
        rollout = collect(model)
        seen.append(rollout.obs["far"].flatten(0, 1).clone())
        model.learn_and_update_obs_norm(rollout)
    mean, variance = model.policy.obs_norm.moments(0)
    torch.testing.assert_close(mean, torch.cat(seen).mean(0), rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(variance, torch.cat(seen).var(0, correction=0), rtol=1e-3, atol=1.0)
    assert float(model.policy.obs_norm.count) == 3 * T * N


def test_evaluation_leaves_the_statistics_alone_and_uses_them() -> None:
    model = build(PPO, Sensors(N, length=1, max_steps=5), normalize_obs=True)
    model.learn(2 * T * N)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    evaluate(model, Sensors(N, length=1, max_steps=5), 8, deterministic=True, seed=1)
    assert_same(dict(model.policy.state_dict()), before)
    obs = {name: value.numpy() for name, value in Sensors(N, length=1, max_steps=5).reset(seed=0)[0].items()}
    with torch.no_grad():
        tensors = {name: torch.as_tensor(value) for name, value in obs.items()}
        step = model.policy.remember(tensors, model.policy.initial_state(N))
        (x,) = model.policy.encode(tensors)
    assert x[:, 0].abs().max() < 20, "in thousands before"
    np.testing.assert_array_equal(
        model.predict(obs, deterministic=True)[0], model.policy.act(step.output, True).numpy()
    )


@pytest.mark.parametrize("learner", [A2C, PPO])
def test_a_resumed_run_goes_on_bit_for_bit(learner: type[MemoryOnPolicyAlgorithm], tmp_path: Path) -> None:
    def made() -> Any:
        return build(learner, Sensors(N, length=1, max_steps=5), normalize_obs=True)

    n = 3 * T * N
    whole = made().learn(2 * n)
    half = made().learn(n)
    half.save(tmp_path / "half")
    resumed = load(tmp_path / "half", Sensors(N, length=1, max_steps=5), device="cpu")
    resumed.learn(n, reset_num_timesteps=False)
    assert {name for name in whole.policy.state_dict() if "norm" in name} >= {"value_norm.mean", "obs_norm.mean0"}
    assert_same(fingerprint(resumed), fingerprint(whole))


def test_a_checkpoint_from_before_has_no_normalisation(tmp_path: Path) -> None:
    model = build(PPO, TMaze(N, length=1, max_steps=5), normalize_values=False).learn(T * N)
    model.save(tmp_path / "old")
    file = tmp_path / "old" / MANIFEST
    manifest = json.loads(file.read_text())
    for name in ("normalize_values", "normalize_obs"):
        del manifest["config"][name]
    manifest["digest"] = digest(manifest)
    file.write_text(json.dumps(manifest))
    loaded = load(tmp_path / "old", device="cpu")
    assert loaded.policy.value_norm is None
    assert_same(dict(loaded.policy.state_dict()), dict(model.policy.state_dict()))


@pytest.mark.parametrize("here", [False, True])
@pytest.mark.parametrize("there", [False, True])
def test_weights_go_between_runs_with_and_without_normalised_values(here: bool, there: bool, tmp_path: Path) -> None:
    """`--init-from` of a supervised lesson, or of an older run: values stay what they were."""
    env = Scaled(N, length=1, max_steps=5)
    env.scale = 100.0
    source = build(PPO, env, normalize_values=there).learn(3 * T * N)
    source.save(tmp_path / "lesson")
    target = build(PPO, Scaled(N, length=1, max_steps=5), normalize_values=here)
    load_weights(target.policy, tmp_path / "lesson")
    latent = torch.randn(5, 16)
    with torch.no_grad():
        torch.testing.assert_close(target.policy.value(latent), source.policy.value(latent), rtol=1e-4, atol=1e-3)
        assert torch.equal(target.policy.act(latent, True), source.policy.act(latent, True))


@pytest.mark.parametrize(("normalized", "advice"), [(False, "leave normalize_values on"), (True, "lower vf_coef")])
def test_the_watch_warns_once_of_a_drowned_policy(normalized: bool, advice: str) -> None:
    """It advises nothing that is done already."""
    watch = CriticWatch()
    drowned = {"train/explained_variance": -0.1, "train/grad_norm": 12.0}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3 * PATIENCE):
            watch.update(drowned, max_grad_norm=0.5, normalized=normalized)
    (warning,) = caught
    assert re.search(rf"explains nothing.*{advice}.*docs/ppo\.md", str(warning.message))


@pytest.mark.parametrize(
    ("explained", "norm", "limit"), [(0.2, 12.0, 0.5), (-0.1, 1.0, 0.5), (None, 12.0, 0.5), (-0.1, 2.0, 0.1)]
)
def test_the_watch_keeps_quiet(explained: float | None, norm: float, limit: float) -> None:
    """Gradients of 2 clipped to 0.1 are usual: A2C's defaults clip nearly all."""
    watch = CriticWatch()
    metrics = {"train/grad_norm": norm} | ({} if explained is None else {"train/explained_variance": explained})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3 * PATIENCE):
            watch.update(metrics, max_grad_norm=limit)


def test_the_watch_waits_longer_where_rollouts_are_short() -> None:
    """Of 64 steps the explained variance is mostly noise: 20 such iterations say nothing."""
    watch = CriticWatch()
    drowned = {"train/explained_variance": -0.1, "train/grad_norm": 12.0}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(STEPS // 64):
            watch.update(drowned, max_grad_norm=0.5, steps=64)
        assert not caught
        watch.update(drowned, max_grad_norm=0.5, steps=64)
    assert len(caught) == 1


@pytest.mark.parametrize("learner", [A2C, PPO])
def test_a_learner_says_that_its_critic_drowns_its_policy(
    learner: type[MemoryOnPolicyAlgorithm], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Returns of a thousand and no normalisation: a warning; the same with it: none."""
    monkeypatch.setattr("agents.metrics.critic.STEPS", PATIENCE * T * N)

    def said(normalize_values: bool) -> list[str]:
        env = Scaled(N, length=1, max_steps=5)
        env.scale = 1000.0
        model = build(learner, env, normalize_values=normalize_values)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.learn((PATIENCE + 5) * T * N)
        return [str(warning.message) for warning in caught if "explains nothing" in str(warning.message)]

    assert len(said(normalize_values=False)) == 1
    assert said(normalize_values=True) == []


@pytest.mark.parametrize("algo", ["ppo", "a2c"])
def test_observations_of_other_peoples_environments_are_normalised_by_default(algo: str) -> None:
    """Those of this project are of the order of 1, and recipes say for themselves."""
    assert base_config(None, "CartPole-v1", algo, "gru").learner.normalize_obs
    assert not base_config(None, "Engram/TMaze-v0", algo, "gru").learner.normalize_obs
    assert not base_config("maze-ppo", "CartPole-v1", algo, "gru").learner.normalize_obs
    assert not base_config(None, None, algo, "gru").learner.normalize_obs


def cart(normalize_values: bool) -> float:
    """Mean return of CartPole's episodes after 15,000 steps."""
    kwargs: dict[str, Any] = {"memory": "gru", "memory_kwargs": {"hidden_size": 64}}
    model = PPO(
        "MemoryPolicy",
        make_env("CartPole-v1", 8),
        learning_rate=1e-3,
        n_minibatches=2,
        ent_coef=0.01,
        normalize_values=normalize_values,
        policy_kwargs=kwargs,
        seed=0,
        device="cpu",
    ).learn(15_000, log_interval=None)
    return float(np.mean([episode["r"] for episode in model.ep_info_buffer]))


def test_a_task_with_large_returns_is_learned_by_normalised_values_only() -> None:
    """Random actions balance the pole for 22 steps. The critic's error of 20 and more fills the clipped gradient."""
    assert cart(normalize_values=False) < 50
    assert cart(normalize_values=True) > 80
