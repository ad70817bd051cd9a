"""Ablation: which rows there are, and the sentence on whether the memory is used."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from agents import PPO
from agents.evaluation.ablation import EXCHANGED, INTACT, ablate, conclusion, print_ablation
from agents.evaluation.scores import Score
from envs.repeat_first import RepeatFirst


def score(mean: float, ci95: float = 3.0) -> Score:
    return Score(mean, ci95, 10.0, 64, 20.0)


def test_every_row_is_played_under_its_control() -> None:
    kwargs = {"memory": "gru", "memory_kwargs": {"hidden_size": 4}}
    model = PPO("MemoryPolicy", RepeatFirst(2, length=4), seed=0, device="cpu", policy_kwargs=kwargs)
    controls = []

    def play() -> Score:
        altered: Any = model.policy.remember
        controls.append((altered.control, altered.steps))
        return score(1.0)

    found = ablate(model.policy, score(2.0), 2, 8, play)
    assert list(found) == [
        INTACT, "frozen after 10 steps", "frozen from the start",
        "reset every 8 steps", "reset at every step", EXCHANGED,
    ]  # fmt: skip
    assert controls == [("frozen", 10), ("frozen", 0), ("reset", 8), ("reset", 1), ("exchanged", 0)]
    assert "remember" not in vars(model.policy)
    assert EXCHANGED not in ablate(model.policy, score(2.0), 1, 8, play)  # nobody to exchange with
    assert "reset every 1 steps" not in ablate(model.policy, score(2.0), 2, 1, play)


@pytest.mark.parametrize(
    ("own", "other", "words"),
    [
        (score(20.0), score(10.0), "The memory is used: with another episode's memory the return falls by 10.000"),
        (score(20.0), score(17.0), "No use of the memory was shown: .* changes by -3.000, within ± 4.243"),
        (score(20.0), score(30.0), "No use of the memory was shown: .* changes by \\+10.000"),
        (score(20.0), score(20.0), "No use of the memory was shown: .* changes by \\+0.000"),
        (score(20.0, math.nan), score(10.0, math.nan), "One episode gives no interval"),
    ],
)
def test_the_sentence_compares_intervals(own: Score, other: Score, words: str) -> None:
    from re import search

    assert search(words, conclusion({INTACT: own, "reset at every step": score(0.0), EXCHANGED: other}))


def test_the_table_of_a_task_with_many_parts_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    parts = {f"error_qa{task}": 50.0 for task in range(1, 21)}
    score = Score.of(np.array([0.25, 0.5]), np.array([4, 4]), {"error": 41.5, "sequence_error": 0.5, **parts})
    print_ablation(Console(width=80), "gru", {INTACT: score, "reset at every step": score})
    said = capsys.readouterr().out
    assert "41.5" in said
    assert "sequence_error" in said
    assert "qa1" not in said
    assert "evaluation.json" in said
