"""The maze against a slow, obvious form of its rules, its random draws, and the scores in its docstring."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from envs.maze import InvisibleGoalMaze

MOVES = {0: (-1, 0), 1: (1, 0), 2: (0, -1), 3: (0, 1)}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "mnm": {"episode_length": 251, "previous_action": False},
    "backpropamine": {"size": 11, "wall_penalty": 0.0, "goal_at_centre": False, "teleport_to_goal": False},
    "tiny": {"size": 3, "episode_length": 17, "wall_penalty": 0.5, "goal_reward": 2.0},
}


def plain_walls(size: int) -> set[tuple[int, int]]:
    side, centre = size + 2, size // 2 + 1
    return {
        (row, column)
        for row in range(side)
        for column in range(side)
        if (min(row, column) == 0 or max(row, column) == side - 1 or (row % 2 == 0 and column % 2 == 0))
        and (row, column) != (centre, centre)
    }


def places(env: InvisibleGoalMaze, cells: torch.Tensor) -> list[tuple[int, int]]:
    return [(int(row), int(column)) for row, column in env.free_cells[cells.numpy()]]


def number(env: InvisibleGoalMaze, row: int, column: int) -> int:
    return [tuple(place) for place in env.free_cells].index((row, column))


@pytest.mark.parametrize(("size", "free", "pillars"), [(3, 9, 0), (5, 21, 4), (7, 41, 8), (9, 65, 16), (11, 97, 24)])
def test_layout(size: int, free: int, pillars: int) -> None:
    env = InvisibleGoalMaze(size=size)
    assert {(int(row), int(column)) for row, column in np.argwhere(env.walls)} == plain_walls(size)
    assert len(env.free_cells) == free
    assert env.walls[1:-1, 1:-1].sum() == pillars
    assert tuple(env.free_cells[env.centre]) == (size // 2 + 1, size // 2 + 1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_step_follows_the_rules(variant: str) -> None:
    arguments = VARIANTS[variant]
    env = InvisibleGoalMaze(16, **arguments)
    env.autoreset = False  # so that the state after the last step can be seen
    walls = plain_walls(env.size)
    penalty, gain = arguments.get("wall_penalty", 0.1), arguments.get("goal_reward", 10.0)
    generator = torch.Generator().manual_seed(1)
    rewards: set[float] = set()
    for episode in range(8):
        obs, _ = env.reset(seed=episode)
        goals, agents = places(env, env.goal), places(env, env.cell)
        assert agents == [(env.size // 2 + 1,) * 2] * 16
        told = [(0.0, None)] * 16
        for step in range(env.episode_length + 1):
            for index, (row, column) in enumerate(agents):
                patch = [(row + i, column + j) in walls for i in (-1, 0, 1) for j in (-1, 0, 1)]
                reward, action = told[index]
                one_hot = [action == other for other in MOVES] if arguments.get("previous_action", True) else []
                expected = torch.tensor([*patch, step / env.episode_length, reward, *one_hot], dtype=torch.float32)
                assert torch.equal(obs[index], expected)
            if step == env.episode_length:
                break
            action = torch.randint(4, (16,), generator=generator)
            obs, reward, terminated, truncated, _ = env.step(action)
            assert bool(terminated.all()) == bool(terminated.any()) == (step + 1 == env.episode_length)
            assert not truncated.any()
            assert places(env, env.goal) == goals  # for the whole episode
            for index, place in enumerate(places(env, env.cell)):
                row, column = np.add(agents[index], MOVES[int(action[index])])
                bumped = (row, column) in walls
                there = agents[index] if bumped else (row, column)
                expected = -penalty * bumped + gain * (there == goals[index])
                assert reward[index].item() == pytest.approx(expected, abs=1e-6)
                if there == goals[index]:
                    assert place not in walls
                    assert arguments.get("teleport_to_goal", True) or place != goals[index]
                else:
                    assert place == there
                agents[index] = place
                told[index] = (reward[index].item(), int(action[index]))
                rewards.add(round(expected, 3))
    assert rewards >= {0.0, gain, -penalty}


def test_a_bump_on_the_goal_pays_both() -> None:
    env = InvisibleGoalMaze(2)
    env.reset(seed=0)
    corner = number(env, 1, 1)
    env.cell = env.goal = torch.full((2,), corner)
    obs, reward, *_ = env.step(torch.tensor([0, 3]))  # a wall above, free to the right
    assert reward.tolist() == pytest.approx([9.9, 0.0])
    assert obs[:, 10].tolist() == pytest.approx([9.9, 0.0])
    assert int(env.cell[1]) == number(env, 1, 2)


def uniform(draws: torch.Tensor, cells: int, without: int | None = None) -> None:
    """Chi-squared at about five standard deviations; seeds are fixed, so this passes always or never."""
    counts = np.bincount(draws.numpy(), minlength=cells).astype(float)
    if without is not None:
        assert counts[without] == 0
        counts = np.delete(counts, without)
    expected = counts.sum() / len(counts)
    freedom = len(counts) - 1
    assert ((counts - expected) ** 2 / expected).sum() < freedom + 5 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("allowed", [True, False])
def test_goals_and_teleports_are_uniform(allowed: bool) -> None:
    env = InvisibleGoalMaze(20_000, goal_at_centre=allowed, teleport_to_goal=allowed)
    env.reset(seed=0)
    uniform(env.goal, 65, None if allowed else env.centre)
    beside = number(env, 5, 6)
    env.goal = torch.full_like(env.goal, beside)
    _, reward, *_ = env.step(torch.full((20_000,), 3))
    assert (reward == 10).all()
    uniform(env.cell, 65, None if allowed else beside)


def test_goals_change_between_episodes_only_then() -> None:
    env = InvisibleGoalMaze(64, episode_length=5)
    env.reset(seed=0)
    goals = []
    for step in range(20):
        goals.append(env.goal.clone())
        env.step(torch.full((64,), step % 4))
    for step in range(1, 20):
        assert torch.equal(goals[step], goals[step - 1]) == (step % 5 != 0)


def test_the_goal_cannot_be_seen() -> None:
    env = InvisibleGoalMaze(65)
    env.reset(seed=0)
    env.goal = torch.arange(65)  # one copy for every goal, all with the same actions
    unrewarded = torch.ones(65, dtype=torch.bool)
    for action in (0, 0, 2, 1, 3, 3, 3, 1):
        obs, reward, *_ = env.step(torch.full((65,), action))
        unrewarded &= reward <= 0
        assert (obs[unrewarded] == obs[unrewarded][0]).all()
    assert 50 < unrewarded.sum() < 65


@pytest.mark.parametrize(
    "wrong", [{"size": 8}, {"size": 1}, {"episode_length": 0}, {"wall_penalty": -0.1}, {"goal_reward": 0.0}]
)
def test_arguments_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        InvisibleGoalMaze(**wrong)


def test_text() -> None:
    env = InvisibleGoalMaze(size=3)
    env.reset(seed=0)
    env.cell, env.goal = torch.tensor([0]), torch.tensor([5])
    assert env.text() == "#####\n#A..#\n#..G#\n#...#\n#####"
    env.goal = env.cell
    assert env.text() == "#####\n#@..#\n#...#\n#...#\n#####"


def expected_return(choose: Callable[..., Any], episode_length: int, penalty: float, apart: bool) -> float:
    """Mean return in the 9x9 maze, by exact backward recursion, of an agent that knows the goal and where it is.

    `choose` reduces the values of the four moves, along axis -1. `apart`: goal never in the centre, no throw onto it.
    """
    walls = plain_walls(9)
    free = sorted({(row, column) for row in range(11) for column in range(11)} - walls)
    beyond = [[tuple(np.add(place, move)) for move in MOVES.values()] for place in free]
    bump = np.array([[place in walls for place in row] for row in beyond])
    after = np.array(
        [[here if place in walls else free.index(place) for place in row] for here, row in enumerate(beyond)]
    )
    cells = np.arange(65)
    found = after == cells[:, None, None]  # [goal, cell, move]
    value = np.zeros((65, 65))  # [goal, cell]
    for _ in range(episode_length):
        thrown = (value.sum(1) - apart * value.diagonal()) / (65 - apart)
        onward = np.where(found, 10 + thrown[:, None, None], value[cells[:, None, None], after])
        value = choose(onward - penalty * bump, axis=-1)
    centre = free.index((5, 5))
    starts = np.delete(value[:, centre], centre) if apart else value[:, centre]
    return float(starts.mean())


SCORES = {  # arguments: uniform random, a walker without memory, knowing the goal
    "default": ({}, (200, 0.1, False), "| default          | 0.4            | 53             | 329.9 "),
    "mnm": (VARIANTS["mnm"], (251, 0.1, False), "| Miconi 2018, MNM | 0.2            | 15             | 414.1 "),
    "backpropamine": (
        {**VARIANTS["backpropamine"], "size": 9},
        (200, 0.0, True),
        "| `batch.py`, 9x9  | 7.7            | 54             | 324.2 ",
    ),
}


@pytest.mark.parametrize("variant", SCORES)
def test_scores_in_the_docstring(variant: str) -> None:
    arguments, setting, row = SCORES[variant]
    assert row in str(InvisibleGoalMaze.__doc__)
    random, walker, best = (float(score) for score in row.split("|")[2:])
    assert expected_return(np.mean, *setting) == pytest.approx(random, abs=0.05)
    assert expected_return(np.max, *setting) == pytest.approx(best, abs=0.05)

    copies = 1024
    env, generator = InvisibleGoalMaze(copies, **arguments), torch.Generator().manual_seed(0)
    obs, _ = env.reset(seed=1)
    walked, wandered = torch.zeros(copies), torch.zeros(copies)
    for _ in range(env.episode_length):
        obs, reward, *_ = env.step(straight_on(obs, generator))
        walked += reward
    assert walked.mean().item() == pytest.approx(walker, abs=4 * walked.std().item() / copies**0.5)
    for _ in range(env.episode_length):
        _, reward, *_ = env.step(torch.randint(4, (copies,), generator=generator))
        wandered += reward
    assert wandered.mean().item() == pytest.approx(random, abs=4 * wandered.std().item() / copies**0.5)


def straight_on(obs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Straight on where that is free and the last move known, else any free way, turning round last."""
    weight = (obs[:, [1, 7, 3, 5]] == 0).float()
    if obs.shape[1] == 15:
        last = obs[:, 11:]
        weight *= 1 + 1e6 * last - 0.999 * last[:, [1, 0, 3, 2]]
    return torch.multinomial(weight, 1, generator=generator).squeeze(1)
