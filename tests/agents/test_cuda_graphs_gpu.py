"""Captured iterations on a GPU. Tests that need none: test_cuda_graphs.py, test_cuda_graphs_everywhere.py.

`pytest --pretend-cuda -m gpu` runs these on the device of tests/pretend_cuda; test_pretend_gpu.py does so on every run.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import ENVIRONMENTS, MEMORIES, small
from test_cuda_graphs_everywhere import environment

from agents import A2C, PPO, MemoryOnPolicyAlgorithm, Supervised
from agents.scale.cuda_graphs.capture import CudaCapture
from agents.scale.cuda_graphs.replay import Graphs
from envs.maze import InvisibleGoalMaze

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("error:fast"),
]
COPIES, STEPS = 16, 4


def build(
    learner: type[MemoryOnPolicyAlgorithm], memory: str, fast: str, env: Any = None, **kwargs: Any
) -> MemoryOnPolicyAlgorithm:
    env = InvisibleGoalMaze(COPIES, size=5, episode_length=2 * STEPS, device="cuda") if env is None else env
    policy = {"memory": memory, "memory_kwargs": small(MEMORIES[memory])}
    n_steps = env.horizon if env.horizon and env.horizon != 2 * STEPS else STEPS
    if learner is PPO:
        kwargs = {"n_epochs": 2, "n_minibatches": 2, **kwargs}
    return learner(
        "MemoryPolicy", env, n_steps=n_steps, seed=0, policy_kwargs=policy, fast=fast, device="cuda", **kwargs
    )


def numbers(model: MemoryOnPolicyAlgorithm) -> dict[str, np.ndarray[Any, Any]]:
    tensors = {**dict(model.policy.named_parameters()), **model.rollout_state.memory, "rewards": model.rollout.rewards}
    return {name: value.detach().cpu().numpy() for name, value in tensors.items()}


@pytest.mark.parametrize("memory", sorted(MEMORIES))
@pytest.mark.parametrize("learner", [A2C, PPO])
def test_captured_iterations_are_the_ordinary_ones(learner: type[MemoryOnPolicyAlgorithm], memory: str) -> None:
    """The same random numbers, and the same arithmetic up to the order of atomic additions."""
    found = []
    for fast in ("off", "graph"):
        model = build(learner, memory, fast)
        found.append(numbers(model.learn(6 * COPIES * STEPS)))
    assert isinstance(model.executor, Graphs)
    assert {type(graph.capture) for graph in model.executor.graphs.values()} == {CudaCapture}
    for name, value in found[0].items():
        np.testing.assert_allclose(found[1][name], value, rtol=2e-3, atol=2e-4, err_msg=name)


@pytest.mark.parametrize("env", sorted(ENVIRONMENTS))
def test_every_environment_is_captured(env: str) -> None:
    made = environment(env, "cuda")
    learner = A2C if env in ("InvisibleGoalMaze", "TMaze") else Supervised
    model = build(learner, "gru", "graph", made)
    model.learn(5 * model.n_steps * model.n_envs)
    assert isinstance(model.executor, Graphs)
    assert model.executor.graphs


def test_random_numbers_differ_from_replay_to_replay() -> None:
    model = build(A2C, "gru", "graph")
    seen = []
    for _ in range(8):
        model.learn(COPIES * STEPS, reset_num_timesteps=False)
        seen.append(model.rollout.actions.cpu())
    assert isinstance(model.executor, Graphs)
    assert model.executor.graphs
    assert all(not torch.equal(a, b) for a, b in pairwise(seen))


@pytest.mark.parametrize("learner", [A2C, PPO])
def test_a_replay_waits_for_nothing(learner: type[MemoryOnPolicyAlgorithm]) -> None:
    model = build(learner, "gru", "graph")
    model.learn(6 * COPIES * STEPS)
    graphs = model.executor
    assert isinstance(graphs, Graphs)
    part, function = ("iteration", graphs._whole) if model.collector().graph else ("rollout", graphs._collect)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        graphs._key = graphs._cache_key()
        assert graphs._run(part, function)[1]
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_captured_run_resumes_on_the_gpu_and_loads_on_the_cpu(tmp_path: Path) -> None:
    model = build(A2C, "gru", "graph")
    model.learn(6 * COPIES * STEPS)
    model.save(tmp_path / "saved")
    model.learn(4 * COPIES * STEPS, reset_num_timesteps=False)  # before `load` sets the global generators back
    env = InvisibleGoalMaze(COPIES, size=5, episode_length=2 * STEPS, device="cuda")
    again = A2C.load(tmp_path / "saved", env, device="cuda", fast="graph")
    again.learn(4 * COPIES * STEPS, reset_num_timesteps=False)
    for name, value in numbers(model).items():
        np.testing.assert_allclose(numbers(again)[name], value, rtol=2e-3, atol=2e-4, err_msg=name)
    host = A2C.load(tmp_path / "saved", InvisibleGoalMaze(COPIES, size=5, episode_length=2 * STEPS), device="cpu")
    host.learn(COPIES * STEPS, reset_num_timesteps=False)
