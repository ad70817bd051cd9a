"""Frozen and exchanged memories: what is read is what the name says, and an agent that needs its memory loses by it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from agents import PPO
from agents.evaluation import evaluate
from agents.evaluation.controls import controlled, memory_entries
from envs.repeat_first import RepeatFirst


def agent(memory: str, **options: object) -> PPO:
    kwargs = {"memory": memory, "memory_kwargs": options}
    return PPO("MemoryPolicy", RepeatFirst(4, length=4), n_steps=4, seed=0, device="cpu", policy_kwargs=kwargs)


def observations(model: PPO, steps: int) -> Tensor:
    shape = model.observation_space.shape
    assert shape is not None
    return torch.rand(steps, 4, *shape)


def test_the_entries_are_those_that_were_written() -> None:
    for memory, options, expected in (
        ("kanerva++", {"memory_size": 8}, ["memory"]),
        ("gru", {"hidden_size": 4}, ["hidden"]),
        ("homo-plastic", {"hidden_size": 4}, ["hebb"]),
        ("salu", {"hidden_size": 4, "capacity": 4}, ["count", "keys", "values"]),
    ):
        assert memory_entries(agent(memory, **options).policy.initial_state(1)) == expected


def test_an_exchanged_memory_is_the_neighbours_own() -> None:
    """Two steps of each environment by itself, then a step that reads what its neighbour wrote."""
    model = agent("kanerva++", memory_size=8)
    policy, obs = model.policy, observations(model, 3)
    policy.set_training_mode(False)
    with torch.no_grad(), controlled(policy, "exchanged"):
        state = policy.initial_state(4)
        for x in obs:
            before, step = state, policy.remember(x, state)
            state = step.state
    own = policy.remember(obs[2], before)
    swapped = policy.remember(obs[2], {**before, "memory": before["memory"].roll(1, 0)})
    torch.testing.assert_close(step.output, swapped.output)
    torch.testing.assert_close(step.state["memory"], own.state["memory"])
    torch.testing.assert_close(step.state["hidden"], swapped.state["hidden"])
    assert not torch.isclose(step.output, own.output).all()


def test_a_frozen_memory_stays_as_it_began() -> None:
    model = agent("kanerva++", memory_size=8)
    policy = model.policy
    with torch.no_grad(), controlled(policy, "frozen"):
        state = policy.initial_state(4)
        for x in observations(model, 3):
            state = policy.remember(x, state).state
            assert not state["memory"].any()
            assert state["hidden"].any()
    assert "remember" not in vars(policy)


def test_a_memory_frozen_later_keeps_what_it_had_then() -> None:
    model = agent("gru", hidden_size=4)
    policy, obs = model.policy, observations(model, 4)
    starts = torch.tensor([False, True, False, False])
    with torch.no_grad(), controlled(policy, "frozen", steps=2):
        state, kept = policy.initial_state(4), []
        for t, x in enumerate(obs):
            state = policy.remember(x, state, starts if t == 1 else None).state
            kept.append(state["hidden"])
    torch.testing.assert_close(kept[1][0], kept[3][0], rtol=0, atol=0)  # from its third step on
    assert not torch.equal(kept[0][0], kept[1][0])
    assert not torch.equal(kept[1][1], kept[2][1])  # its episode began a step later
    torch.testing.assert_close(kept[2][1], kept[3][1], rtol=0, atol=0)


def test_a_memory_reset_at_every_step_sees_the_present_alone() -> None:
    model = agent("gru", hidden_size=4)
    policy, obs = model.policy, observations(model, 4)
    first = [policy.remember(x, policy.initial_state(4)).output for x in obs]
    for every in (1, 2):
        with torch.no_grad(), controlled(policy, "reset", steps=every):
            state = policy.initial_state(4)
            for t, x in enumerate(obs):
                step = policy.remember(x, state)
                state = step.state
                assert torch.allclose(step.output, first[t]) == (t % every == 0)


def test_what_needs_its_memory_loses_by_it() -> None:
    model = PPO("MemoryPolicy", RepeatFirst(32, length=4), n_steps=8, learning_rate=1e-2, gamma=0.5, n_epochs=4, seed=0,
                device="cpu", policy_kwargs={"memory": "gru", "memory_kwargs": {"hidden_size": 32}})  # fmt: skip
    model.learn(32 * 8 * 40)
    env = RepeatFirst(256, length=4)
    own = evaluate(model, env, 256, seed=1).mean
    scores = []
    for control in ("frozen", "exchanged"):
        with controlled(model.policy, control):
            scores.append(evaluate(model, env, 256, seed=1).mean)
    assert own > 0.9
    assert max(scores) < own - 0.4


def test_wrong_controls_are_refused() -> None:
    policy = agent("gru", hidden_size=4).policy
    with (
        pytest.raises(ValueError, match="control is 'swapped'; it must be one of frozen, exchanged, reset"),
        controlled(
            policy,
            "swapped",  # type: ignore[arg-type]
        ),
    ):
        pass
    with (
        pytest.raises(ValueError, match="gru has no state memory; it has hidden"),
        controlled(policy, "frozen", ["memory"]),
    ):
        pass
    with pytest.raises(ValueError, match="identity has no state"), controlled(agent("identity").policy, "frozen"):
        pass
    for control, steps in (("frozen", -1), ("reset", 0), ("exchanged", 1)):
        with (
            pytest.raises(ValueError, match=f"steps is {steps} for the control '{control}'"),
            controlled(agent("gru", hidden_size=4).policy, control, steps=steps),  # type: ignore[arg-type]
        ):
            pass
