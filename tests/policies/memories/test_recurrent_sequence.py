"""LSTM and GRU by hand against torch's cells, stepped plainly: forward and backward, with resets anywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from policies.memories import make_memory
from policies.memories.contract import Unrolled
from policies.memories.recurrent import fast_gradient as gradient
from policies.memories.recurrent.fast import FastRecurrent
from policies.memories.recurrent.fast_sequence import tanh_
from policies.memories.recurrent.memory import TorchRecurrent
from policies.memories.time.taped import TapedRecording
from policies.memories.time.unroll import unroll

LENGTH, BATCH, WIDTH, HIDDEN = 13, 3, 4, 5
RESETS = {"anywhere": None, "nowhere": [], "first": [0], "some": [0, 5, 6, 12], "everywhere": list(range(LENGTH))}

memories = pytest.mark.parametrize("name", ["lstm", "gru"])


@pytest.fixture(autouse=True)
def _torch_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the C loops, which test_recurrent_native.py compares."""
    monkeypatch.setenv("ENGRAM_NATIVE", "0")


def build(name: str, layers: int = 1, dtype: torch.dtype = torch.float64, **kwargs: bool) -> TorchRecurrent:
    torch.manual_seed(0)
    memory = make_memory(name, input_size=WIDTH, hidden_size=HIDDEN, num_layers=layers, **kwargs).to(dtype)
    assert isinstance(memory, TorchRecurrent)
    return memory


def on_tapes(memory: TorchRecurrent) -> Callable[..., Unrolled]:
    assert isinstance(memory._fast_form, FastRecurrent)
    return memory._fast_form.unroll_on_tapes


class Case:
    """Inputs that want gradients, starts and a state that has been used."""

    def __init__(self, memory: TorchRecurrent, resets: Sequence[int] | None) -> None:
        generator = torch.Generator().manual_seed(1)

        def randn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=memory.dtype)

        self.xs = randn(LENGTH, BATCH, WIDTH).requires_grad_()
        shape = (BATCH, memory.num_layers, HIDDEN)
        self.state = {key: randn(*shape).requires_grad_() for key in memory.state_names}
        self.starts = torch.zeros(LENGTH, BATCH, dtype=torch.bool)
        for t in range(LENGTH) if resets is None else resets:
            self.starts[t] = torch.rand(BATCH, generator=generator) < 0.5
        self.weights = randn(LENGTH, BATCH, HIDDEN)
        self.resets = resets
        self.leaves = [self.xs, *self.state.values(), *memory.parameters()]

    def result(self, run: Callable[[], Unrolled], outputs: bool = True, end: bool = True) -> list[Tensor]:
        """Outputs, last state, and the gradients of a loss over both of them, or one."""
        unrolled = run()
        loss = torch.zeros((), dtype=self.xs.dtype)
        if outputs:
            loss = loss + (unrolled.outputs * self.weights).sum()
        if end:
            loss = loss + sum(value.square().sum() for value in unrolled.state.values())
        return [unrolled.outputs, *unrolled.state.values(), *torch.autograd.grad(loss, self.leaves)]


def close(ours: list[Tensor], plain: list[Tensor]) -> None:
    for mine, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, other)


@memories
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("resets", RESETS)
def test_tapes_equal_plain_steps(name: str, layers: int, resets: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient, "BLOCK", 4 * BATCH * HIDDEN)  # 13 steps in four blocks
    memory = build(name, layers)
    case = Case(memory, RESETS[resets])
    plain = case.result(lambda: unroll(memory, case.xs, case.starts, case.state, case.resets))
    close(case.result(lambda: on_tapes(memory)(case.xs, case.starts, case.state, case.resets)), plain)
    close(case.result(lambda: memory.unroll(case.xs, case.starts, case.state, case.resets)), plain)


@memories
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("resets", RESETS)
def test_kernels_equal_plain_steps(name: str, layers: int, resets: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an accelerator: whole, cut at resets, and packed."""
    monkeypatch.setattr(FastRecurrent, "uses_tapes", False)
    memory = build(name, layers)
    case = Case(memory, RESETS[resets])
    plain = case.result(lambda: unroll(memory, case.xs, case.starts, case.state, case.resets))
    close(case.result(lambda: memory.unroll(case.xs, case.starts, case.state, case.resets)), plain)


@memories
@pytest.mark.parametrize(("outputs", "end"), [(True, False), (False, True)])
def test_gradients_of_outputs_and_of_the_last_state_alone(name: str, outputs: bool, end: bool) -> None:
    memory = build(name)
    case = Case(memory, [4])
    plain = case.result(lambda: unroll(memory, case.xs, case.starts, case.state, [4]), outputs, end)
    close(case.result(lambda: on_tapes(memory)(case.xs, case.starts, case.state, [4]), outputs, end), plain)


@memories
@pytest.mark.parametrize("room", [1, LENGTH])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_recording_equals_plain_steps(name: str, room: int, layers: int) -> None:
    memory = build(name, layers)
    case = Case(memory, [0, 7])

    def recorded() -> Unrolled:
        recording = memory.record(case.state, room)
        assert isinstance(recording, TapedRecording)
        for t, x in enumerate(case.xs):
            recording.step(x, case.starts[t] if t in (0, 7) else None)
        return recording.unrolled()

    close(case.result(recorded), case.result(lambda: unroll(memory, case.xs, case.starts, case.state, [0, 7])))


@memories
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_step_without_a_graph_equals_one_with(name: str, dtype: torch.dtype) -> None:
    memory = build(name, layers=2, dtype=dtype)
    case = Case(memory, [])
    with torch.no_grad():
        fast = memory.step(case.xs[0], case.state)
    plain = memory(case.xs[0], case.state)
    assert plain.output.requires_grad
    close([fast.output, *fast.state.values()], [plain.output, *plain.state.values()])


@memories
def test_the_same_graph_may_be_walked_twice(name: str) -> None:
    memory = build(name)
    case = Case(memory, [0, 5])
    outputs = on_tapes(memory)(case.xs, case.starts, case.state, [0, 5]).outputs
    first, second = (torch.autograd.grad(outputs.sum(), case.leaves, retain_graph=True) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@memories
def test_without_fast_paths_steps_are_torchs_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = build(name, fast=False)
    case = Case(memory, [])
    for way in ("step", "unroll", "record"):
        monkeypatch.setattr(memory._fast_form, way, None)
    assert not isinstance(memory.record(case.state, 4), TapedRecording)
    close(
        case.result(lambda: memory.unroll(case.xs, None, case.state)),
        case.result(lambda: unroll(memory, case.xs, None, case.state)),
    )


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 2e-7), (torch.float64, 4e-16)])
def test_tanh_by_the_logistic_function(dtype: torch.dtype, near: float) -> None:
    x = torch.cat([torch.linspace(-20, 20, 4001, dtype=dtype), torch.tensor([0.0, 1e-30, -1e4, 1e4], dtype=dtype)])
    exact = x.tanh()
    assert (tanh_(x) - exact).abs().max() <= near
