"""LSTM and GRU against torch's own modules, and what their fast unroll asks of the device."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from policies.memories import make_memory
from policies.memories.recurrent.fast import FastRecurrent
from policies.memories.time.unroll import unroll

LENGTH, BATCH, FEATURES, HIDDEN = 7, 3, 4, 5


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("fast", [True, False], ids=["sequence kernel", "cell"])
def test_lstm_is_torch_lstm(layers: int, fast: bool) -> None:
    theirs = nn.LSTM(FEATURES, HIDDEN, layers).double()
    ours = make_memory("lstm", input_size=FEATURES, hidden_size=HIDDEN, num_layers=layers).double()
    ours.rnn.load_state_dict(theirs.state_dict())
    xs = torch.randn(LENGTH, BATCH, FEATURES).double()
    hidden, cell = torch.randn(2, layers, BATCH, HIDDEN).double()
    outputs, (last_hidden, last_cell) = theirs(xs, (hidden, cell))

    state = {"hidden": hidden.transpose(0, 1), "cell": cell.transpose(0, 1)}
    result = ours.unroll(xs, None, state) if fast else unroll(ours, xs, None, state)
    torch.testing.assert_close(result.outputs, outputs)
    torch.testing.assert_close(result.state["hidden"].transpose(0, 1), last_hidden)
    torch.testing.assert_close(result.state["cell"].transpose(0, 1), last_cell)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("fast", [True, False], ids=["sequence kernel", "cell"])
def test_gru_is_torch_gru(layers: int, fast: bool) -> None:
    theirs = nn.GRU(FEATURES, HIDDEN, layers).double()
    ours = make_memory("gru", input_size=FEATURES, hidden_size=HIDDEN, num_layers=layers).double()
    ours.rnn.load_state_dict(theirs.state_dict())
    xs = torch.randn(LENGTH, BATCH, FEATURES).double()
    hidden = torch.randn(layers, BATCH, HIDDEN).double()
    outputs, last_hidden = theirs(xs, hidden)

    state = {"hidden": hidden.transpose(0, 1)}
    result = ours.unroll(xs, None, state) if fast else unroll(ours, xs, None, state)
    torch.testing.assert_close(result.outputs, outputs)
    torch.testing.assert_close(result.state["hidden"].transpose(0, 1), last_hidden)


class Operations(TorchDispatchMode):
    """Records what torch is asked to do."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.append(func.__name__.split(".")[0])
        return func(*args, **(kwargs or {}))


@pytest.fixture
def kernels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences as on an accelerator: by torch's kernels, nothing by hand."""
    monkeypatch.setattr(FastRecurrent, "uses_tapes", False)


@pytest.mark.usefixtures("kernels_alone")
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_resets_the_host_knows_need_no_look_at_the_device(name: str) -> None:
    memory = make_memory(name, input_size=FEATURES, hidden_size=HIDDEN)
    xs = torch.randn(16, BATCH, FEATURES)
    starts = torch.zeros(16, BATCH, dtype=torch.bool)
    starts[[0, 9]] = True
    with torch.no_grad(), Operations() as known:
        memory.unroll(xs, starts, memory.initial_state(BATCH), [0, 9])
    with torch.no_grad(), Operations() as unknown:
        memory.unroll(xs, starts, memory.initial_state(BATCH), None)
    looks = {"nonzero", "bincount", "_local_scalar_dense"}
    assert not looks & set(known.names)
    assert looks & set(unknown.names)


@pytest.mark.usefixtures("kernels_alone")
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_episodes_of_one_step_run_as_one_step(name: str) -> None:
    memory = make_memory(name, input_size=FEATURES, hidden_size=HIDDEN)
    xs, everywhere = torch.randn(50, BATCH, FEATURES), torch.ones(50, BATCH, dtype=torch.bool)
    with torch.no_grad(), Operations() as short:
        together = memory.unroll(xs, everywhere, memory.initial_state(BATCH))
    with torch.no_grad(), Operations() as plain:
        apart = unroll(memory, xs, everywhere, memory.initial_state(BATCH))
    torch.testing.assert_close(together.outputs, apart.outputs)
    assert len(short.names) < len(plain.names) / 5
