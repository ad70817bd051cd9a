"""The sparse DNC against its equations written as loops, and its working copy against plain operations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from sdnc_loops import (
    BATCH,
    FEATURES,
    LEAVES,
    LENGTH,
    SIZES,
    assert_same,
    build,
    comparable,
    dense,
    gradients,
    links,
    random_state,
    reference,
)
from torch import Tensor

from policies.memories import make_memory
from policies.memories.sdnc.memory import SDNC
from policies.memories.shared.addressing import inverse_norms
from policies.memories.time.unroll import unroll


@pytest.mark.parametrize("way", ["sequence", "step", "plain"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"read_heads": 1, "sparse_reads": 3},
        {"sparse_links": 1},
        {"sparse_links": 20},
        {"link_reads": "products"},
        {"slots": 2, "sparse_reads": 2},
        {"slots": 24, "read_heads": 3, "access_threshold": 0.0},
    ],
    ids=lambda options: " ".join(f"{key}={value}" for key, value in options.items()) or "default",
)
def test_sdnc_is_the_papers_equations(way: str, options: dict[str, Any]) -> None:
    """Outputs, all of the state, and the gradients of everything trained and of the state carried in."""
    memory = build(**options, fast=way != "plain")
    state = random_state(memory)
    xs = torch.randn(LENGTH, BATCH, FEATURES).double().requires_grad_()
    leaves = {"xs": xs} | {name: state[name] for name in LEAVES}
    result = memory.unroll(xs, None, state) if way == "sequence" else unroll(memory, xs, None, state)
    ours, paper = comparable(memory, result), reference(memory, xs, state)
    assert_same(ours, paper)
    assert_same(gradients(memory, ours, leaves), gradients(memory, paper, leaves))


@pytest.mark.parametrize("way", ["unroll", "record"])
def test_the_working_copy_is_plain_operations(way: str) -> None:
    """Forward and backward, over resets at any step."""
    fast, plain = build(), build(fast=False)
    plain.load_state_dict(fast.state_dict())
    state = random_state(fast)
    xs = torch.randn(LENGTH, BATCH, FEATURES).double().requires_grad_()
    starts = torch.zeros(LENGTH, BATCH, dtype=torch.bool)
    starts[3, 0] = starts[5, 1] = starts[6, 0] = starts[6, 1] = True
    leaves = {"xs": xs} | {name: state[name] for name in LEAVES}
    if way == "unroll":
        result = fast.unroll(xs, starts, state)
    else:
        recording = fast.record(state, LENGTH)
        for x, begun in zip(xs, starts, strict=True):
            recording.step(x, begun)
        result = recording.unrolled()
    ours, theirs = comparable(fast, result), comparable(plain, plain.unroll(xs, starts, state))
    assert_same(ours, theirs)
    assert_same(gradients(fast, ours, leaves), gradients(plain, theirs, leaves))


def test_a_graph_can_be_differentiated_again_and_from_anywhere() -> None:
    """The gradient's one buffer is nobody else's: a second pass, or one for a part, finds nothing of the first."""
    memory = build()
    state = random_state(memory)
    xs = torch.randn(LENGTH, BATCH, FEATURES).double().requires_grad_()
    result = memory.unroll(xs, None, state)
    weights = torch.randn_like(result.state["memory"])
    held = weights.clone()

    def once(wanted: Tensor) -> Tensor:
        outputs = (result.outputs.sum(), result.state["memory"])
        return torch.autograd.grad(outputs, wanted, (torch.ones(()).double(), weights), retain_graph=True)[0]

    first = once(state["memory"])
    once(xs)
    torch.testing.assert_close(once(state["memory"]), first, rtol=0, atol=0)
    assert torch.equal(weights, held)


def test_training_keeps_as_much_a_step_however_many_slots() -> None:
    """§3.4: what a step keeps for the backward pass does not depend on N."""
    kept = {}
    for slots in (40, 400):
        for length in (4, 8):
            memory = build(slots=slots, fast=True)
            storages: dict[int, int] = {}

            def keep(tensor: Tensor, storages: dict[int, int] = storages) -> Tensor:
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                result = memory.unroll(torch.randn(length, 1, FEATURES).double(), None, memory.initial_state(1))
            kept[slots, length] = sum(storages.values())
            del result
    assert kept[40, 8] > kept[40, 4]
    assert kept[40, 8] == kept[400, 8]


# What reading, writing and linking mean


def with_interface(memory: SDNC, **biases: Any) -> SDNC:
    """The interface made constant: `word`, `alpha`, `gamma` (logits) and `modes` (logits of each head)."""
    parts = {"keys": 0.0, "strengths": 0.0, "word": 1.0, "alpha": 0.0, "gamma": 0.0, "modes": [0.0, 0.0, 0.0]} | biases
    with torch.no_grad():
        memory.interface.weight.zero_()
        keys, strengths, word, gates, modes = memory.interface.bias.split(memory.splits)
        keys.fill_(parts["keys"])
        strengths.fill_(parts["strengths"])
        word.fill_(parts["word"])
        gates.copy_(torch.tensor([parts["alpha"], parts["gamma"]]))
        modes.view(-1, 3).copy_(torch.tensor(parts["modes"]))
    return memory


def test_fresh_slots_are_written_in_order_and_erased_first() -> None:
    """γ = 0, α = 1: every step fills the slot used longest ago, and nothing is left of what it held."""
    memory = with_interface(build(), alpha=50.0, gamma=-50.0, modes=[0.0, 50.0, 0.0])
    state = memory.initial_state(1)
    state["memory"] = state["memory"] + 7
    state["inverse_norm"] = inverse_norms(state["memory"])
    xs = torch.zeros(3, 1, FEATURES).double()
    for t, x in enumerate(xs):
        free = int(state["last_access"].argmin())
        if t == 0:
            assert free == 0
        before, state = state, memory(x, state).state
        changed = (state["memory"] != before["memory"]).any(2)[0].nonzero().flatten().tolist()
        assert changed == [free]
        torch.testing.assert_close(state["memory"][0, free], torch.ones(3).double())
        assert float(state["last_access"][0, free]) == t + 1 == float(state["time"])


def test_a_closed_write_gate_adds_nothing() -> None:
    memory = with_interface(build(), alpha=-800.0)
    state = {name: value.detach() for name, value in random_state(memory).items()}
    after = memory(torch.zeros(BATCH, FEATURES).double(), state).state
    free = state["last_access"].argmin(1)
    for b in range(BATCH):
        others = [i for i in range(memory.slots) if i != free[b]]
        assert torch.equal(after["memory"][b, others], state["memory"][b, others])
        assert not after["memory"][b, free[b]].any()  # erased all the same, as (8) has it
    assert not after["write_weights"].any()


def test_an_open_interpolation_gate_writes_where_was_read() -> None:
    memory = with_interface(build(), alpha=50.0, gamma=50.0)
    state = {name: value.detach() for name, value in random_state(memory).items()}
    after = memory(torch.zeros(BATCH, FEATURES).double(), state).state
    for b in range(BATCH):
        read = sum(dense(state["read_weights"][b, k], state["read_slots"][b, k], memory.slots) for k in range(2)) / 2
        torch.testing.assert_close(dense(after["write_weights"][b], after["write_slots"][b], memory.slots), read)
        kept = torch.ones(memory.slots).double()
        kept[state["last_access"][b].argmin()] = 0
        expected = kept[:, None] * state["memory"][b] + read[:, None]
        torch.testing.assert_close(after["memory"][b], expected)


@pytest.mark.parametrize(("modes", "moves"), [([0.0, 0.0, 50.0], 1), ([50.0, 0.0, 0.0], -1)])
def test_links_lead_through_what_was_written_in_its_order(modes: list[float], moves: int) -> None:
    memory = with_interface(build(), alpha=50.0, gamma=-50.0, modes=[0.0, 50.0, 0.0])
    x = torch.zeros(1, FEATURES).double()
    state = memory.initial_state(1)
    with torch.no_grad():
        for slot in range(6):
            # whatever was read, the next slot is the one to fill
            state["last_access"] = torch.arange(8).double()[None] + 8 * (torch.arange(8) < slot)
            state = memory(x, state).state
    with_interface(memory, alpha=-800.0, modes=modes)
    for slot in (2, 3):
        state["read_slots"] = torch.tensor([[[slot, 0], [slot, 0]]]).double()
        state["read_weights"] = torch.tensor([[[1.0, 0], [1.0, 0]]]).double()
        step = memory(x, state).state
        for k in range(2):
            expected = torch.eye(8).double()[slot + moves]
            torch.testing.assert_close(dense(step["read_weights"][0, k], step["read_slots"][0, k], 8), expected)


def test_untruncated_links_are_each_others_transposes() -> None:
    """With room for all links N = Pᵀ, so that `link_reads` makes no difference; with less room it does."""
    for kept, same in ((20, True), (2, False)):
        memory = build(sparse_links=kept)
        state = random_state(memory, steps=30)
        found = links(memory, state, 0)
        assert found["N"].count_nonzero() > 10
        xs = torch.randn(5, BATCH, FEATURES).double()
        outputs = []
        for memory.link_reads in ("rows", "products"):
            outputs.append(memory.unroll(xs, None, state).outputs)
        assert torch.allclose(found["N"], found["P"].T) == torch.allclose(*outputs) == same


def test_weightings_are_sparse_and_sum_to_at_most_one() -> None:
    memory = build(slots=30)
    state = memory.initial_state(BATCH)
    for _ in range(60):
        state = memory(torch.randn(BATCH, FEATURES).double(), state).state
        for b in range(BATCH):
            written = dense(state["write_weights"][b], state["write_slots"][b], 30)
            assert (written >= 0).all()
            assert 0 < written.sum() <= 1 + 1e-12
            for k in range(2):
                slots = state["read_slots"][b, k].tolist()
                assert len(set(slots)) == 2
                assert (state["read_weights"][b, k] > 0).all()
                assert state["read_weights"][b, k].sum() <= 1 + 1e-12
        for name, count in (("predecessors", 3), ("precedence", 3)):
            weights, slots = state[name].flatten(0, -3).unbind(1)
            assert ((weights > 0) == (slots >= 0)).all()
            assert weights.sum(1).max() <= 1 + 1e-12
            assert weights.shape[1] == count


def test_an_access_counts_from_the_threshold_on() -> None:
    """Reads of two slots at weights of at most 1 and writes below δ = 0.7: only what was attended to enough is used."""
    memory = with_interface(build(access_threshold=0.7), alpha=0.0, gamma=-50.0, modes=[0.0, 50.0, 0.0])
    state = {name: value.detach() for name, value in random_state(memory).items()}
    with torch.no_grad():
        after = memory(torch.zeros(BATCH, FEATURES).double(), state).state
    seen = set()
    for b in range(BATCH):
        weights = dense(after["write_weights"][b], after["write_slots"][b], 8)
        weights = weights + sum(dense(after["read_weights"][b, k], after["read_slots"][b, k], 8) for k in range(2))
        for i in range(8):
            used = float(weights[i]) > 0.7
            expected = after["time"][b, 0] if used else state["last_access"][b, i]
            assert after["last_access"][b, i] == expected
            seen.add((used, float(weights[i]) > 0))
    assert seen >= {(True, True), (False, True)}  # some accesses count and some do not


def test_a_long_run_stays_finite() -> None:
    """Single precision, write gates that saturate, and as many writes as wear any sum out."""
    torch.manual_seed(0)
    memory = make_memory("sdnc", input_size=FEATURES, **SIZES)
    with torch.no_grad():
        memory.interface.weight *= 60
    state = memory.initial_state(BATCH)
    xs = torch.randn(600, BATCH, FEATURES)
    with torch.no_grad():
        state = memory.unroll(xs, None, state).state
    result = memory.unroll(xs[:30], None, state)
    assert all(value.isfinite().all() for value in result.state.values())
    result.outputs.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in memory.parameters())
    assert all(panel.image.isfinite().all() for panel in memory.panels(result.state).values())


def test_gradients_are_finite_where_the_memory_is_empty() -> None:
    memory = build()
    state = memory.initial_state(BATCH)
    state["memory"] = torch.zeros_like(state["memory"]).requires_grad_()
    result = memory.unroll(torch.zeros(4, BATCH, FEATURES).double(), None, state)
    result.outputs.sum().backward()
    assert state["memory"].grad is not None
    assert state["memory"].grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in memory.parameters())


def test_an_episode_begins_in_a_memory_that_is_fixed_and_nearly_empty() -> None:
    torch.manual_seed(1)
    one, same, other = build(), build(), build(memory_seed=1)
    begin = one.initial_state(1)["memory"]
    assert torch.equal(begin, same.initial_state(1)["memory"])
    assert not torch.equal(begin, other.initial_state(1)["memory"])
    assert begin.abs().max() < 1e-5
    assert len({tuple(word) for word in begin[0].tolist()}) == memory_slots(one)
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.initial_state(1)["memory"], begin)


def memory_slots(memory: SDNC) -> int:
    return memory.initial_state(1)["memory"].shape[1]


def test_links_are_pictured_from_slot_to_slot_or_as_kept() -> None:
    for slots, shape in ((8, (8, 8)), (600, (600, 3))):
        memory = build(slots=slots)
        state = {name: value.detach() for name, value in random_state(memory).items()}
        panels = memory.panels(state)
        assert panels["links N"].image.shape == panels["links P"].image.shape == shape
        assert math.isclose(float(panels["links N"].image.sum()), float(state["predecessors"][0, :, 0].sum()))


def test_the_pictures_of_links_name_their_direction() -> None:
    memory = build(slots=8)
    state = {name: value.clone() for name, value in memory.initial_state(1).items()}
    state["predecessors"][0, 1, :, 0] = torch.tensor([1.0, 0.0])  # N(1, 0): slot 0 was written before slot 1
    panels = memory.panels(state)
    assert panels["links N"].image.nonzero().tolist() == [[1, 0]]  # rows are slots
    assert (panels["links N"].x_label, panels["links N"].about) == ("written before", "slots written before each slot")
    assert (panels["links P"].x_label, panels["links P"].about) == ("written after", "slots written after each slot")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"read_heads": 0}, "read_heads is 0; it must be at least 1"),
        ({"link_reads": "columns"}, "link_reads is 'columns'; it must be 'rows' or 'products'"),
        ({"slots": 1}, "slots is 1; it must be at least sparse_reads, 2"),
        ({"access_threshold": 1.0}, r"access_threshold is 1.0; it must be in \[0, 1\)"),
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_memory("sdnc", input_size=FEATURES, **{**SIZES, **options})
