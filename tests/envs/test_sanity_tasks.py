"""RepeatFirst and TMaze against plain forms of their rules, and the scores their docstrings promise."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from envs.repeat_first import RepeatFirst
from envs.tensor_env import TensorEnv
from envs.tmaze import TMaze

NORTH, EAST, SOUTH, WEST = range(4)
Policy = Callable[[torch.Tensor], torch.Tensor]


def returns(env: TensorEnv, policy: Policy, steps: int) -> torch.Tensor:
    """Returns of all episodes that end within `steps` steps of every copy."""
    obs, _ = env.reset(seed=0)
    running, ended = torch.zeros(env.num_envs), []
    for _ in range(steps):
        assert isinstance(obs, torch.Tensor)
        obs, reward, terminated, truncated, _ = env.step(policy(obs))
        running = running + reward
        over = terminated | truncated
        ended.append(running[over])
        running = running * ~over
    return torch.cat(ended)


# -- RepeatFirst -------------------------------------------------------------------------------------------------------


def test_repeat_first_follows_its_rules() -> None:
    env = RepeatFirst(32, length=5, symbols=3)
    obs, info = env.reset(seed=0)
    shown = []
    for step in range(40):
        start = step % 5 == 0
        symbol = obs[:, :3].argmax(1)
        if start:
            first = symbol
        shown.append(symbol)
        assert (obs[:, :3].sum(1) == 1).all()
        assert (obs[:, 3] == start).all()
        assert torch.equal(info["target"], first)
        assert (info["weight"] == 1).all()
        action = torch.randint(3, (32,), generator=torch.Generator().manual_seed(step))
        obs, reward, terminated, truncated, info = env.step(action)
        for index in range(32):
            assert reward[index].item() == pytest.approx(0.2 if action[index] == first[index] else 0.0)
        assert (terminated == (step % 5 == 4)).all()
        assert not truncated.any()
    counts = torch.stack(shown).flatten().bincount(minlength=3).float()
    assert ((counts - counts.mean()).abs() < 5 * counts.mean().sqrt()).all()


@pytest.mark.parametrize(("length", "symbols"), [(16, 4), (7, 2), (1, 3)])
def test_repeat_first_scores(length: int, symbols: int) -> None:
    env = RepeatFirst(4096, length=length, symbols=symbols)
    memory = torch.zeros(4096, dtype=torch.long)

    def remembers(obs: torch.Tensor) -> torch.Tensor:
        memory.copy_(torch.where(obs[:, -1] == 1, obs[:, :-1].argmax(1), memory))
        return memory

    assert returns(env, remembers, length).tolist() == pytest.approx([1.0] * 4096)
    without = (1 + (length - 1) / symbols) / length
    memoryless = returns(env, lambda obs: obs[:, :-1].argmax(1), length)
    assert memoryless.mean().item() == pytest.approx(without, abs=0.01)
    guess = returns(env, lambda obs: torch.zeros(len(obs), dtype=torch.long), length)
    assert guess.mean().item() == pytest.approx(1 / symbols, abs=0.03)


def test_repeat_first_text() -> None:
    env = RepeatFirst(length=3)
    env.reset(seed=0)
    env.first = env.symbol = torch.tensor([2])
    assert env.text() == "step 0/3: first C, now C, last answer -"
    env.step(torch.tensor([1]))
    assert env.text().startswith("step 1/3: first C, now ")
    assert env.text().endswith("last answer B")


@pytest.mark.parametrize("wrong", [{"length": 0}, {"symbols": 1}])
def test_repeat_first_arguments_out_of_range(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RepeatFirst(**wrong)


# -- TMaze -------------------------------------------------------------------------------------------------------------


class PlainTMaze:
    """One T-maze, in so many words."""

    def __init__(self, length: int, max_steps: int, north: bool) -> None:
        self.length, self.max_steps, self.north = length, max_steps, north
        self.position, self.steps, self.arm = 0, 0, ""

    def see(self) -> list[float]:
        if self.arm:
            return [0, 0, 0]
        if self.position == 0:
            return [0, 1, 1] if self.north else [1, 1, 0]
        return [0, 1, 0] if self.position == self.length else [1, 0, 1]

    def move(self, action: int) -> tuple[float, bool, bool]:
        self.steps += 1
        if self.position == self.length and action in (NORTH, SOUTH):
            self.arm = "north" if action == NORTH else "south"
            return (4.0 if (action == NORTH) == self.north else -0.1), True, False
        reward = 0.0
        if action == EAST and self.position < self.length:
            self.position += 1
        elif action == WEST and self.position > 0:
            self.position -= 1
        else:
            reward = -0.1
        return reward, False, self.steps == self.max_steps


@pytest.mark.parametrize(("length", "max_steps"), [(1, 2), (2, 5), (4, 60)])
def test_tmaze_follows_its_rules(length: int, max_steps: int) -> None:
    env = TMaze(16, length=length, max_steps=max_steps)
    obs, _ = env.reset(seed=0)

    def plain(observed: torch.Tensor) -> PlainTMaze:
        return PlainTMaze(length, max_steps, north=observed.tolist() == [0, 1, 1])

    copies = [plain(row) for row in obs]
    seen = {"terminated": 0, "truncated": 0, 4.0: 0, -0.1: 0}
    generator = torch.Generator().manual_seed(1)
    for _ in range(300):
        action = torch.randint(4, (16,), generator=generator)
        obs, reward, terminated, truncated, info = env.step(action)
        for index, copy in enumerate(copies):
            paid, ended, cut = copy.move(int(action[index]))
            assert reward[index].item() == pytest.approx(paid)
            assert (bool(terminated[index]), bool(truncated[index])) == (ended, cut)
            assert info["final_obs"][index].tolist() == copy.see()
            if ended or cut:
                copies[index] = plain(obs[index])
            assert obs[index].tolist() == copies[index].see()
            seen["terminated"] += ended
            seen["truncated"] += cut
            seen[paid] = seen.get(paid, 0) + 1
    assert min(seen.values()) > 10


def test_tmaze_scores() -> None:
    env, generator = TMaze(4096), torch.Generator().manual_seed(0)

    def blind(obs: torch.Tensor) -> torch.Tensor:
        at_junction = (obs == torch.tensor([0.0, 1.0, 0.0])).all(1)
        return torch.where(at_junction, NORTH, EAST)

    turn = torch.zeros(4096, dtype=torch.long)

    def remembers(obs: torch.Tensor) -> torch.Tensor:
        sign = (obs[:, 1] == 1) & (obs[:, 0] != obs[:, 2])
        turn.copy_(torch.where(sign, torch.where(obs[:, 0] == 0, NORTH, SOUTH), turn))
        going = blind(obs)
        return torch.where(going == EAST, going, turn)

    random = returns(env, lambda obs: torch.randint(4, (len(obs),), generator=generator), 100)
    assert random.mean().item() == pytest.approx(-4.65, abs=0.5)  # counts short episodes a little too often

    shortest = 11
    guessed = returns(env, blind, shortest)
    assert len(guessed) == 4096
    assert guessed.mean().item() == pytest.approx(1.95, abs=0.1)
    assert returns(env, remembers, shortest).tolist() == [4.0] * 4096


def test_tmaze_is_cut_after_max_steps() -> None:
    env = TMaze(3, length=2, max_steps=4)
    env.reset(seed=0)
    for step in range(1, 9):
        _, reward, terminated, truncated, _ = env.step(torch.tensor([WEST] * 3))
        assert reward.tolist() == pytest.approx([-0.1] * 3)
        assert not terminated.any()
        assert (truncated == (step % 4 == 0)).all()


def test_tmaze_a_decision_in_the_last_step_terminates() -> None:
    env = TMaze(2, length=2, max_steps=3)
    env.reset(seed=0)
    for action in (EAST, EAST, SOUTH):
        *_, terminated, truncated, _ = env.step(torch.full((2,), action))
    assert terminated.all()
    assert not truncated.any()


def test_tmaze_text() -> None:
    env = TMaze(length=2)
    env.reset(seed=0)
    env.place = torch.zeros(1, dtype=torch.long)
    env.autoreset = False
    assert env.text() == "  G\nA..\n  ."
    env.step(torch.tensor([EAST]))
    assert env.text() == "  G\n.A.\n  ."
    env.step(torch.tensor([EAST]))
    env.step(torch.tensor([SOUTH]))
    assert env.text() == "  G\n...\n  A"


@pytest.mark.parametrize("wrong", [{"length": 0}, {"max_steps": 10}])
def test_tmaze_arguments_out_of_range(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TMaze(**wrong)
