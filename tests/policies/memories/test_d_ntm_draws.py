"""D-NTM with discrete addressing: its draws, and its learning by REINFORCE."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from d_ntm_loops import BATCH, FEATURES, LENGTH, build
from torch import Tensor, nn

from policies.memories import make_memory
from policies.memories.d_ntm.memory import uniform
from policies.memories.d_ntm.reinforce import AddressReinforce, unroll_addresses
from policies.memories.shared.noise import fingerprint, next_seed

# Draws


def test_uniform_numbers_are_uniform_and_independent() -> None:
    seed, numbers = torch.zeros(500), []
    for x in torch.randn(40, 500, FEATURES):
        seed = next_seed(seed, fingerprint(x))
        numbers.append(uniform(seed, 10))
    u = torch.stack(numbers)
    assert u.dtype == torch.float32
    assert u.min() > 0
    assert u.max() < 1
    counts = u.histc(10, 0, 1)
    assert (counts - 20_000).abs().max() < 4 * 20_000**0.5
    assert (u.flatten(0, 1).T.corrcoef() - torch.eye(10)).abs().max() < 0.03
    assert torch.stack([u[1:].flatten(), u[:-1].flatten()]).corrcoef()[0, 1].abs() < 0.01
    extreme = uniform(torch.arange(2.0**17), 32)
    assert (-(-extreme.log()).log()).isfinite().all()


def test_slots_are_drawn_with_their_probabilities() -> None:
    memory = build(addressing="discrete")
    seed = next_seed(torch.zeros(20_000).double(), fingerprint(torch.randn(20_000, 2)))
    told = torch.randn(1, 7).double().expand(20_000, -1)
    contents, usage = torch.zeros(20_000, 5, 3).double(), torch.zeros(20_000, 1, 6).double()
    drawn = memory.address(told, contents, usage, uniform(seed, 6), None)
    frequencies, expected = drawn.weights.mean((0, 1)), drawn.probabilities[0, 0]
    assert (frequencies - expected).abs().max() < 4 * (0.25 / 20_000) ** 0.5
    torch.testing.assert_close(drawn.log_prob, (drawn.weights * drawn.probabilities).sum((1, 2)).log())
    memory.deterministic = True
    likeliest = memory.address(told, contents, usage, uniform(seed, 6), None).weights
    assert torch.equal(likeliest[0, 0].argmax(), expected.argmax())
    assert torch.equal(likeliest, likeliest[:1].expand_as(likeliest))


def test_a_replay_draws_the_same_in_any_batch_and_another_seed_draws_others() -> None:
    memory, other = build(addressing="discrete"), build(addressing="discrete", draw_seed=1)
    xs, starts = torch.randn(30, 4, FEATURES).double(), torch.rand(30, 4) < 0.2
    whole = memory.unroll(xs, starts, memory.initial_state(4)).outputs
    part = memory.unroll(xs[:, [2]], starts[:, [2]], memory.initial_state(1)).outputs
    torch.testing.assert_close(part[:, 0], whole[:, 2])
    assert not torch.allclose(other.unroll(xs, starts, other.initial_state(4)).outputs, whole)


def test_draws_depend_on_the_history_or_on_the_step_alone() -> None:
    xs = torch.randn(3, 2, FEATURES).double()
    for depend, same in (("history", False), ("step", True)):
        memory = build(addressing="discrete", draws_depend_on=depend)
        seeds = memory.unroll(xs, None, memory.initial_state(2)).state["seed"]
        assert bool(seeds[0] == seeds[1]) == same


def test_the_curriculum_counts_training_steps_and_goes_from_soft_to_discrete() -> None:
    memory = build(addressing="discrete", curriculum=True)
    xs = torch.randn(4, 400, FEATURES).double()

    def soft() -> float:
        log_probs = unroll_addresses(memory, xs, None, memory.initial_state(400))[1]
        return float((log_probs == 0).double().mean())

    assert soft() == 1
    for _ in range(3):
        memory.unroll(xs[:, :2], None, memory.initial_state(2)).outputs.sum().backward()
    assert memory.get_buffer("updates") == 3
    assert "updates" in memory.state_dict()
    assert abs(soft() - 0.5) < 0.05  # 1 / sqrt(1 + 3)
    memory.deterministic = True
    assert soft() == 0


# REINFORCE


def test_reinforce_sends_no_gradient_through_the_draw_and_straight_through_does() -> None:
    xs = torch.randn(LENGTH, BATCH, FEATURES).double()
    for estimator, reached in (("reinforce", False), ("straight-through", True)):
        memory = build(addressing="discrete", estimator=estimator, least_recently_used=False)
        unrolled, log_probs = unroll_addresses(memory, xs, None, memory.initial_state(BATCH))
        (gradient,) = torch.autograd.grad(
            unrolled.outputs.square().sum(),
            memory.write_interface.weight,
            retain_graph=True,
            materialize_grads=True,
            allow_unused=True,
        )
        assert bool(gradient.any()) == reached
        assert torch.autograd.grad(log_probs.sum(), memory.write_interface.weight)[0].any()


def test_unroll_addresses_is_unroll() -> None:
    memory = build(addressing="discrete")
    xs, starts = torch.randn(6, 3, FEATURES).double(), torch.rand(6, 3) < 0.3
    expected = memory.unroll(xs, starts, memory.initial_state(3))
    unrolled, log_probs = unroll_addresses(memory, xs, starts, memory.initial_state(3))
    assert torch.equal(unrolled.outputs, expected.outputs)
    assert log_probs.shape == (6, 3)
    assert torch.equal(log_probs[-1], expected.state["log_prob"])


def test_returns_are_centred_scaled_and_compared_with_the_baseline() -> None:
    reinforce = AddressReinforce(2, coef=0.5, decay=0.9, huber_delta=1.0).double()
    with torch.no_grad():
        reinforce.baseline.weight.zero_()
        reinforce.baseline.bias.fill_(0.25)
    returns = torch.tensor([[1.0, 3.0], [5.0, 11.0]]).double()
    log_probs = torch.tensor([[-1.0, -2.0], [-0.5, -0.1]]).double().requires_grad_()
    outputs = torch.randn(2, 2, 2).double().requires_grad_()
    terms = reinforce(returns, log_probs, outputs)
    scaled = (returns - 5) / (14 + 1e-6) ** 0.5  # the first averages are the batch's own
    error = scaled - 0.25
    torch.testing.assert_close(terms["policy"], -0.5 * error * log_probs)
    torch.testing.assert_close(terms["baseline"], torch.where(error.abs() <= 1, error**2, 2 * error.abs() - 1))
    assert (error.abs() > 1).any()
    assert (error.abs() < 1).any()
    sum(term.sum() for term in terms.values()).backward()
    torch.testing.assert_close(log_probs.grad, -0.5 * error)
    assert outputs.grad is None
    assert reinforce.baseline.bias.grad is not None
    reinforce(returns + 10, log_probs, outputs)
    mean = 0.9 * 0.5 + 0.1 * 15
    torch.testing.assert_close(reinforce.mean, torch.tensor(mean).double())
    spread = 14 + (15 - mean / (1 - 0.81)) ** 2
    torch.testing.assert_close(reinforce.variance, torch.tensor(0.9 * 1.4 + 0.1 * spread).double())


def test_reinforce_learns_where_to_write_without_any_other_gradient() -> None:
    """The return of a step is 1 where the slot drawn for writing is the one the input names; chance is 1/3."""
    torch.manual_seed(0)
    memory = make_memory(
        "d-ntm",
        input_size=2,
        hidden_size=16,
        memory_size=2,
        content_size=2,
        address_size=2,
        controller="feedforward",
        addressing="discrete",
        estimator="reinforce",
        entropy_coef=1e-3,
        least_recently_used=False,
    )
    reinforce = AddressReinforce(memory.output_size)
    optimizer = torch.optim.Adam([*memory.parameters(), *reinforce.parameters()], lr=1e-2)
    written: list[Tensor] = []
    address, hits = memory.address, []

    def watched(*arguments: Any) -> Any:
        found = address(*arguments)
        written.append(found.weights)
        return found

    memory.address = watched  # type: ignore[method-assign]
    for _ in range(120):
        written.clear()
        asked = torch.randint(2, (2, 64))
        noisy = F.one_hot(asked, 2).float() + 0.02 * torch.randn(2, 64, 2)  # new histories, new draws
        unrolled, log_probs = unroll_addresses(memory, noisy, None, memory.initial_state(64))
        slots = torch.stack(written[::2])[:, :, 0].argmax(2)  # a write, then a read
        returns = (slots == asked).float()
        terms = {**reinforce(returns, log_probs, unrolled.outputs), **unrolled.losses}
        optimizer.zero_grad()
        sum(term.mean() for term in terms.values()).backward()
        optimizer.step()
        hits.append(float(returns.mean()))
    assert sum(hits[:5]) / 5 < 0.55
    assert sum(hits[-5:]) / 5 > 0.85


def test_discrete_addressing_learns_by_the_straight_through_gradient() -> None:
    """Which of two symbols came first? A feed-forward controller can keep it in the slots only."""
    torch.manual_seed(0)
    memory = make_memory(
        "d-ntm",
        input_size=3,
        hidden_size=16,
        memory_size=4,
        content_size=6,
        address_size=4,
        controller="feedforward",
        addressing="discrete",
    )
    head = nn.Linear(memory.output_size, 2)
    optimizer = torch.optim.Adam([*memory.parameters(), *head.parameters()], lr=1e-2)

    def play(episodes: int) -> tuple[Tensor, Tensor]:
        shown = torch.randint(2, (4, episodes))
        xs = F.one_hot(shown, 3).float()
        xs[0, :, 2] = 1
        return shown[0], head(memory.unroll(xs, None, memory.initial_state(episodes)).outputs)

    for _ in range(150):
        first, logits = play(32)
        optimizer.zero_grad()
        F.cross_entropy(logits.flatten(0, 1), first.repeat(4)).backward()
        optimizer.step()
    memory.deterministic = True
    first, logits = play(400)
    assert (logits[-1].argmax(1) == first).double().mean() > 0.9
