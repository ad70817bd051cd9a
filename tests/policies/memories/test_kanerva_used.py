"""Kanerva++ as a policy's memory carries information, and training does not make it fall silent."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn import functional as F

from agents import PPO
from envs.maze import InvisibleGoalMaze
from policies.memories import make_memory
from policies.memories.contract import Memory, State
from policies.memories.kanerva.blocks import BlockKanerva
from policies.memories.kanerva.memory import KanervaMemory

SYMBOLS, LENGTH, BATCH = 4, 5, 32


def shown(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """RepeatFirst: symbols one-hot with a mark at the first, `[T, B, k + 1]`, and the first, `[B]`."""
    symbols = torch.randint(SYMBOLS, (LENGTH, BATCH), generator=generator)
    xs = torch.cat([F.one_hot(symbols, SYMBOLS), torch.zeros(LENGTH, BATCH, 1)], 2).float()
    xs[0, :, -1] = 1
    return xs, symbols[0]


def answers(memory: Memory, head: torch.nn.Linear, xs: Tensor, exchanged: bool = False) -> Tensor:
    """Answers to all steps but the first, `[T - 1, B, k]`, where nothing but the memory lives on between steps."""
    state: State = memory.initial_state(BATCH)
    outputs = []
    for x in xs:
        blank = {name: torch.zeros_like(value) for name, value in state.items()}
        kept = state["memory"].roll(1, 0) if exchanged else state["memory"]
        step = memory(x, {**blank, "memory": kept})
        state = step.state
        outputs.append(head(step.output))
    return torch.stack(outputs[1:])


def test_the_memory_alone_holds_the_first_symbol() -> None:
    """Without what the controller remembers 1 in 4 answers would be right, as with another episode's memory."""
    torch.manual_seed(0)
    memory = make_memory("kanerva++", input_size=SYMBOLS + 1, hidden_size=32, output_size=16)
    head = torch.nn.Linear(memory.output_size, SYMBOLS)
    adam = torch.optim.Adam([*memory.parameters(), *head.parameters()], lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        xs, target = shown(generator)
        said = answers(memory, head, xs)
        adam.zero_grad()
        F.cross_entropy(said.flatten(0, 1), target.repeat(LENGTH - 1)).backward()
        adam.step()
    xs, target = shown(generator)
    with torch.no_grad():
        own, other = ((answers(memory, head, xs, each).argmax(2) == target).float().mean() for each in (False, True))
    assert own > 0.95
    assert other < 0.6


def test_a_window_always_lies_on_part_of_what_was_written() -> None:
    """So that there is a gradient to both, wherever training moves them. It fails from a memory of 9 cells on."""
    memory = make_memory("kanerva++", input_size=3)
    assert isinstance(memory, KanervaMemory)
    form = memory.form
    assert isinstance(form, BlockKanerva)
    keys = torch.tensor([*itertools.product((-2.0, 0.0, 2.0), repeat=2)])
    weights = form.locate(keys.unsqueeze(0))[0]
    overlap = torch.einsum("xis,yjs->xy", weights, weights)
    assert overlap.min() > 1e-3


def test_what_is_read_varies_after_the_first_updates_of_a_training() -> None:
    """With the learning rate of the small maze, at which the readout of an earlier form became constant at once."""
    env = InvisibleGoalMaze(16, size=5, episode_length=50)
    model = PPO(
        "MemoryPolicy",
        env,
        policy_kwargs={"memory": "kanerva++"},
        seed=0,
        **{"learning_rate": 3e-3, "n_steps": 50, "n_epochs": 4, "n_minibatches": 4, "normalize_values": False},
        **{"gamma": 0.95, "ent_coef": 0.01, "reward_scale": 0.1, "clip_range": 0.5},
    )
    model.learn(6 * 16 * 50)
    memory = next(module for module in model.policy.modules() if isinstance(module, KanervaMemory))
    xs = torch.randn(40, 16, memory.form.controller.input_size - memory.form.read_size)
    with torch.no_grad():
        read = memory.unroll(xs, None, memory.initial_state(16)).outputs[..., memory.form.controller.hidden_size :]
    assert (read.std((0, 1)) > 1e-2).float().mean() > 0.5
