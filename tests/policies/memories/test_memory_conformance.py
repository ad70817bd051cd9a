"""What every memory must do, over every one of this project: the checks are those of `policies.testing`.

A new memory needs one row in `tests/cases.py`; without it the suite fails.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import MEMORIES, every_memory
from torch import Tensor, nn
from torch.nn import functional as F

from policies.memories.contract import Memory, MemoryStep, Panel, State, Unrolled
from policies.memories.time.unroll import unroll
from policies.testing import MEMORY_CHECKS, ConformanceError, MemoryCase
from policies.testing.case import BATCH, LENGTH, everything, expect_same


@pytest.mark.parametrize("check", MEMORY_CHECKS)
@every_memory
def test_it_conforms(name: str, check: str) -> None:
    skipped = MEMORY_CHECKS[check](MEMORIES[name])
    assert skipped is None or not MEMORIES[name].build().initial_state(1), skipped  # who remembers shows what


@pytest.mark.gpu
@every_memory
def test_on_an_accelerator_it_is_the_same_and_never_waits(name: str) -> None:
    case = MEMORIES[name]
    memory = case.build()
    xs, starts = case.inputs(LENGTH, BATCH), torch.zeros(LENGTH, BATCH, dtype=torch.bool)
    starts[[0, 4], 1] = True
    with torch.no_grad():
        expected = everything(memory.unroll(xs, starts, memory.initial_state(BATCH)))
    memory, xs, starts = memory.cuda(), xs.cuda(), starts.cuda()
    memory(xs[0], memory.initial_state(BATCH))  # what libraries do on first use does not count
    torch.cuda.set_sync_debug_mode("error")
    try:
        stepped = unroll(memory, xs, starts, memory.initial_state(BATCH), [0, 4])
        result = memory.unroll(xs, starts, memory.initial_state(BATCH), [0, 4])
        if list(memory.parameters()):
            result.outputs.square().sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for way in (stepped, result):
        found = {key: value.cpu() for key, value in everything(way).items()}
        expect_same(found, expected, "on the accelerator")


# The checks can fail


class Average(Memory):
    """A sound memory of somebody else's: a running average, without panels."""

    def __init__(self, input_size: int, hidden_size: int = 4) -> None:
        super().__init__()
        self.mix, self.output_size = nn.Linear(input_size, hidden_size), hidden_size

    def initial_state(self, batch_size: int) -> State:
        return {"average": torch.zeros(batch_size, self.output_size, device=self.device, dtype=self.dtype)}

    def forward(self, x: Tensor, state: State) -> MemoryStep:
        average = 0.9 * state["average"] + self.mix(x)
        return MemoryStep(average.tanh(), {"average": average}, {})


class WrongWidth(Average):
    def forward(self, x: Tensor, state: State) -> MemoryStep:
        step = super().forward(x, state)
        return step._replace(output=step.output[:, 1:])


class StateGrows(Average):
    def forward(self, x: Tensor, state: State) -> MemoryStep:
        step = super().forward(x, state)
        return step._replace(state={**step.state, "more": x})


class SomeStart(Average):
    def initial_state(self, batch_size: int) -> State:
        return {"average": super().initial_state(batch_size)["average"] + torch.arange(batch_size)[:, None]}


class InPlace(Average):
    def forward(self, x: Tensor, state: State) -> MemoryStep:
        state["average"].data.mul_(0.9)
        return super().forward(x, state)


class Mixes(Average):
    def forward(self, x: Tensor, state: State) -> MemoryStep:
        return super().forward(x + x.mean(0), state)


class Reads(Average):
    def forward(self, x: Tensor, state: State) -> MemoryStep:
        return super().forward(x if x.sum() > 0 else 2 * x, state)


class Indexes(Average):
    """Reads nothing on a GPU: `one_hot` looks at the values on a CPU only."""

    def forward(self, x: Tensor, state: State) -> MemoryStep:
        first = F.one_hot(torch.zeros(len(x), dtype=torch.int64, device=x.device), num_classes=x.shape[-1])
        return super().forward(x + first, state)


class ShowsTheBatch(Average):
    def panels(self, state: State) -> dict[str, Panel]:
        return {"average": Panel(state["average"].detach(), "unit", "environment")}


class Unused(Average):
    def __init__(self, input_size: int, hidden_size: int = 4) -> None:
        super().__init__(input_size, hidden_size)
        self.unused = nn.Linear(2, 2)


class NotSaved(Average):
    def __init__(self, input_size: int, hidden_size: int = 4) -> None:
        super().__init__(input_size, hidden_size)
        self.scale = float(torch.rand(()))

    def forward(self, x: Tensor, state: State) -> MemoryStep:
        return super().forward(self.scale * x, state)


class LateReset(Average):
    """Resets after the step that begins an episode: the bug of many libraries."""

    def unroll(self, xs: Tensor, starts: Tensor | None, state: State, resets: Any = None) -> Unrolled:
        late = None if starts is None else torch.cat([torch.zeros_like(starts[:1]), starts[:-1]])
        return unroll(self, xs, late, state)


class CutsGradients(Average):
    def unroll(self, xs: Tensor, starts: Tensor | None, state: State, resets: Any = None) -> Unrolled:
        result = unroll(self, xs, starts, state, resets)
        return result._replace(state={key: value.detach() for key, value in result.state.items()})


def test_one_hot_of_a_known_number_of_classes_is_no_read() -> None:
    MEMORY_CHECKS["a_step_does_not_synchronise"](MemoryCase(Indexes))


BROKEN: list[tuple[type[Memory], str, str]] = [
    (WrongWidth, "a_step_keeps_names_shapes_and_types", r"the output is \(3, 3\), expected \(3, 4\)"),
    (StateGrows, "a_step_keeps_names_shapes_and_types", "names, shapes and types must stay"),
    (SomeStart, "the_initial_state_is_the_same_for_every_entry_and_batch_size", "average differs between entries"),
    (InPlace, "arguments_are_not_modified", "state average was changed in place"),
    (Mixes, "batch_entries_are_independent", "other entries than the one whose input changed"),
    (Reads, "a_step_does_not_synchronise", r"on the host .*test_memory_conformance.py:\d+: .*x.sum\(\) > 0"),
    (ShowsTheBatch, "panels_show_the_first_entry_and_change_with_it", "shows other entries than the first"),
    (Unused, "gradients_reach_every_parameter", "unused.weight has no gradient"),
    (NotSaved, "a_loaded_memory_is_the_same", "is not in state_dict"),
    (LateReset, "unroll_equals_steps_with_resets_at_unknown_steps", "method unroll and a loop over steps"),
    (LateReset, "packed_episodes_are_separate_episodes", "whose episodes start at .* differs from its result alone"),
    (CutsGradients, "unroll_equals_steps_with_resets_where_none_starts", "gradients of the method unroll"),
    (Average, "it_learns_to_recall_the_first_symbol", "recalls the first of 8 symbols with accuracy .* expected 1.1"),
]


@pytest.mark.parametrize(("memory", "check", "message"), BROKEN)
def test_what_breaks_the_contract_is_found(memory: type[Memory], check: str, message: str) -> None:
    with pytest.raises(ConformanceError, match=message):
        MEMORY_CHECKS[check](MemoryCase(memory, floor=1.1, updates=1))
