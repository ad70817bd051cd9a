"""What is collected, and what is not computed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from test_sb3_habits import small

from agents import A2C, PPO, MemoryOnPolicyAlgorithm
from envs.repeat_first import RepeatFirst
from policies.heads import ChoiceDistribution
from policies.policy import MemoryActorCriticPolicy


@pytest.mark.parametrize(("learner", "log_probs", "entropies"), [(A2C, 1, 1), (PPO, 5, 4)])
def test_a_learner_computes_what_it_uses(
    learner: type[MemoryOnPolicyAlgorithm], log_probs: int, entropies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A2C needs both once, in its loss; PPO log-probabilities to collect, and both in 2 passes of 2 minibatches."""
    counts = Counter[str]()

    def counted(name: str) -> Any:
        ordinary = getattr(ChoiceDistribution, name)

        def call(self: Any, *args: Any) -> Any:
            counts[name] += 1
            return ordinary(self, *args)

        return call

    for name in ("log_prob", "entropy"):
        monkeypatch.setattr(ChoiceDistribution, name, counted(name))
    model = small(learner, RepeatFirst(4, length=4), **({"n_minibatches": 2} if learner is PPO else {}))
    model.learn(4 * 8)
    assert dict(counts) == {"log_prob": log_probs, "entropy": entropies}
    if learner is A2C:
        assert not model.rollout.log_probs.any()


def test_a_run_on_the_cpu_does_without_cuda_graphs() -> None:
    import subprocess
    import sys

    program = """
import sys
from agents import A2C, PPO
for learner in (A2C, PPO):
    learner("MemoryPolicy", "Engram/RepeatFirst-v0", n_steps=4, device="cpu", policy_kwargs={"memory": "gru"}).learn(8)
assert not [name for name in sys.modules if "cuda_graphs" in name]
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_values_come_from_the_critic_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A2C judges its actions once, in the loss."""
    calls = []
    evaluate = MemoryActorCriticPolicy.evaluate_latents

    def counted(self: MemoryActorCriticPolicy, *args: Any) -> Any:
        calls.append(torch.is_grad_enabled())
        return evaluate(self, *args)

    monkeypatch.setattr(MemoryActorCriticPolicy, "evaluate_latents", counted)
    small(A2C, RepeatFirst(4, length=4)).learn(4 * 8)
    assert calls == [True]
