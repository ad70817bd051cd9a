"""`FastForm`: chosen by the base class alone, off for everybody where it is off, for memories of other packages too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agents import A2C, PPO, MemoryOnPolicyAlgorithm
from policies.memories import FastForm, Memory, MemoryStep, State, Unrolled, registry
from policies.testing import MEMORY_CHECKS, MemoryCase

CALLS: list[str] = []


class MemN2NForm(FastForm):
    """All traces by one cumulative sum, where no episode starts; counts its calls."""

    def fits(self, length: int, resets: Sequence[int] | None, grad: bool) -> bool:
        return resets is not None and len(resets) == 0

    def step(self, x: Tensor, state: State) -> MemoryStep:
        CALLS.append("step")
        return super().step(x, state)

    def unroll(self, xs: Tensor, starts: Tensor | None, state: State, resets: Sequence[int] | None) -> Unrolled:
        assert starts is None
        CALLS.append("unroll")
        trace = state["trace"] + self.memory.write(xs).cumsum(0)  # type: ignore[operator]
        return Unrolled(trace.tanh(), {"trace": trace[-1]}, {})


class Sums(Memory):
    """Sums of what was seen: a memory as another package has it."""

    fast_form = MemN2NForm

    def __init__(self, input_size: int, hidden_size: int = 8) -> None:
        super().__init__()
        self.output_size = hidden_size
        self.write = nn.Linear(input_size, hidden_size)

    def initial_state(self, batch_size: int) -> State:
        return {"trace": torch.zeros(batch_size, self.output_size, device=self.device, dtype=self.dtype)}

    def forward(self, x: Tensor, state: State) -> MemoryStep:
        trace = state["trace"] + self.write(x)
        return MemoryStep(trace.tanh(), {"trace": trace}, {})


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.memories.classes, "sums", Sums)
    CALLS.clear()


def learned(cls: type[MemoryOnPolicyAlgorithm], fast: str) -> Tensor:
    make: Any = cls
    kwargs: dict[str, Any] = {"n_epochs": 1} if cls is PPO else {"use_rms_prop": False}
    policy = {"memory": "sums", "memory_kwargs": {"hidden_size": 8}}
    # an episode is as long as a rollout, so that the only step at which one may start is the first
    model = make("MemoryPolicy", "Engram/RepeatFirst-v0", n_steps=16, policy_kwargs=policy, seed=0, fast=fast, **kwargs)
    model.learn(16)
    return torch.cat([parameter.detach().flatten() for parameter in model.policy.parameters()])


@pytest.mark.parametrize("cls", [PPO, A2C])
def test_off_is_off_for_a_memory_of_another_package_and_learns_the_same(cls: type[MemoryOnPolicyAlgorithm]) -> None:
    off = learned(cls, "off")
    assert CALLS == []
    auto = learned(cls, "auto")
    assert CALLS.count("step") >= 16
    torch.testing.assert_close(auto, off, atol=1e-5, rtol=1e-4)


def test_a_memory_is_recorded_by_its_own_unroll_without_a_word() -> None:
    memory, xs = Sums(3).double(), torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    recording = memory.record(memory.initial_state(2), 5)
    stepped = torch.stack([recording.step(x, None).output for x in xs])
    assert not stepped.requires_grad
    assert "unroll" not in CALLS
    result = recording.unrolled()
    assert CALLS.count("unroll") == 1
    torch.testing.assert_close(result.outputs, stepped)
    assert torch.autograd.grad(result.outputs.sum(), xs)[0].abs().sum() > 0


def test_what_does_not_fit_is_stepped() -> None:
    memory, xs = Sums(3), torch.randn(5, 2, 3)
    starts = torch.zeros(5, 2, dtype=torch.bool)
    for resets, ways in ((None, {"step"}), ([1], {"step"}), ([], {"unroll"})):
        CALLS.clear()
        memory.unroll(xs, starts, memory.initial_state(2), resets)
        assert set(CALLS) == ways
    memory.fast = False
    CALLS.clear()
    memory.unroll(xs, None, memory.initial_state(2))
    memory.step(xs[0], memory.initial_state(2))
    assert CALLS == []


@pytest.mark.parametrize("check", [name for name in MEMORY_CHECKS if "learns" not in name])
def test_it_passes_conformance(check: str) -> None:
    MEMORY_CHECKS[check](MemoryCase(Sums, {"hidden_size": 6}))
