"""Warnings about a policy that stays random, stops exploring, or moves too far: once each, and only after a while."""

from __future__ import annotations

import re
import warnings

import pytest
from gymnasium import spaces

from agents import PPO
from agents.metrics.health import PATIENCE, PolicyWatch, maximum_entropy
from envs.repeat_first import RepeatFirst

FOUR = spaces.Discrete(4)


def said(watch: PolicyWatch, metrics: dict[str, float], times: int) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(times):
            watch.update(metrics)
    return [str(each.message) for each in caught]


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({"train/entropy": 1.3862}, r"as random as at the start .*100\.0 % .*ent_coef; see docs/not-learning\.md"),
        ({"train/entropy": 0.0005}, r"no longer explores .*raise ent_coef"),
        ({"train/approx_kl": 0.5}, r"updates are too large \(train/approx_kl 0\.5 .*lower learning_rate"),
    ],
)
def test_it_warns_once(metrics: dict[str, float], words: str) -> None:
    watch = PolicyWatch(FOUR)
    assert said(watch, metrics, PATIENCE - 1) == []
    (text,) = said(watch, metrics, 3 * PATIENCE)
    assert re.search(words, text)


@pytest.mark.parametrize("metrics", [{"train/entropy": 1.0, "train/approx_kl": 0.02}, {"train/loss": 3.0}])
def test_it_keeps_quiet(metrics: dict[str, float]) -> None:
    assert said(PolicyWatch(FOUR), metrics, 3 * PATIENCE) == []
    assert said(PolicyWatch(spaces.Box(-1, 1, (2,))), {"train/entropy": -30.0}, 3 * PATIENCE) == []


def test_one_good_iteration_counts() -> None:
    watch = PolicyWatch(FOUR)
    for _ in range(4):
        assert said(watch, {"train/entropy": 1.3862}, PATIENCE - 1) == []
        assert said(watch, {"train/entropy": 1.2}, 1) == []


def test_the_maximum_entropy_is_that_of_uniform_actions() -> None:
    assert maximum_entropy(FOUR) == pytest.approx(1.38629, abs=1e-4)
    assert maximum_entropy(spaces.MultiDiscrete([2, 8])) == pytest.approx(2.77259, abs=1e-4)
    assert maximum_entropy(spaces.MultiBinary(3)) == pytest.approx(2.07944, abs=1e-4)
    assert maximum_entropy(spaces.Box(-1, 1, (2,))) is None


def test_a_learner_is_watched() -> None:
    """Without a learning rate nothing is learned: the policy stays as random as it was."""
    kwargs = {"memory": "gru", "memory_kwargs": {"hidden_size": 4}}
    model = PPO("MemoryPolicy", RepeatFirst(4, length=4), learning_rate=0.0, n_steps=4, n_epochs=1, n_minibatches=1,
                seed=0, device="cpu", policy_kwargs=kwargs)  # fmt: skip
    with pytest.warns(UserWarning, match="as random as at the start"):
        model.learn(4 * 4 * PATIENCE)
