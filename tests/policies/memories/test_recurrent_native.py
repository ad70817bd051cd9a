"""C loops of LSTM and GRU against torch's cells, step by step: values and every gradient, resets anywhere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from policies.memories import make_memory
from policies.memories.recurrent import fast_native as recurrent_native

SIZES = [(1, 1, 1), (7, 3, 6), (9, 13, 5), (33, 4, 17)]


def unrolled(name: str, fast: bool, size: tuple[int, int, int], starts: Tensor | None, layers: int) -> list[Tensor]:
    """Outputs, states and all gradients; deterministic."""
    torch.manual_seed(0)
    steps, batch, width = size
    memory = make_memory(name, input_size=3, hidden_size=width, num_layers=layers, fast=fast).double()
    xs = torch.randn(steps, batch, 3, dtype=torch.float64, requires_grad=True)
    made = {name: torch.randn(batch, layers, width, dtype=torch.float64) for name in memory.initial_state(1)}
    state = {name: value.requires_grad_() for name, value in made.items()}
    result = memory.unroll(xs, starts, state)
    loss = result.outputs.sin().sum() + sum((value**2).sum() for value in result.state.values())
    loss.backward()
    leaves = [xs, *state.values(), *memory.parameters()]
    gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
    assert len(gradients) == len(leaves)
    return [result.outputs.detach(), *(value.detach() for value in result.state.values()), *gradients]


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_loops_are_the_cell(name: str, size: tuple[int, int, int], share: float, layers: int) -> None:
    generator = torch.Generator().manual_seed(1)
    starts = torch.rand(size[:2], generator=generator) < share
    if not recurrent_native.usable(torch.zeros(size[1], size[2], dtype=torch.float64)):
        pytest.skip("no C compiler")
    fast, plain = (unrolled(name, fast, size, starts, layers) for fast in (True, False))
    for mine, theirs in zip(fast, plain, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_without_loops_the_numbers_are_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = torch.rand(9, 2, generator=torch.Generator().manual_seed(2)) < 0.3
    native = unrolled(name, True, (9, 2, 5), starts, 1)
    monkeypatch.setenv("ENGRAM_NATIVE", "0")
    for mine, theirs in zip(native, unrolled(name, True, (9, 2, 5), starts, 1), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_threads_share_the_rows(name: str) -> None:
    starts = torch.rand(9, 5, generator=torch.Generator().manual_seed(2)) < 0.3
    alone = unrolled(name, True, (9, 5, 6), starts, 1)
    torch.set_num_threads(2)
    try:
        together = unrolled(name, True, (9, 5, 6), starts, 1)
    finally:
        torch.set_num_threads(1)
    for mine, theirs in zip(alone, together, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-10, atol=1e-12)


def test_what_no_loop_can_take_is_left_to_torch() -> None:
    assert not recurrent_native.usable(torch.zeros(0, 8))
    assert not recurrent_native.usable(torch.zeros(2, 8, dtype=torch.float16))
