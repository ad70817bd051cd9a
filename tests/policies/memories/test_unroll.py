"""When does memory reset? A memory that counts its steps shows it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from policies.memories.contract import Memory, MemoryStep, State
from policies.memories.steps import detach, reset, select
from policies.memories.time.unroll import unroll


class StepCounter(Memory):
    """The output is the number of steps since the episode began, this one included."""

    output_size = 1

    def initial_state(self, batch_size: int) -> State:
        return {"steps": torch.zeros(1, 1).expand(batch_size, -1)}

    def forward(self, x: Tensor, state: State) -> MemoryStep:
        steps = state["steps"] + 1
        return MemoryStep(steps, {"steps": steps}, {"age": steps[:, 0]})


STARTS = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]], dtype=torch.bool).t()
COUNTS = torch.tensor([[1, 2, 1, 2, 3], [1, 2, 3, 4, 1], [1, 2, 3, 4, 5]]).t()
XS = torch.zeros(5, 3, 1)


@pytest.mark.parametrize("resets", [None, [0, 2, 4], range(5)], ids=["unknown", "exact", "every step"])
def test_the_state_is_reset_before_the_step_at_which_an_episode_starts(resets: list[int] | None) -> None:
    memory = StepCounter()
    result = unroll(memory, XS, STARTS, memory.initial_state(3), resets)
    assert result.outputs[..., 0].tolist() == COUNTS.tolist()
    assert result.losses["age"].tolist() == COUNTS.tolist()
    assert result.state["steps"][:, 0].tolist() == [3, 1, 5]


def test_the_state_carried_in_counts_on_where_nothing_starts() -> None:
    memory = StepCounter()
    carried = {"steps": torch.tensor([[10.0], [20.0], [30.0]])}
    assert unroll(memory, XS, None, carried).outputs[0, :, 0].tolist() == [11, 21, 31]
    assert unroll(memory, XS, STARTS, carried).outputs[0, :, 0].tolist() == [1, 21, 31]


def test_two_unrolls_are_one_long_unroll() -> None:
    memory = StepCounter()
    first = unroll(memory, XS[:3], STARTS[:3], memory.initial_state(3))
    second = unroll(memory, XS[3:], STARTS[3:], first.state)
    assert torch.cat([first.outputs, second.outputs])[..., 0].tolist() == COUNTS.tolist()


def test_reset_select_and_detach_take_an_empty_state() -> None:
    starts = torch.tensor([True, False])
    assert reset({}, starts, {}) == select({}, starts) == detach({}) == {}


def test_detach_cuts_the_graph_and_keeps_the_values() -> None:
    value = torch.ones(2, 1, requires_grad=True) * 3
    cut = detach({"steps": value})["steps"]
    assert not cut.requires_grad
    assert torch.equal(cut, value)
