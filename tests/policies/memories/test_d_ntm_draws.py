"""D-NTM with discrete addressing: its draws, and its learning by REINFORCE."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from d_ntm_loops import BATCH, FEATURES, LENGTH, build
from torch import Tensor, nn

from policies.memories import make_memory
from policies.memories.d_ntm.memory import uniform
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

    address = memory.address

    def soft() -> float:
        """Share of the writes that go to more than one slot."""
        found: list[Tensor] = []

        def watched(*arguments: Any) -> Any:
            found.append(address(*arguments).weights)
            return address(*arguments)

        memory.address = watched  # type: ignore[method-assign]
        memory.unroll(xs, None, memory.initial_state(400))
        memory.address = address  # type: ignore[method-assign]
        return float((torch.stack(found[::2]).amax(3) < 0.999).double().mean())

    assert soft() == 1
    for _ in range(3):
        memory.unroll(xs[:, :2], None, memory.initial_state(2)).outputs.sum().backward()
    assert memory.get_buffer("updates") == 3
    assert "updates" in memory.state_dict()
    assert abs(soft() - 0.5) < 0.05  # 1 / sqrt(1 + 3)
    memory.deterministic = True
    assert soft() == 0


def test_the_gradient_through_a_draw_is_that_of_the_probabilities() -> None:
    memory = build(addressing="discrete", least_recently_used=False)
    xs = torch.randn(LENGTH, BATCH, FEATURES).double()
    outputs = memory.unroll(xs, None, memory.initial_state(BATCH)).outputs
    (gradient,) = torch.autograd.grad(outputs.square().sum(), memory.write_interface.weight)
    assert gradient.any()


def test_discrete_addressing_learns_by_the_straight_through_gradient() -> None:
    """Which of two symbols came first? A feed-forward controller can keep it in the slots only."""
    torch.manual_seed(0)
    memory = make_memory(
        "d-ntm",
        input_size=3,
        hidden_size=16,
        slots=4,
        word_size=6,
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
