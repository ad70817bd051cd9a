"""What is made of parameters once a rollout: never stale, and with the same gradients as made at every step."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor, nn

from agents import A2C, PPO
from envs.repeat_first import RepeatFirst
from policies.memories import make_memory
from policies.memories.time.scopes import cached, constant_parameters


def test_it_is_made_once_within_and_every_time_without() -> None:
    layer, made = nn.Linear(2, 2), []

    def make() -> Tensor:
        made.append(torch.is_grad_enabled())
        return layer.weight * 2

    with constant_parameters():
        assert cached(layer, "twice", make) is cached(layer, "twice", make)
        with torch.no_grad():
            assert not cached(layer, "twice", make).requires_grad
        with constant_parameters():  # a rollout within, as of an evaluation in a callback
            cached(layer, "twice", make)
        assert cached(layer, "twice", make).requires_grad
    assert made == [True, False, True]
    cached(layer, "twice", make)
    cached(layer, "twice", make)
    assert len(made) == 5


@pytest.mark.parametrize("sample", [False, True])
def test_gradients_of_recorded_steps(sample: bool) -> None:
    """In double precision, where only the order of sums differs."""
    torch.manual_seed(0)
    memory = make_memory("kanerva++", input_size=3, memory_size=8, kl_weight=0.1, sample=sample).double()
    xs, found = torch.randn(6, 4, 3, dtype=torch.float64), []
    for context in (contextlib.nullcontext(), constant_parameters()):
        with context:
            recording = memory.record(memory.initial_state(4), 6)
            for x in xs:
                recording.step(x, None)
            unrolled = recording.unrolled()
        loss = unrolled.outputs.square().sum() + sum(each.sum() for each in unrolled.losses.values())
        gradients = torch.autograd.grad(loss, list(memory.parameters()), allow_unused=True)
        found.append([unrolled.outputs, *(each for each in gradients if each is not None)])
    assert len(found[0]) > 20
    for once, always in zip(*found, strict=True):
        torch.testing.assert_close(once, always, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("learner", [A2C, PPO])
def test_each_rollout_acts_by_the_parameters_it_begins_with(
    learner: type[A2C | PPO], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for always in (False, True):
        if always:
            monkeypatch.setattr("policies.memories.kanerva.blocks.cached", lambda owner, name, make: make())
            monkeypatch.setattr("policies.memories.kanerva.encoder.cached", lambda owner, name, make: make())
        policy = {"memory": "kanerva++", "memory_kwargs": {"memory_size": 8}}
        model = learner("MemoryPolicy", RepeatFirst(4, length=4), 1e-2, n_steps=4, policy_kwargs=policy, seed=0)
        model.learn(3 * 16)  # two rollouts after an update; more updates of Adam enlarge rounding past the bound
        found.append([parameter.detach() for parameter in model.policy.parameters()])
    for once, always_made in zip(*found, strict=True):
        torch.testing.assert_close(once, always_made, rtol=1e-4, atol=1e-5)
