"""SALU against its equations written as loops, its fast path against its plain one, and what reading means.

What it stands for: LSTM+SALU of Munkhdalai et al., "Metalearned Neural Memory", NeurIPS 2019, §4.1; equations as in
`policies/memories/salu/memory.py`.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from sequences import expect_same_with_gradients, starts_at, through
from torch import Tensor

from policies.memories import make_memory
from policies.memories.contract import State
from policies.memories.salu.fast import MIN_STEPS
from policies.memories.salu.memory import SALU
from policies.memories.salu.rules import attend
from policies.memories.time.unroll import unroll

FEATURES, BATCH = 3, 2
SIZES = {"hidden_size": 5, "output_size": 4, "key_size": 3, "value_size": 2, "heads": 2, "capacity": 4}


def build(**options: Any) -> SALU:
    memory = make_memory("salu", input_size=FEATURES, **{**SIZES, **options}).double()
    assert isinstance(memory, SALU)
    with torch.no_grad():  # keys strong enough for attention to choose
        memory.interaction.weight *= 4
    return memory


def used_state(memory: SALU, counts: tuple[float, ...] = (2.0, 4.0)) -> State:
    """Tables that hold `counts` steps."""
    state = {key: torch.randn(value.shape).double() for key, value in memory.initial_state(BATCH).items()}
    state["count"] = torch.tensor(counts).double()
    for name in ("keys", "values"):
        unused = torch.arange(memory.capacity) < (memory.capacity - state["count"]).unsqueeze(1)
        state[name] = state[name].masked_fill(unused[:, :, None, None], 0.0)
    return state


def reference(memory: SALU, xs: Tensor, starts: Tensor | None, state: State) -> dict[str, Tensor]:
    """The equations, one batch entry, one head and one row at a time, with a table that is a list."""
    heads, d_k, d_v, capacity = memory.heads, memory.key_size, memory.value_size, memory.capacity
    outputs, finals = [], []
    for b in range(xs.shape[1]):
        h, c, v_read = state["hidden"][b], state["cell"][b], state["read_value"][b]
        held = int(state["count"][b])
        # a step of the table is its H pairs of key and value
        table = [
            [(state["keys"][b, step, i], state["values"][b, step, i]) for i in range(heads)]
            for step in range(capacity - held, capacity)
        ]
        outputs.append([])
        for t, x in enumerate(xs[:, b]):
            if starts is not None and starts[t, b]:
                h, c, v_read, table = torch.zeros_like(h), torch.zeros_like(c), torch.zeros_like(v_read), []
            lstm = memory.controller
            gates = lstm.weight_ih @ torch.cat([x, v_read]) + lstm.bias_ih + lstm.weight_hh @ h + lstm.bias_hh
            i_gate, forget, g, o = gates.chunk(4)
            c = torch.sigmoid(forget) * c + torch.sigmoid(i_gate) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            vectors = torch.tanh(memory.interaction.weight @ h + memory.interaction.bias)
            pieces = list(vectors.split([d_k] * 2 * heads + [d_v] * heads))
            k_read, k_write, v_write = pieces[:heads], pieces[heads : 2 * heads], pieces[2 * heads :]
            table = [*table, list(zip(k_write, v_write, strict=True))][-capacity:]
            rows = [row for step in table for row in step]
            v_read = torch.zeros(d_v).double()
            for k in k_read:
                scores = [torch.exp((k * key).sum() / math.sqrt(d_k)) for key, _ in rows]
                total = torch.stack(scores).sum()
                for score, (_, value) in zip(scores, rows, strict=True):
                    v_read = v_read + score / total * value / heads
            outputs[-1].append(memory.output.weight @ torch.cat([h, v_read]) + memory.output.bias)
        blank = [[(torch.zeros(d_k).double(), torch.zeros(d_v).double())] * heads] * (capacity - len(table))
        full = [*blank, *table]
        finals.append(
            {
                "hidden": h,
                "cell": c,
                "read_value": v_read,
                "keys": torch.stack([torch.stack([key for key, _ in step]) for step in full]),
                "values": torch.stack([torch.stack([value for _, value in step]) for step in full]),
                "count": torch.tensor(float(len(table))).double(),
            }
        )
    return {
        "outputs": torch.stack([torch.stack(o) for o in outputs], 1),
        **{key: torch.stack([final[key] for final in finals]) for key in finals[0]},
    }


@pytest.mark.parametrize("native", ["1", "0"], ids=["C", "torch"])
@pytest.mark.parametrize("way", ["unrolled", "recorded", "plain steps"])
@pytest.mark.parametrize("resets", [None, (0, 3), (1, 2, 9)], ids=["no reset", "resets", "more resets"])
@pytest.mark.parametrize(
    "options", [{}, {"heads": 1}, {"heads": 3, "capacity": 20}, {"capacity": 1}], ids=lambda options: str(options)
)
def test_it_is_its_equations(
    native: str, way: str, resets: tuple[int, ...] | None, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs, final state, and the gradients of everything trained and of the state carried in."""
    monkeypatch.setenv("ENGRAM_NATIVE", native)
    memory, length = build(fast=way != "plain steps", **options), 10
    xs = torch.randn(length, BATCH, FEATURES).double().requires_grad_()
    counts = (min(2.0, memory.capacity), float(memory.capacity))
    state = {key: value.requires_grad_(key != "count") for key, value in used_state(memory, counts).items()}
    starts = starts_at(resets, length, BATCH)
    result = through(memory, xs, starts, state, way == "recorded", resets)
    ours, paper = {"outputs": result.outputs, **result.state}, reference(memory, xs, starts, state)
    used = memory.used(state["count"])[:, :, None, None]

    def in_use(gradients: dict[str, Tensor]) -> None:
        """Rows not in use travel along in the state, and mean nothing."""
        gradients |= {name: gradients[name] * used for name in ("keys", "values")}

    leaves = {"xs": xs, **state, **dict(memory.named_parameters())}
    del leaves["count"]
    expect_same_with_gradients(ours, paper, leaves, in_use)


def test_a_recording_longer_than_its_room_is_one_sequence() -> None:
    memory, length = build(capacity=8), 2 * MIN_STEPS + 5
    xs, state = torch.randn(length, BATCH, FEATURES).double(), used_state(build(capacity=8), (3.0, 8.0))
    starts = torch.zeros(length, BATCH, dtype=torch.bool)
    starts[[MIN_STEPS - 3, MIN_STEPS + 1], 0] = (
        True  # rows cleared at the end of one tape and at the beginning of the next
    )
    recording = memory.record(state, 1)
    states = [recording.step(x, starts[t] if starts[t].any() else None).state for t, x in enumerate(xs)]
    recorded, stepped = recording.unrolled(), unroll(memory, xs, starts, state)
    torch.testing.assert_close(recorded.outputs, stepped.outputs, rtol=1e-9, atol=1e-11)
    for key, value in stepped.state.items():
        torch.testing.assert_close(recorded.state[key], value, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(states[-1][key], value.detach(), rtol=1e-9, atol=1e-11)
    found = []
    for result in (recorded, stepped):
        found.append(torch.autograd.grad(result.outputs.square().sum(), list(memory.parameters())))
    for (key, _), ours, plain in zip(memory.named_parameters(), *found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-8, atol=1e-10, msg=key)


def test_the_state_acted_by_is_the_stepped_one_after_every_step() -> None:
    """Also while rows that a start has cleared are still in the window."""
    memory, state = build(), used_state(build())
    starts = torch.tensor([True, False])
    recording, plain = memory.record(state, 8), state
    for t, x in enumerate(torch.randn(8, BATCH, FEATURES).double()):
        taken = recording.step(x, starts if t == 2 else None).state
        step_starts = (starts if t == 2 else torch.zeros(2, dtype=torch.bool)).unsqueeze(0)
        plain = unroll(memory, x.unsqueeze(0), step_starts, plain).state
        for key, value in plain.items():
            torch.testing.assert_close(taken[key], value.detach(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("capacity", [1, 5, 50, 60])
def test_fast_is_plain_over_a_long_sequence(capacity: int) -> None:
    """Longer than the table, as long, and shorter."""
    memory = build(capacity=capacity)
    xs, state = torch.randn(50, BATCH, FEATURES).double(), used_state(memory, (1.0, float(capacity)))
    leaves = [*memory.parameters(), *(state[name].requires_grad_() for name in ("keys", "values"))]
    found = []
    for result in (memory.unroll(xs, None, state), unroll(memory, xs, None, state)):
        loss = result.outputs.square().sum() + result.state["keys"].sum() + result.state["values"].square().sum()
        found.append((result.outputs, *torch.autograd.grad(loss, leaves)))
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-8, atol=1e-10)


def test_at_the_default_sizes_fast_is_plain_in_single_precision() -> None:
    """40 steps; the gradient of each parameter to a relative 1e-3 of its norm."""
    memory, xs = make_memory("salu", input_size=8, capacity=30), torch.randn(40, 2, 8)
    gradients = []
    for fast in (True, False):
        memory.fast = fast  # type: ignore[assignment]
        memory.zero_grad()
        memory.unroll(xs, None, memory.initial_state(2)).outputs.square().mean().backward()
        gradients.append({key: p.grad.clone() for key, p in memory.named_parameters() if p.grad is not None})
    assert len(gradients[1]) == len(list(memory.parameters()))
    for key, expected in gradients[1].items():
        assert (gradients[0][key] - expected).norm() <= 1e-3 * expected.norm(), key


def test_without_loops_a_sequence_has_one_tape(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table as long as the sequence is large, and the input's part of the gates one product."""
    monkeypatch.setenv("ENGRAM_NATIVE", "0")
    memory, calls = build(), list[str]()

    def counted(name: str, made: Any) -> Any:
        return lambda *args: (calls.append(name), made(*args))[1]

    for name in ("tape", "projected"):
        monkeypatch.setattr(memory._fast_form, name, counted(name, getattr(memory._fast_form, name)))
    memory.unroll(torch.randn(3, BATCH, FEATURES).double(), None, memory.initial_state(BATCH))
    assert sorted(calls) == ["projected", "tape"]


def test_a_sequence_keeps_one_table() -> None:
    """The fast path's claim: rows carried in and one for each step, where plain steps keep a table each."""
    length, kept = 40, {}
    for fast in (True, False):
        memory = make_memory("salu", input_size=FEATURES, key_size=11, value_size=11, capacity=30, fast=fast)
        storages: dict[int, int] = {}

        def keep(tensor: Tensor, storages: dict[int, int] = storages) -> Tensor:
            if not isinstance(tensor, torch.nn.Parameter) and tensor.numel() >= 30 * 11 and 11 in tensor.shape:
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            result = memory.unroll(torch.randn(length, 1, FEATURES), None, memory.initial_state(1))
        kept[fast] = sum(storages.values()) / 11
        del result
    assert kept[True] == 2 * (30 + length)
    assert kept[False] >= 2 * 30 * (length - 1)


# What reading means


def test_read_weights_are_a_distribution_over_the_rows_in_use() -> None:
    read_keys, keys = torch.randn(BATCH, 2, 3).double(), torch.randn(BATCH, 4, 2, 3).double()
    used = torch.tensor([[False, False, True, True], [True, True, True, True]])
    weights = attend(read_keys, keys, used)
    assert weights.shape == (BATCH, 2, 8)
    torch.testing.assert_close(weights.sum(2), torch.ones(BATCH, 2).double())
    assert (weights[0, :, :4] == 0).all()
    assert (weights[0, :, 4:] > 0).all()
    assert (weights[1] > 0).all()


def test_a_strong_key_reads_the_row_it_was_written_with() -> None:
    keys = torch.eye(4).double().view(1, 4, 1, 4)
    used = torch.ones(1, 4, dtype=torch.bool)
    for row in range(4):
        weights = attend(100 * keys[:, row], keys, used)
        torch.testing.assert_close(weights, torch.eye(4).double()[row].view(1, 1, 4))


def test_scores_are_scaled_by_the_root_of_the_key_size() -> None:
    keys = torch.tensor([[1.0] * 9, [0.0] * 9]).double().view(1, 2, 1, 9)
    weights = attend(torch.ones(1, 1, 9).double(), keys, torch.ones(1, 2, dtype=torch.bool))
    torch.testing.assert_close(weights[0, 0, 0], torch.tensor(3.0).double().sigmoid())  # 9 / √9


def test_what_is_written_is_read_in_the_same_step() -> None:
    """The first read of an episode can only be of the row just written."""
    memory = build(heads=1)
    state = memory(torch.randn(BATCH, FEATURES).double(), memory.initial_state(BATCH)).state
    torch.testing.assert_close(state["read_value"], state["values"][:, -1, 0])


def test_the_table_holds_the_last_steps_in_their_order() -> None:
    memory = build()
    state, written = memory.initial_state(BATCH), []
    for t, x in enumerate(torch.randn(7, BATCH, FEATURES).double()):
        state = memory(x, state).state
        written.append(memory.vectors(state["hidden"])[1])
        held = min(t + 1, 4)
        assert (state["count"] == held).all()
        torch.testing.assert_close(state["keys"][:, 4 - held :], torch.stack(written[-held:], 1))


def test_rows_out_of_use_are_not_read() -> None:
    """Whatever they hold; a state that somebody made up may hold anything there."""
    memory, x = build(), torch.randn(BATCH, FEATURES).double()
    state = used_state(memory, (1.0, 2.0))
    dirty = {**state, "keys": state["keys"].clone(), "values": state["values"].clone()}
    dirty["keys"][:, 0], dirty["values"][:, 0] = 100.0, 100.0
    dirty["keys"][:, 1], dirty["values"][:, 1] = 100.0, 100.0
    for way in (memory(x, dirty).output, memory.unroll(x.unsqueeze(0), None, dirty).outputs[0]):
        torch.testing.assert_close(way, memory(x, state).output)


def test_panels_of_a_state_before_any_step_are_finite() -> None:
    panels = build().panels(build().initial_state(BATCH))
    assert panels["read_weights"].image.abs().max() == 0
    assert all(panel.image.isfinite().all() for panel in panels.values())


def test_a_long_run_stays_finite() -> None:
    memory = make_memory("salu", input_size=FEATURES, hidden_size=16, key_size=8, value_size=8, capacity=20)
    result = memory.unroll(10 * torch.randn(300, 1, FEATURES), None, memory.initial_state(1))
    result.outputs.sum().backward()
    assert all(value.isfinite().all() for value in result.state.values())
    assert (result.state["count"] == 20).all()
    assert all(parameter.grad.isfinite().all() for parameter in memory.parameters())  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 0}, "heads is 0; it must be at least 1"),
        ({"capacity": 0}, "capacity is 0; it must be at least 1"),
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)
