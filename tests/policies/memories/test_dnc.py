"""The DNC against its equations written as loops, and what its addressing means."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dnc_loops import BATCH, FEATURES, LENGTH, assert_same_with_gradients, build, random_state, reference

from policies.memories import make_memory
from policies.memories.shared.addressing import (
    allocation_weights,
    content_weights,
    follow_links,
    next_linkage,
    next_memory,
    next_precedence,
    next_usage,
    oneplus,
    write_allocations,
)
from policies.memories.time.unroll import unroll


@pytest.mark.parametrize("way", ["sequence", "plain step"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 3, "bias": True},
        {"write_heads": 2},
        {"write_heads": 2, "variant": "code", "stop_usage_gradient": True, "strength": "softplus"},
        {"clip_value": 0.3},
        {"clip_value": None, "read_heads": 1, "write_heads": 3},
    ],
    ids=lambda options: " ".join(f"{key}={value}" for key, value in options.items()) or "default",
)
def test_dnc_is_the_papers_equations(way: str, options: dict[str, Any]) -> None:
    """Outputs, final state, and the gradients of everything trained and of the state carried in."""
    memory = build(fast=way == "sequence", **options)
    xs = torch.randn(LENGTH, BATCH, FEATURES).double()
    state = {key: value.requires_grad_() for key, value in random_state(memory).items()}
    leaves = {**state, **dict(memory.named_parameters())}
    result = memory.unroll(xs, None, state)
    ours = {"outputs": result.outputs, **result.state}
    paper = reference(memory, xs, state, options)
    assert ours.keys() == paper.keys()
    assert_same_with_gradients(ours, paper, leaves)


# What addressing means


def test_a_full_allocation_gate_writes_to_the_free_slot() -> None:
    usage = torch.tensor([[0.9, 0.8, 0.0, 0.7]])
    torch.testing.assert_close(allocation_weights(usage), torch.tensor([[0.0, 0, 1, 0]]), rtol=0, atol=1e-29)
    usage = torch.tensor([[0.5, 0.25, 1.0]]).double()
    expected = torch.tensor([[0.5 * 0.25, 0.75, 0.0]]).double()
    torch.testing.assert_close(allocation_weights(usage), expected)


def test_equal_slots_are_allocated_in_order_and_full_ones_not_at_all() -> None:
    torch.testing.assert_close(allocation_weights(torch.zeros(1, 40)), torch.eye(40)[:1], rtol=0, atol=1e-29)
    assert torch.equal(allocation_weights(torch.ones(1, 40)), torch.zeros(1, 40))


@pytest.mark.parametrize("kind", ["zeros", "ones", "equal", "one zero", "mixed"])
def test_allocation_has_the_derivative_of_its_product(kind: str) -> None:
    """At zeros and ones too, where the product's derivative is that of the other factors."""
    n = 5
    usage = {
        "zeros": torch.zeros(n),
        "ones": torch.ones(n),
        "equal": torch.full((n,), 0.3),
        "one zero": torch.tensor([0.5, 0.0, 0.2, 1.0, 0.7]),
        "mixed": torch.tensor([0.5, 0.1, 0.2, 0.9, 0.7]),
    }[kind].double()
    ours = usage.clone().requires_grad_()
    theirs = usage.clone().requires_grad_()
    weights = torch.randn(n).double()
    (allocation_weights(ours[None])[0] * weights).sum().backward()
    order, total = sorted(range(n), key=lambda slot: (float(usage[slot]), slot)), torch.zeros(()).double()
    for rank, slot in enumerate(order):
        product = torch.ones(()).double()
        for before in order[:rank]:
            product = product * theirs[before]
        total = total + weights[slot] * (1 - theirs[slot]) * product
    total.backward()
    assert ours.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_write_heads_allocate_different_slots() -> None:
    allocations = write_allocations(torch.zeros(1, 4), torch.ones(1, 3))[0]
    assert allocations.argmax(1).unique().numel() == 3
    torch.testing.assert_close(allocations.max(1).values, torch.ones(3))
    torch.testing.assert_close(allocations.sum(1), torch.ones(3))
    closed = write_allocations(torch.zeros(1, 4), torch.zeros(1, 2))
    assert torch.equal(closed[0, 0], closed[0, 1])


def test_usage_is_raised_by_writing_and_lowered_by_free_gates() -> None:
    usage = torch.tensor([[0.2, 0.5, 0.0]])
    none = torch.zeros(1, 1, 3)
    write = torch.tensor([[[0.0, 0.0, 1.0]]])
    assert torch.equal(next_usage(usage, none, none, torch.ones(1, 1)), usage)
    assert torch.equal(next_usage(usage, write, none, torch.ones(1, 1)), torch.tensor([[0.2, 0.5, 1.0]]))
    read = torch.tensor([[[0.0, 1.0, 0.0]]])
    assert torch.equal(next_usage(usage, none, read, torch.ones(1, 1)), torch.tensor([[0.2, 0.0, 0.0]]))
    assert torch.equal(next_usage(usage, none, read, torch.zeros(1, 1)), usage)


def test_a_strong_key_finds_its_word_whatever_its_length() -> None:
    memory = torch.tensor([[[1.0, 0], [0, 3], [-1, 1]]])
    weights = content_weights(memory, torch.tensor([[[0.0, 0.01], [-5, 5]]]), torch.full((1, 2), 100.0))
    torch.testing.assert_close(weights[0].argmax(1), torch.tensor([1, 2]))
    torch.testing.assert_close(weights.sum(2), torch.ones(1, 2))
    weak = content_weights(memory, torch.ones(1, 1, 2), torch.zeros(1, 1))
    torch.testing.assert_close(weak, torch.full((1, 1, 3), 1 / 3))


@pytest.mark.parametrize("heads", [1, 2])
def test_a_certain_write_erases_and_replaces_one_word(heads: int) -> None:
    memory = torch.randn(1, 3, 4)
    weights = torch.zeros(1, heads, 3)
    weights[0, 0, 1] = 1
    erase, vectors = torch.ones(1, heads, 4), torch.randn(1, heads, 4)
    written = next_memory(memory, weights, erase, vectors)
    torch.testing.assert_close(written[:, 1], vectors[:, 0])
    assert torch.equal(written[:, [0, 2]], memory[:, [0, 2]])


def test_links_lead_along_the_order_of_writing_and_back() -> None:
    """Slots 2, 0, 3 are written; forward from 2 is 0, from 0 is 3; backward the reverse; nothing links to itself."""
    n = 4
    precedence, linkage = torch.zeros(1, 1, n), torch.zeros(1, 1, n, n)
    for slot in (2, 0, 3):
        write = torch.eye(n)[slot].view(1, 1, n)
        linkage, precedence = next_linkage(linkage, write, precedence), next_precedence(precedence, write)
    expected = torch.zeros(n, n)
    expected[0, 2] = expected[3, 0] = 1
    assert torch.equal(linkage[0, 0], expected)
    forward, backward = follow_links(linkage, torch.eye(n)[None])
    assert torch.equal(forward[0, 0, 2], torch.eye(n)[0])
    assert torch.equal(backward[0, 0, 3], torch.eye(n)[0])


def test_oneplus_is_one_plus_a_softplus() -> None:
    x = torch.tensor([-50.0, 0.0, 3.0])
    torch.testing.assert_close(oneplus(x), 1 + torch.log1p(x.exp()))


@pytest.mark.parametrize("write_heads", [1, 2])
def test_weights_stay_weights(write_heads: int) -> None:
    """In [0, 1] with sums of at most 1, and so are the linkage's rows and columns; the diagonal is zero."""
    memory = build(write_heads=write_heads)
    with torch.no_grad():
        state = unroll(memory, 3 * torch.randn(30, 4, FEATURES).double(), None, memory.initial_state(4)).state
    slack = 1 + 1e-9
    for name in ("write_weights", "read_weights", "precedence"):
        assert (state[name] >= 0).all()
        assert (state[name].sum(2) <= slack).all()
    assert (state["write_weights"].sum(1) > 0).any()
    assert ((state["usage"] >= 0) & (state["usage"] <= slack)).all()
    linkage = state["linkage"]
    assert (linkage.sum(2) <= slack).all()
    assert (linkage.sum(3) <= slack).all()
    assert linkage.diagonal(dim1=2, dim2=3).count_nonzero() == 0
    assert linkage.count_nonzero() > 0


def test_what_was_read_is_seen_at_the_next_step() -> None:
    memory = build()
    state = random_state(memory)
    other = {**state, "read_vectors": state["read_vectors"] + 1}
    x = torch.randn(BATCH, FEATURES).double()
    assert not torch.allclose(memory(x, state).state["hidden"], memory(x, other).state["hidden"])


# No infinite derivative, no NaN


@pytest.mark.parametrize("way", ["loops", "torch", "equations"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", ["zero memory", "equal rows", "full memory", "zero everything"])
def test_gradients_are_finite_where_the_memory_is_degenerate(
    case: str, dtype: torch.dtype, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENGRAM_NATIVE", "0" if way == "torch" else "1")
    memory = build(slots=40, fast=way != "equations").to(dtype)
    state = {key: value.to(dtype).clone() for key, value in random_state(memory).items()}
    if case == "zero memory":
        state["memory"].zero_()
    elif case == "equal rows":
        state["memory"].fill_(0.5)
    elif case == "full memory":
        state["usage"].fill_(1)
        with torch.no_grad():  # and nothing is freed
            memory.interface.weight.zero_()
    else:
        state = {key: torch.zeros_like(value) for key, value in state.items()}
        with torch.no_grad():  # keys are zero too
            memory.interface.weight.zero_()
    state = {key: value.requires_grad_() for key, value in state.items()}
    xs = torch.randn(4, BATCH, FEATURES, dtype=dtype)
    result = memory.unroll(xs, None, state)
    leaves = [*state.values(), *memory.parameters()]
    total = result.outputs.square().sum() + sum(value.square().sum() for value in result.state.values())
    gradients = torch.autograd.grad(total, leaves)
    for value in (result.outputs, *result.state.values(), *gradients):
        assert value.isfinite().all()
    assert any(gradient.count_nonzero() for gradient in gradients)


def test_ten_thousand_steps_stay_finite_and_the_memory_stays_in_bounds() -> None:
    torch.manual_seed(0)
    memory = make_memory("dnc", input_size=FEATURES, hidden_size=8, slots=8, word_size=4, read_heads=2)
    state = memory.initial_state(2)
    with torch.inference_mode():  # the quickest way to step
        memory.get_submodule("interface").weight.mul_(20)
        for xs in (3 * torch.randn(10_000, 2, FEATURES)).split(1000):
            state = unroll(memory, xs, None, state).state
            assert all(value.isfinite().all() for value in state.values())
    assert (state["read_weights"].sum(2) <= 1 + 1e-4).all()
    assert (state["linkage"].sum(3) <= 1 + 1e-4).all()
    state = {name: value.clone() for name, value in state.items()}  # and it can still be trained from there
    memory.unroll(torch.randn(5, 2, FEATURES), None, state).outputs.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in memory.parameters())


# Options


def test_gradients_of_hidden_states_are_clipped() -> None:
    limit = 1e-3
    memory, free = build(clip_gradients=limit), build()
    free.load_state_dict(memory.state_dict())
    xs = torch.randn(1, BATCH, FEATURES).double()
    grads = []
    for which in (memory, free):
        state = {key: value.requires_grad_() for key, value in random_state(which).items()}
        total = 1e3 * which.unroll(xs, None, state).outputs.sum()
        # dc = dh o (1 - tanh²) is below dh, and f < 1
        grads.append(torch.autograd.grad(total, state["cell"])[0])
    assert 0 < grads[0].abs().max() <= limit
    assert grads[1].abs().max() > limit


def test_the_default_size_of_the_interface_is_the_papers() -> None:
    memory = make_memory("dnc", input_size=FEATURES)
    w, r = 16, 4
    assert memory.get_submodule("interface").weight.shape == (w * r + 3 * w + 5 * r + 3, 256)
    assert [name for name, _ in memory.named_parameters() if "bias" in name] == ["controller.0.bias"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slots": 0}, "slots is 0; it must be at least 1"),
        ({"num_layers": 0}, "num_layers is 0; it must be at least 1"),
        ({"clip_value": 0.0}, "clip_value must be above 0 or None, not 0.0"),
        ({"clip_gradients": -1.0}, "clip_gradients must be above 0 or None, not -1.0"),
        ({"strength": "plus"}, "strength is 'plus'; it must be 'oneplus' or 'softplus'"),
        ({"variant": "bcf"}, "variant is 'bcf'; it must be 'paper' or 'code'"),
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_memory("dnc", input_size=FEATURES, **options)
