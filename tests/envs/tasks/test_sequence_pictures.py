"""Texts and frames of the sequence tasks show what was shown, asked and said."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from envs.rendering import RIGHT, WRONG
from envs.tasks.sequence.associative_recall import AssociativeRecall
from envs.tasks.sequence.base import SequenceTask
from envs.tasks.sequence.copy import Copy
from envs.tasks.sequence.dictionary_inference import DictionaryInference
from envs.tasks.sequence.double_copy import DoubleCopy
from envs.tasks.sequence.dynamic_ngrams import DynamicNGrams
from envs.tasks.sequence.priority_sort import PrioritySort
from envs.tasks.sequence.stack_grammar import StackGrammar


def amount(frame: np.ndarray, colour: tuple[int, int, int]) -> int:
    """How many pixels are of a colour; scaling a picture down shifts it by a little."""
    return int((abs(frame.astype(int) - np.array(colour)) <= 4).all(2).sum())


def test_text_of_bits() -> None:
    env = Copy(2, min_length=2, max_length=2, bits=2, render_mode="rgb_array")
    env.autoreset = False
    env.reset(seed=0)
    env.inputs[:2, 1, :2] = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    env.targets[3:, 1] = torch.tensor([[1, 0], [1, 1]], dtype=torch.int8)
    assert env.text(1) == "step 0 / 5\nshown |#\n      |.\n      |.\nright |\n      |\nanswer|\n      |"
    for action in ([0, 0], [1, 1], [0, 1], [1, 1], [1, 1]):
        env.step(torch.tensor([[0, 0], action]))
    assert env.text(1).splitlines() == [
        "step 5 / 5",
        "shown |##...",
        "      |.#...",
        "      |..#..",
        "right |   ##",
        "      |   .#",
        "answer|   ##",
        "      |   !#",
    ]


def test_text_of_numbers() -> None:
    env = PrioritySort(1, min_length=2, max_length=2, bits=1)
    env.reset(seed=0)
    env.inputs[:2, 0, 1] = torch.tensor([-0.5, 0.5])
    env.step(torch.zeros(1, 1))
    assert env.text().splitlines()[2] == "      |-+"


def test_text_of_symbols() -> None:
    env = StackGrammar(1, n_min=2, n_max=2, length=8, render_mode="rgb_array")
    env.autoreset = False
    env.reset(seed=0)
    assert env.text() == "step 0 / 8\nshown |a\nright |\nanswer|\nwrong |"
    for symbol in (0, 1, 1, 1, 0, 1, 1, 0):
        env.step(torch.tensor([symbol]))
    assert env.text().splitlines() == [
        "step 8 / 8",
        "shown |aabbaabb",
        "right |  ba  ba",
        "answer|  bb  ba",
        "wrong |   !    ",
    ]


@pytest.mark.parametrize(
    "make",
    [
        lambda **kwargs: Copy(min_length=20, **kwargs),
        lambda **kwargs: DynamicNGrams(length=60, **kwargs),
        lambda **kwargs: PrioritySort(grid=True, **kwargs),
        lambda **kwargs: AssociativeRecall(grid=True, **kwargs),
        lambda **kwargs: DoubleCopy(min_length=4, max_length=4, **kwargs),
        lambda **kwargs: DictionaryInference(**kwargs),
    ],
)
def test_frames_mark_right_and_wrong(make: type[SequenceTask]) -> None:
    def last_frame(answer: str) -> np.ndarray:
        env: SequenceTask = make(render_mode="rgb_array")
        env.autoreset = False
        env.reset(seed=2)
        shapes = {env.frame().shape}
        for step in range(env.length):
            target = env.targets[step]
            wrong = 1 - target if target.dtype == torch.int8 else (target + 1) % 10
            env.step(target if answer == "right" else wrong)
            if step in (0, env.length // 2):
                shapes.add(env.frame().shape)
        frame = env.frame()
        assert shapes == {frame.shape}
        return frame

    right, wrong = last_frame("right"), last_frame("wrong")
    assert amount(right, RIGHT) > amount(wrong, RIGHT)  # symbols shown may have these colours too
    assert amount(right, WRONG) < amount(wrong, WRONG)


def test_long_episodes_scroll() -> None:
    env = DictionaryInference(k=16, l=12, render_mode="rgb_array")
    env.reset(seed=0)
    frames = []
    for step in range(env.length - 1):
        env.step(torch.zeros(1, dtype=torch.long))
        if step + 1 in (36 * 6 - 1, 36 * 6):
            frames.append(env.frame())
    assert frames[0].shape == frames[1].shape
    top = slice(16, 16 + 24)  # the first line of tiles: gone once the seventh begins
    assert (frames[0][top] != frames[1][top]).any()


def test_answers_are_kept_for_pictures_only() -> None:
    quiet, drawn = DoubleCopy(2), DoubleCopy(2, render_mode="rgb_array")
    for env in (quiet, drawn):
        env.reset(seed=0)
        for _ in range(80):
            env.step(env.targets[env._elapsed])
    assert len(quiet._answers) == 0
    assert len(drawn._answers) == 80
    assert quiet.text(1).splitlines()[:3] == drawn.text(1).splitlines()[:3]
    assert quiet.text(1).splitlines()[3].strip() == "answer|"
    assert quiet.frame(1).shape == drawn.frame(1).shape

    resumed = DoubleCopy(2, render_mode="rgb_array")
    resumed.load_state_dict(drawn.state_dict())
    said = drawn.text(1).splitlines()[3]
    assert resumed.text(1).splitlines()[3].strip() == "answer|"  # the answers were not saved
    resumed.step(resumed.targets[80])
    drawn.step(drawn.targets[80])
    assert resumed.text(1).splitlines()[3][:-1].strip() == "answer|"
    assert drawn.text(1).splitlines()[3] == said + resumed.text(1).splitlines()[3][-1]

    for _ in range(drawn.length - 81):
        drawn.step(drawn.targets[drawn._elapsed])
    assert len(drawn._answers) == 0  # a new episode


def test_actions_have_the_symbols_names() -> None:
    assert StackGrammar(grammar="addition").action_names == ("0", "1", "+", "=", ".")
    assert DoubleCopy(symbols=3).action_names == ("A", "B", "C")
    assert len(DictionaryInference().action_names) == 26
