"""D-NTM against its equations written as loops, and what its addressing means."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from d_ntm_loops import BATCH, COEFS, FEATURES, LENGTH, build, reference
from sequences import expect_same_with_gradients
from torch import Tensor

from policies.memories import make_memory
from policies.memories.d_ntm.memory import DNTM


@pytest.mark.parametrize(
    "options",
    [
        COEFS,
        {"controller": "feedforward", "num_layers": 2, "reading_steps": 2},
        {"num_layers": 2, "read_heads": 2, "write_heads": 2, "reading_steps": 3, **COEFS},
        {"no_operation": False, "least_recently_used": False},
        {"usage_decay": 0.6, "prediction": "bernoulli", **COEFS},
        {"addressing": "discrete", "read_heads": 2, "reading_steps": 2, **COEFS},
        {"addressing": "discrete", "draw_seed": 5},
        {"addressing": "discrete", "deterministic": True},
        {"addressing": "discrete", "curriculum": True, "draws_depend_on": "step"},
    ],
    ids=lambda options: " ".join(f"{key}={value}" for key, value in options.items() if key not in COEFS) or "default",
)
def test_d_ntm_is_the_papers_equations(options: dict[str, Any]) -> None:
    """Outputs, losses, final state, and the gradients of everything trained and of the inputs."""
    memory = build(**options)
    xs = torch.randn(LENGTH, BATCH, FEATURES).double()
    if memory.bernoulli:
        xs = xs.sigmoid().round()
    if memory.curriculum:
        memory.get_buffer("updates").fill_(3)  # half of the steps
    xs.requires_grad_()
    leaves = {"xs": xs, **dict(memory.named_parameters())}
    result = memory.unroll(xs, None, memory.initial_state(BATCH))
    ours = {"outputs": result.outputs, **result.losses, **{f"state {k}": v for k, v in result.state.items()}}
    paper = reference(memory, xs, memory.initial_state(BATCH))
    assert set(result.losses) == {
        name for name in ("entropy", "consistency", "prediction") if f"{name}_coef" in options
    }
    paper = {key: paper[key] for key in ours}
    expect_same_with_gradients(ours, paper, leaves)


# What addressing means


def go_to(memory: DNTM, slot: int, avoidance: float = -1e3) -> Tensor:
    """What a head is told so that it goes to the slot with this address, while the contents are empty."""
    key = F.pad(memory.addresses[slot].detach(), (0, memory.word_size))
    return torch.cat([key, torch.tensor([1e4, avoidance]).double()])[None]


def test_weights_are_distributions_and_no_operation_is_one_of_the_slots() -> None:
    memory = build()
    state = memory.unroll(torch.randn(5, BATCH, FEATURES).double(), None, memory.initial_state(BATCH)).state
    for name in ("read_weights", "write_weights"):
        assert state[name].shape[2] == memory.slots + 1
        torch.testing.assert_close(state[name].sum(2), torch.ones(BATCH, 1).double())


def test_no_operation_neither_writes_nor_reads() -> None:
    memory = build()
    with torch.no_grad():
        for interface in (memory.read_interface, memory.write_interface):
            interface.weight.zero_()
            interface.bias.copy_(go_to(memory, memory.slots)[0])
        step = memory(torch.randn(1, FEATURES).double(), memory.initial_state(1))
        torch.testing.assert_close(step.state["write_weights"][0, 0, -1], torch.tensor(1.0).double())
        assert step.state["contents"].abs().max() < 1e-6
        assert step.state["read_value"].abs().max() < 1e-6
        memory.write_interface.bias.copy_(go_to(memory, 2)[0])
        memory.candidate.bias.fill_(10.0)
        step = memory(torch.randn(1, FEATURES).double(), memory.initial_state(1))
    assert (step.state["contents"][0].sum(1) > 1).nonzero().flatten().tolist() == [2]


def test_what_was_lately_looked_for_is_avoided() -> None:
    memory = build()
    contents, usage = torch.zeros(1, 5, 3).double(), torch.zeros(1, 1, 6).double()
    told = go_to(memory, 1, avoidance=1e3)
    told[0, -2] = 5.0
    first = memory.address(told, contents, usage, None, None)
    again = memory.address(told, contents, first.usage, None, None)
    told[0, -1] = -1e3
    careless = memory.address(told, contents, first.usage, None, None)
    assert first.probabilities.argmax() == 1
    assert again.probabilities[0, 0, 1] < 0.5 * first.probabilities[0, 0, 1]
    torch.testing.assert_close(careless.probabilities, first.probabilities)


def test_addresses_never_change_within_an_episode_and_contents_begin_empty() -> None:
    memory = build()
    before = memory.addresses.detach().clone()
    assert memory.initial_state(2)["contents"].abs().max() == 0
    memory.unroll(torch.randn(5, BATCH, FEATURES).double(), None, memory.initial_state(BATCH))
    assert torch.equal(memory.addresses, before)


def test_more_reading_steps_run_the_controller_more_often() -> None:
    one, two = build(), build(reading_steps=2)
    two.load_state_dict(one.state_dict())
    x, state = torch.randn(1, FEATURES).double(), one.initial_state(1)
    h_one, h_two = one(x, state).state["hidden"], two(x, two.initial_state(1)).state["hidden"]
    assert not torch.allclose(h_one, h_two)
    first = one(x, state).state
    torch.testing.assert_close(two.controller[0](torch.cat([x, first["read_value"]], 1), h_one[:, 0]), h_two[:, 0])


# Robustness


@pytest.mark.parametrize("addressing", ["soft", "discrete"])
def test_a_thousand_steps_stay_finite(addressing: str) -> None:
    memory = build(addressing=addressing, **COEFS).float()
    with torch.no_grad():
        state = memory.initial_state(1)
        for _ in range(5):
            result = memory.unroll(3 * torch.randn(200, 1, FEATURES), None, state)
            state = result.state
            assert all(value.isfinite().all() for value in (*state.values(), *result.losses.values()))


def test_gradients_at_zero_are_finite() -> None:
    memory = build(addressing="discrete", **COEFS).float()
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter.zero_()
    result = memory.unroll(torch.zeros(3, 1, FEATURES), None, memory.initial_state(1))
    (result.outputs.sum() + sum(loss.sum() for loss in result.losses.values())).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in memory.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"controller": "lstm"}, "controller is 'lstm'; it must be 'gru' or 'feedforward'"),
        ({"addressing": "hard"}, "addressing is 'hard'; it must be 'soft' or 'discrete'"),
        ({"prediction": "l1"}, "prediction is 'l1'"),
        ({"draws_depend_on": "time"}, "draws_depend_on is 'time'"),
        ({"reading_steps": 0}, "reading_steps is 0; it must be at least 1"),
        ({"usage_decay": 1.5}, "usage_decay is 1.5; it must be in 0..1"),
        ({"curriculum": True}, "it needs addressing='discrete'"),
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_memory("d-ntm", input_size=FEATURES, **options)
