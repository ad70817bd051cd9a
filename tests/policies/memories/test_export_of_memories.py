"""A step of every memory can be exported for any number of observations, and gives the policy's numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cases import MEMORIES
from gymnasium import spaces

from policies.export import PolicyStep, export_step
from policies.policy import MemoryActorCriticPolicy


@pytest.mark.parametrize("name", MEMORIES)
def test_a_step_is_exported_for_any_number_of_observations(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    space = spaces.Box(-1.0, 1.0, MEMORIES[name].input_shape)
    options = MEMORIES[name].options
    policy = MemoryActorCriticPolicy(space, spaces.Discrete(3), lambda _: 1e-3, memory=name, memory_kwargs=options)
    policy.set_training_mode(False)
    step = export_step(policy, tmp_path / "step.pt2", batch_size=None).module()
    for batch in (1, 9):  # fewer and more than in the example
        state = {key: value.contiguous() for key, value in policy.initial_state(batch).items()}
        starts = torch.ones(batch, dtype=torch.bool)
        for _ in range(2):
            obs = torch.rand(batch, *space.shape)
            with torch.no_grad():
                torch.manual_seed(1)  # some draw
                expected = PolicyStep(policy)(obs, state, starts)
                torch.manual_seed(1)
                found = step(obs, state, starts)
            torch.testing.assert_close(found, expected)
            state, starts = expected["state"], torch.arange(batch) % 2 == 1
