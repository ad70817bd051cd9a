"""The Neural Turing machine against its equations written as loops. Equation numbers are those of arXiv:1410.5401."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from policies.memories import make_memory
from policies.memories.contract import State
from policies.memories.ntm.memory import NTM, sharpened, shifted

FEATURES, BATCH, LENGTH = 3, 2, 4
SIZES = {"hidden_size": 6, "output_size": 4, "slots": 6, "word_size": 3, "read_heads": 2, "write_heads": 2}


def build(**options: Any) -> NTM:
    torch.manual_seed(0)
    memory = make_memory("ntm", input_size=FEATURES, **{**SIZES, **options}).double()
    assert isinstance(memory, NTM)
    with torch.no_grad():  # strong enough for every term to matter
        memory.interface.weight *= 4
        for name, parameter in memory.named_parameters():
            if name.startswith("initial"):
                parameter += 0.5 * torch.randn_like(parameter)
    return memory


def softplus(x: Tensor) -> Tensor:
    return (1 + x.exp()).log()


def softmax(x: Tensor) -> Tensor:
    return x.exp() / x.exp().sum()


def address(memory: NTM, parameters: Tensor, slots: list[Tensor], before: Tensor) -> Tensor:
    """§3.3, one head and one slot at a time."""
    n, reach = len(slots), memory.address_sizes[3] // 2
    k, beta, g, s, gamma = parameters.split(memory.address_sizes)
    k = torch.tanh(k) if memory.tanh_keys else k
    beta, g, s, gamma = softplus(beta), torch.sigmoid(g), softmax(s), 1 + softplus(gamma)
    # eq. (6); 1e-6 keeps the norm of an empty slot from zero
    cosines = [(k @ m) / (((k @ k) + 1e-6).sqrt() * ((m @ m) + 1e-6).sqrt()) for m in slots]
    w_c = softmax(torch.stack([beta[0] * cosine for cosine in cosines]))  # eq. (5)
    w_g = g * w_c + (1 - g) * before  # eq. (7)
    w = []
    for i in range(n):  # eq. (8)
        w.append(sum(w_g[(i - move) % n] * s[move + reach] for move in range(-reach, reach + 1)))
    powers = torch.stack(w) ** gamma  # eq. (9)
    return powers / powers.sum()


def reference(memory: NTM, xs: Tensor, state: State) -> dict[str, Tensor]:
    """The paper, one batch entry at a time."""
    m, heads = memory.word_size, memory.read_heads + memory.write_heads
    outputs: list[list[Tensor]] = []
    finals: list[dict[str, Tensor]] = []
    for b in range(xs.shape[1]):
        slots = list(state["memory"][b])
        w_read, w_write = list(state["read_weights"][b]), list(state["write_weights"][b])
        r = list(state["read_vectors"][b])
        h = list(state["hidden"][b]) if memory.recurrent else []
        c = list(state["cell"][b]) if memory.recurrent else []
        outputs.append([])
        for x in xs[:, b]:
            z = torch.cat([x, *r])
            for index, layer in enumerate(memory.controller):
                if not memory.recurrent:
                    z = torch.tanh(layer.weight @ z + layer.bias)
                    continue
                gates = layer.weight_ih @ z + layer.bias_ih + layer.weight_hh @ h[index] + layer.bias_hh
                i, forget, g, o = gates.chunk(4)
                c[index] = torch.sigmoid(forget) * c[index] + torch.sigmoid(i) * torch.tanh(g)
                z = h[index] = torch.sigmoid(o) * torch.tanh(c[index])
            emitted = memory.interface.weight @ z + memory.interface.bias
            size = sum(memory.address_sizes)
            of_head = [emitted[i * size : (i + 1) * size] for i in range(heads)]
            vectors = [emitted[heads * size + i * m :][:m] for i in range(2 * memory.write_heads)]
            erase = [torch.sigmoid(v) for v in vectors[: memory.write_heads]]
            add = [torch.tanh(v) if memory.tanh_keys else v for v in vectors[memory.write_heads :]]

            before = slots
            w_write = [
                address(memory, of_head[memory.read_heads + i], before, w_write[i]) for i in range(memory.write_heads)
            ]
            slots = []
            for i, slot in enumerate(before):
                for head in range(memory.write_heads):
                    slot = slot * (1 - w_write[head][i] * erase[head])  # eq. (3)
                for head in range(memory.write_heads):
                    slot = slot + w_write[head][i] * add[head]  # eq. (4)
                slots.append(slot)
            seen = before if memory.read_first else slots
            w_read = [address(memory, of_head[i], seen, w_read[i]) for i in range(memory.read_heads)]
            r = [sum(w[i] * slot for i, slot in enumerate(seen)) for w in w_read]  # eq. (2)
            outputs[-1].append(memory.output.weight @ torch.cat([z, *r]) + memory.output.bias)
        finals.append(
            {
                "memory": torch.stack(slots),
                "read_weights": torch.stack(w_read),
                "write_weights": torch.stack(w_write),
                "read_vectors": torch.stack(r),
            }
            | ({"hidden": torch.stack(h), "cell": torch.stack(c)} if memory.recurrent else {})
        )
    return {
        "outputs": torch.stack([torch.stack(o) for o in outputs], 1),
        **{key: torch.stack([final[key] for final in finals]) for key in finals[0]},
    }


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"controller": "feedforward", "num_layers": 2},
        {"num_layers": 2, "memory_init": "learned"},
        {"shift_range": 0},
        {"shift_range": 2, "memory_init": "random"},
        {"read_heads": 1, "write_heads": 3},
        {"variant": "code", "key_activation": "tanh"},
    ],
    ids=lambda options: " ".join(f"{key}={value}" for key, value in options.items()) or "default",
)
def test_ntm_is_the_papers_equations(options: dict[str, Any]) -> None:
    """Outputs, final state, and the gradients of everything trained and of the inputs."""
    memory = build(**options)
    xs = torch.randn(LENGTH, BATCH, FEATURES).double().requires_grad_()
    leaves = {"xs": xs, **dict(memory.named_parameters())}
    state = memory.initial_state(BATCH)
    result = memory.unroll(xs, None, state)
    ours = {"outputs": result.outputs, **result.state}
    paper = reference(memory, xs, state)
    weights = {key: torch.randn(value.shape).double() for key, value in ours.items()}
    gradients = []
    for parts in (ours, paper):
        total = torch.stack([(weights[key] * parts[key]).sum() for key in weights]).sum()
        found = torch.autograd.grad(total, list(leaves.values()), retain_graph=True)
        gradients.append(dict(zip(leaves, found, strict=True)))
    for actual, expected in ((ours, paper), gradients):
        assert actual.keys() == expected.keys()
        for key in expected:
            torch.testing.assert_close(
                actual[key], expected[key], rtol=1e-8, atol=1e-10, msg=lambda text, k=key: f"{k}: {text}"
            )


# What addressing means


def head(memory: NTM, key: float, strength: float, gate: float, move: int, power: float) -> Tensor:
    """Parameters of one head, before their activations; `move` is certain."""
    shift = torch.full((memory.address_sizes[3],), -1e3)
    shift[move + memory.address_sizes[3] // 2] = 1e3
    parts = [torch.full((memory.word_size,), key), torch.tensor([strength]), torch.tensor([gate]), shift]
    return torch.cat([*parts, torch.tensor([power])]).double().expand(1, 1, -1)


def slots_with_ones_at(place: int, memory: NTM) -> Tensor:
    slots = torch.zeros(1, memory.slots, memory.word_size).double()
    slots[:, :, 0] = 1
    slots[:, place] = 1
    return slots


@pytest.mark.parametrize("move", [-2, -1, 0, 1, 2])
def test_with_the_gate_closed_the_head_goes_round_the_ring(move: int) -> None:
    memory = build(shift_range=2)
    slots = slots_with_ones_at(3, memory)
    weights = torch.eye(memory.slots).double()[None, 5:]  # at the last slot
    weights = memory.address(head(memory, 1, 50, -1e3, move, 0), slots, weights)
    assert weights.shape == (1, 1, memory.slots)
    assert weights.argmax() == (5 + move) % memory.slots
    torch.testing.assert_close(weights.max(), torch.tensor(1.0).double())


def test_with_the_gate_open_the_head_goes_to_what_it_looks_for() -> None:
    memory = build()
    weights = torch.eye(memory.slots).double()[None, 5:]
    weights = memory.address(head(memory, 1, 500, 1e3, 0, 0), slots_with_ones_at(3, memory), weights)
    assert weights[0, 0, 3] > 0.999
    beside = memory.address(head(memory, 1, 500, 1e3, 1, 0), slots_with_ones_at(3, memory), weights)
    assert beside[0, 0, 4] > 0.999


def test_a_key_strength_of_zero_looks_everywhere() -> None:
    memory = build()
    weights = memory.address(head(memory, 1, -1e3, 1e3, 0, 0), slots_with_ones_at(3, memory), torch.zeros(1, 1, 6))
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 6))


def test_shifting_by_a_mixture_is_the_mixture_of_the_shifted() -> None:
    weights, moves = torch.rand(2, 3, 7).double(), torch.rand(2, 3, 5).double()
    expected = sum(moves[..., [m + 2]] * weights.roll(m, 2) for m in range(-2, 3))
    torch.testing.assert_close(shifted(weights, moves), expected)


def test_sharpening_keeps_the_sum_and_raises_the_highest() -> None:
    weights = torch.tensor([[[0.2, 0.5, 0.3]]]).double()
    torch.testing.assert_close(sharpened(weights, torch.ones(1, 1).double()), weights)
    squared = sharpened(weights, torch.full((1, 1), 2.0).double())
    torch.testing.assert_close(squared, weights.square() / weights.square().sum())


def test_sharpening_does_not_divide_zero_by_zero() -> None:
    """In single precision 128 equal weights to the power of 30 are all 0."""
    weights = torch.full((1, 1, 128), 1 / 128).requires_grad_()
    sharp = sharpened(weights, torch.full((1, 1), 30.0))
    torch.testing.assert_close(sharp, torch.full_like(sharp, 1 / 128))
    (gradient,) = torch.autograd.grad(sharp[0, 0, 0], weights)
    assert gradient.isfinite().all()
    empty = torch.eye(5)[None, :1].requires_grad_()
    (gradient,) = torch.autograd.grad(sharpened(empty, torch.full((1, 1), 1.0))[0, 0, 1], empty)
    assert gradient.isfinite().all()
    assert gradient.abs().max() < 10


def test_weights_are_distributions() -> None:
    memory = build(shift_range=2)
    state = memory.unroll(3 * torch.randn(9, BATCH, FEATURES).double(), None, memory.initial_state(BATCH)).state
    for name in ("read_weights", "write_weights"):
        assert (state[name] >= 0).all()
        torch.testing.assert_close(state[name].sum(2), torch.ones(BATCH, 2).double())


def test_a_full_erase_and_an_addition_replace_the_slot_under_the_head() -> None:
    memory = build(read_heads=1, write_heads=1)
    state = memory.initial_state(1)
    state["memory"] = torch.randn(state["memory"].shape).double()
    state["write_weights"] = state["read_weights"] = torch.eye(6).double()[None, 2:3]
    with torch.no_grad():
        memory.interface.weight.zero_()
        stay = head(memory, 0, 0, -1e3, 1, 0)[0, 0]  # both heads move one to the right, whatever is there
        memory.interface.bias.copy_(torch.cat([stay, stay, torch.full((3,), 1e3), torch.tensor([0.1, 0.2, 0.3])]))
        step = memory(torch.randn(1, FEATURES).double(), state)
    new = torch.tensor([0.1, 0.2, 0.3]).double()
    torch.testing.assert_close(step.state["memory"][0, 3], new)
    others = [0, 1, 2, 4, 5]
    torch.testing.assert_close(step.state["memory"][0, others], state["memory"][0, others])
    torch.testing.assert_close(step.state["read_vectors"][0, 0], new)  # the read sees the write
    memory.read_first = True
    with torch.no_grad():
        step = memory(torch.randn(1, FEATURES).double(), state)
    torch.testing.assert_close(step.state["read_vectors"][0, 0], state["memory"][0, 3])


# How an episode begins


@pytest.mark.parametrize("memory_init", ["constant", "learned", "random"])
def test_the_memory_begins_as_asked(memory_init: str) -> None:
    memory = build(memory_init=memory_init)
    begin = memory.initial_state(3)["memory"]
    assert ("initial_memory" in dict(memory.named_parameters())) == (memory_init == "learned")
    assert "initial_memory" in memory.state_dict()
    if memory_init == "constant":
        assert torch.equal(begin, torch.full((3, 6, 3), 1e-6).double())
    else:
        assert begin.std() > 0.2
        assert torch.equal(begin[0], begin[2])


def test_a_memory_of_equal_slots_is_told_apart_from_the_first_step() -> None:
    """With equal slots and equal weights nothing could ever tell one slot from another."""
    memory = make_memory("ntm", input_size=FEATURES)
    step = memory(torch.randn(1, FEATURES), memory.initial_state(1))
    assert step.state["memory"].std(1).max() > 1e-5


@pytest.mark.parametrize(("controller", "thousands"), [("lstm", 10), ("feedforward", 2)])
def test_thousands_of_steps_stay_finite(controller: str, thousands: int) -> None:
    memory = build(controller=controller, read_heads=1, write_heads=1).float()
    with torch.inference_mode():
        state = memory.initial_state(1)
        for _ in range(thousands):
            state = memory.unroll(3 * torch.randn(1000, 1, FEATURES), None, state).state
            assert all(value.isfinite().all() for value in state.values())


def test_gradients_at_an_empty_memory_and_a_zero_key_are_finite() -> None:
    memory = build(controller="feedforward").float()
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter.zero_()
        memory.get_buffer("initial_memory").zero_()
    memory.unroll(torch.zeros(3, 1, FEATURES), None, memory.initial_state(1)).outputs.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in memory.parameters())


@pytest.mark.parametrize(("controller", "ours"), [("lstm", 65_696), ("feedforward", 16_096)])
def test_the_number_of_parameters_on_the_copy_task_is_known(controller: str, ours: int) -> None:
    """Tables 1 and 2 have 67,561 and 17,162; docs/memories/ntm.md says what is counted here."""
    memory = make_memory("ntm", input_size=9, output_size=8, controller=controller, memory_init="learned")
    assert sum(parameter.numel() for parameter in memory.parameters()) == ours


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"controller": "gru"}, "controller is 'gru'; it must be 'lstm' or 'feedforward'"),
        ({"memory_init": "zero"}, "memory_init is 'zero'"),
        ({"key_activation": "relu"}, "key_activation is 'relu'"),
        ({"read_heads": 0}, "read_heads is 0; it must be at least 1"),
        ({"slots": 4, "shift_range": 2}, "shift_range is 2; it must be in 0..1, so that 4 slots"),
        ({"shift_range": -1}, "shift_range is -1"),
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_memory("ntm", input_size=FEATURES, **options)
