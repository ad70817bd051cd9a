"""A convolutional LSTM's cells by the C loop: equal to torch's operations; and sequences in bfloat16."""

from __future__ import annotations

import pytest
import torch
from multigrid_loops import build, everything, sequence
from torch import Tensor

from policies.memories import make_memory
from policies.memories.multigrid.fast_sequence import Cells

LIKE = {torch.float64: {"rtol": 1e-12, "atol": 1e-13}, torch.float32: {"rtol": 1e-5, "atol": 2e-6}}

native_only = pytest.mark.usefixtures("native")


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENGRAM_NATIVE", raising=False)
    if Cells(torch.zeros(1, 1, 1, 1), torch.float32, None).loops is None:
        pytest.skip("there is no C compiler")


def step(cells: Cells, parts: list[Tensor]) -> list[Tensor]:
    """A step there and back from the gates' sums, c, and d_h (twice) and d_c."""
    of_h, of_x, c, d_h, d_out, d_c = parts
    gates, after, h = cells.forward(of_h, of_x, c)
    return [gates, after, h, *cells.backward(gates, c, after, d_h, d_out, d_c)]


def both(monkeypatch: pytest.MonkeyPatch, parts: list[Tensor], peepholes: Tensor | None) -> list[list[Tensor]]:
    """By the loop, and by torch's operations."""
    results = []
    for chosen in ("1", "0"):
        monkeypatch.setenv("ENGRAM_NATIVE", chosen)
        cells = Cells(parts[2], parts[0].dtype, peepholes)
        assert (cells.loops is None) == (chosen == "0")
        results.append(step(cells, [part.clone() for part in parts]))
    return results


def drawn(channels: int, dtype: torch.dtype, half: bool, scale: float = 2.0) -> list[Tensor]:
    """What a step begins with; the layouts are mixed, as they come."""
    small = torch.bfloat16 if half else dtype
    parts = [scale * torch.randn(3, width * channels, 4, 5, dtype=dtype) for width in (4, 4, 1, 1, 1, 1)]
    types = [small, small, dtype, small, small, dtype]
    parts = [part.to(kind) for part, kind in zip(parts, types, strict=True)]
    return [part.contiguous(memory_format=torch.channels_last) if at % 2 else part for at, part in enumerate(parts)]


@native_only
@pytest.mark.parametrize("peepholes", [False, True])
@pytest.mark.parametrize("dtype", LIKE, ids=str)
@pytest.mark.parametrize("channels", [1, 8, 19])
def test_the_loop_does_what_torchs_operations_do(
    monkeypatch: pytest.MonkeyPatch, channels: int, dtype: torch.dtype, peepholes: bool
) -> None:
    looks = torch.randn(3, channels, 4, 5, dtype=dtype) if peepholes else None
    for ours, theirs in zip(*both(monkeypatch, drawn(channels, dtype, False), looks), strict=True):
        torch.testing.assert_close(ours, theirs, **LIKE[dtype])


@native_only
@pytest.mark.parametrize("scale", [1e-6, 30.0, 1e4])
def test_it_is_exact_near_zero_and_where_gates_are_shut(monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    """A tanh that loses what is small would give candidates of 1e-6 an error of a tenth."""
    for ours, theirs in zip(*both(monkeypatch, drawn(8, torch.float32, False, scale), None), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7 * min(scale, 1.0) if ours.shape[1] == 8 else 1e-3)


@native_only
@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_no_number_stays_none_and_only_in_its_cell(monkeypatch: pytest.MonkeyPatch, half: bool) -> None:
    parts = drawn(4, torch.float32, half)
    parts[0][1, :, 2, 3] = torch.nan
    parts[1][0, :, 0, 0] = -torch.inf
    for ours, theirs in zip(*both(monkeypatch, parts, None), strict=True):
        assert torch.equal(ours.isnan(), theirs.isnan())
        assert ours.isnan().any()
        assert not ours[2].isnan().any()


@native_only
@pytest.mark.parametrize("peepholes", [False, True])
def test_bfloat16_is_rounded_as_torch_rounds(monkeypatch: pytest.MonkeyPatch, peepholes: bool) -> None:
    looks = torch.randn(3, 8, 4, 5) if peepholes else None
    for ours, theirs in zip(*both(monkeypatch, drawn(8, torch.float32, True), looks), strict=True):
        assert ours.dtype == theirs.dtype
        # what is rounded may fall to the other side of a tie
        torch.testing.assert_close(ours, theirs, rtol=2**-7 if ours.dtype == torch.bfloat16 else 1e-5, atol=2e-5)


@native_only
@pytest.mark.parametrize("there", ["0", "1"])
def test_the_way_back_may_be_the_other(monkeypatch: pytest.MonkeyPatch, there: str) -> None:
    """Whoever counts operations going forward only has the gates from torch, in another layout."""
    parts = drawn(8, torch.float64, False)
    _, expected = both(monkeypatch, parts, None)
    of_h, of_x, c, *following = parts
    monkeypatch.setenv("ENGRAM_NATIVE", there)
    gates, after, _ = Cells(c, c.dtype, None).forward(of_h, of_x, c)
    monkeypatch.setenv("ENGRAM_NATIVE", "1" if there == "0" else "0")
    found = Cells(c, c.dtype, None).backward(gates, c, after, *following)
    for ours, theirs in zip(found, expected[3:], strict=True):
        torch.testing.assert_close(ours, theirs)


@native_only
def test_threads_share_the_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, before = drawn(8, torch.float32, False), torch.get_num_threads()
    one = step(Cells(parts[2], torch.float32, None), parts)
    try:
        torch.set_num_threads(3)
        for ours, theirs in zip(step(Cells(parts[2], torch.float32, None), parts), one, strict=True):
            assert torch.equal(ours, theirs)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("chosen", ["0", "1"], ids=["torch", "loop"])
@pytest.mark.parametrize("options", [{}, {"peepholes": False}, {"rank": 1}, {"reader": "none", "decoder": 1}], ids=str)
def test_bfloat16_is_near_double_precision(monkeypatch: pytest.MonkeyPatch, options: dict, chosen: str) -> None:
    """Outputs, maps, states and gradients, all in their own precision and none of them what it was."""
    monkeypatch.setenv("ENGRAM_NATIVE", chosen)
    shape = (2, 2) if "rank" in options else (2, 2, 2)
    exact = build(shape=shape, **options)
    rounded = build(shape=shape, **options).float()
    rounded.load_state_dict(exact.state_dict())
    assert rounded.use_bf16()
    starts = torch.zeros(5, 3, dtype=torch.bool)
    starts[2, 0] = True
    xs = sequence(shape, 5, 3)
    results = []
    for memory in (exact, rounded):
        inputs = xs.to(memory.dtype)
        found = everything(memory.unroll(inputs, starts, memory.initial_state(3), [2]))
        total = torch.stack([value.square().mean() for value in found.values()]).sum()
        leaves = {name: leaf for name, leaf in memory.named_parameters() if leaf.requires_grad}
        gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True)
        results.append({**found, **dict(zip(leaves, gradients, strict=True))})
    assert not all(torch.equal(results[0][name].float(), results[1][name]) for name in results[0])
    for name, value in results[1].items():
        assert value.dtype == torch.float32, name
        size = results[0][name].abs().max().item()
        torch.testing.assert_close(value.double(), results[0][name], rtol=0.0, atol=0.04 * size + 1e-3, msg=name)


def test_steps_stay_as_they_are() -> None:
    """bfloat16 is for whole sequences; acting is not rounded."""
    memory = build().float()
    x, state = sequence((2, 2, 2), 3).float(), memory.initial_state(3)
    before = memory(x, state)
    assert memory.use_bf16()
    after = memory(x, state)
    assert torch.equal(before.output, after.output)
    for name, value in before.state.items():
        assert torch.equal(value, after.state[name])
    plain = make_memory("multigrid", input_size=(2, 2, 2), fast=False)
    assert not plain.use_bf16()
