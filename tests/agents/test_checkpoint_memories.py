"""Bit for bit with every memory, learner and optimiser: N + N = 2N, and what is loaded is what was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from cases import ENVIRONMENTS, MEMORIES, small
from test_checkpoint import assert_same, fingerprint, scramble

import envs  # noqa: F401 (registers the environments)
from agents import A2C, PPO, MemoryOnPolicyAlgorithm, Supervised
from agents.checkpoint import read_manifest, read_tensors
from agents.checkpoint.environment import describe, difference
from agents.checkpoint.generators import set_generators
from envs.repeat_first import RepeatFirst
from envs.tensor_env import TensorEnv

COPIES, STEPS = 4, 6
N = COPIES * STEPS
LEARNERS: dict[str, tuple[type[MemoryOnPolicyAlgorithm], dict[str, Any]]] = {
    "ppo, fused Adam": (PPO, {"n_epochs": 2, "n_minibatches": 2}),
    "a2c, RMSprop": (A2C, {}),
    "supervised, plain Adam": (Supervised, {"fast": "off"}),
}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "AdamW": {"amsgrad": True},
    "SGD": {"momentum": 0.9, "nesterov": True},
    "NAdam": {},
    "RAdam": {},
    "RMSprop": {"centered": True, "momentum": 0.5},
}


def env() -> RepeatFirst:
    return RepeatFirst(COPIES, length=5)


def build(learner: str, memory: str, **policy: Any) -> MemoryOnPolicyAlgorithm:
    kind, arguments = LEARNERS[learner]
    kwargs = {"memory": memory, "memory_kwargs": small(MEMORIES[memory]), **policy}
    return kind("MemoryPolicy", env(), n_steps=STEPS, policy_kwargs=kwargs, seed=2, device="cpu", **arguments)


def check(model: MemoryOnPolicyAlgorithm, path: Path) -> None:
    """Learn N, save, go on; load, go on: the same. And before that, the same answers."""
    model.learn(N).save(path)
    fast = {} if model.fast == "auto" else {"fast": model.fast}
    torch.manual_seed(7)
    answers = [answer(model), answer(type(model).load(path, device="cpu", **fast))]
    assert_same(*answers)
    again = type(model).load(path, env(), device="cpu", **fast)
    restore_generators(path)
    model.learn(N, reset_num_timesteps=False)
    scramble()
    again.learn(N, reset_num_timesteps=False)
    assert_same(fingerprint(again), fingerprint(model))


def restore_generators(path: Path) -> None:
    tensors = read_tensors(path, read_manifest(path))
    set_generators({name[4:]: value for name, value in tensors.items() if name.startswith("rng/")})


def answer(model: MemoryOnPolicyAlgorithm) -> dict[str, torch.Tensor]:
    """Logits, values and state after three observations."""
    policy, found = model.policy, {}
    policy.set_training_mode(False)
    state = policy.initial_state(2)
    for t, obs in enumerate(np.random.default_rng(0).random((3, 2, 5)).astype(np.float32)):
        with torch.no_grad():
            torch.manual_seed(t)
            step = policy.remember(torch.from_numpy(obs), state)
            decision = policy.decide(step.output, False, step.grid)
        state = step.state
        found |= {f"{t} {name}": value for name, value in zip(("action", "value", "log_prob"), decision, strict=True)}
    return found | state


@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize("memory", MEMORIES)
def test_every_memory_with_every_learner(memory: str, learner: str, tmp_path: Path) -> None:
    check(build(learner, memory), tmp_path / "it")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimiser(optimizer: str, tmp_path: Path) -> None:
    kwargs = {"optimizer_class": getattr(torch.optim, optimizer), "optimizer_kwargs": OPTIMIZERS[optimizer]}
    check(build("ppo, fused Adam", "gru", **kwargs), tmp_path / "it")


@pytest.mark.parametrize("seed", range(4))
def test_sizes_at_which_alignment_decided(seed: int, tmp_path: Path) -> None:
    """A GRU of 8 with 8 environments and 16 steps: 12 of 29 differed where tensors lay as in the file."""
    kwargs = {"memory": "gru", "memory_kwargs": {"hidden_size": 8}}

    def build() -> PPO:
        env, arguments = RepeatFirst(8, length=5), {"n_steps": 16, "n_epochs": 2, "seed": seed}
        return PPO("MemoryPolicy", env, policy_kwargs=kwargs, device="cpu", **arguments)

    whole = build().learn(4 * 128)
    build().learn(2 * 128).save(tmp_path / "half")
    again = PPO.load(tmp_path / "half", RepeatFirst(8, length=5), device="cpu")
    loaded = [*again.rollout_state.memory.values(), again.rollout_state.obs, again.rollout_state.starts]
    assert all(isinstance(value, torch.Tensor) and value.data_ptr() % 64 == 0 for value in loaded)
    scramble()
    again.learn(2 * 128, reset_num_timesteps=False)
    assert_same(fingerprint(again), fingerprint(whole))


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_states_stay_within_their_limits(name: str) -> None:
    made = gymnasium.make_vec(f"Engram/{name}-v0", 5, "vector_entry_point", **small(ENVIRONMENTS[name]))
    assert isinstance(made, TensorEnv)
    made.reset(seed=1)
    for _ in range(25):
        state = made.state_dict()
        for entry, (low, high) in made.state_limits().items():
            assert low <= state[entry].min() <= state[entry].max() <= high, entry
        made.step(torch.as_tensor(made.action_space.sample()))


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_every_environment_says_what_it_was_made_of(name: str) -> None:
    """Equal where it is made alike, different where one argument is not the default."""

    def make(**kwargs: Any) -> TensorEnv:
        made = gymnasium.make_vec(f"Engram/{name}-v0", 2, "vector_entry_point", **kwargs)
        assert isinstance(made, TensorEnv)
        return made

    one, same = describe(make(**small(ENVIRONMENTS[name]))), describe(make(**small(ENVIRONMENTS[name])))
    assert difference(json.loads(json.dumps(one)), json.loads(json.dumps(same))) == ""
    for argument, value in small(ENVIRONMENTS[name]).items():
        assert one["arguments"][argument] == (list(value) if isinstance(value, tuple) else value)
        other = {**one, "arguments": {**one["arguments"], argument: "other"}}
        assert f"{argument}='other'" in difference(one, other)
