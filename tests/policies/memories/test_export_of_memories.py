"""A step of these memories can be exported; that the numbers are the policy's is in tests/policies/test_export.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cases import MEMORIES
from gymnasium import spaces

from policies.export import PolicyStep, export_step
from policies.policy import MemoryActorCriticPolicy

SLOW = {"kanerva++", "dkm", "sdnc"}  # seconds each: exported by hand when they change
ELSEWHERE = {"identity", "gru", "lstm", "mnm-p", "dnc"}


@pytest.mark.parametrize("name", sorted(set(MEMORIES) - SLOW - ELSEWHERE))
def test_a_step_is_exported(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    space = spaces.Box(-1.0, 1.0, MEMORIES[name].input_shape)
    options = MEMORIES[name].options
    policy = MemoryActorCriticPolicy(space, spaces.Discrete(3), lambda _: 1e-3, memory=name, memory_kwargs=options)
    program = export_step(policy, tmp_path / "step.pt2")
    obs, state, starts = torch.rand(1, *space.shape), policy.initial_state(1), torch.tensor([False])
    for _ in range(2):
        with torch.no_grad():
            torch.manual_seed(1)  # some draw
            expected = PolicyStep(policy)(obs, state, starts)
            torch.manual_seed(1)
            found = program.module()(obs, state, starts)
        torch.testing.assert_close(found, expected)
        state = expected["state"]
