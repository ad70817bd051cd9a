"""Breaks a task's error down by the groups that `TensorEnv.answer_groups` assigns to its answers."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from agents.scale.devices import widest
from envs.tensor_env import AnswerGroup, Info, TensorEnv

_ROWS = 10  # maximum for a group without labels; with more numbers, each row covers several


class Row(NamedTuple):
    """The answers of one group."""

    label: str
    score: float
    """Mean of the task's score (`TensorEnv.grouped_metric`) over these answers."""
    answers: int
    """Number of answers."""


class Breakdown:
    """Accumulates a task's score by group during an evaluation; pass it to `agents.evaluation.evaluate`.

    Args:
        env: the environment that will be played.

    Raises:
        ValueError: its answers cannot be grouped.
    """

    def __init__(self, env: TensorEnv) -> None:
        if not env.groups_answers or env.horizon is None:
            raise ValueError(
                "this environment does not define answer_groups, by which errors are grouped; tasks of envs/tasks/ do "
                "if their sequences are generated at reset"
            )
        self.metric, self.horizon = env.grouped_metric, env.horizon
        self.groups: dict[str, AnswerGroup] = {}
        self.sums: dict[str, Tensor] = {}  # by group, [3, numbers]: score, its unit, and count of answers

    def begin(self, env: TensorEnv) -> None:
        """Called when an episode begins in all environments."""
        self.groups = env.answer_groups()
        for name, group in self.groups.items():
            numbers = max(int(group.number.max()) + 1, len(group.labels))
            old = self.sums.get(name, torch.zeros(3, 0, dtype=widest(env.device), device=env.device))
            self.sums[name] = torch.nn.functional.pad(old, (0, max(0, numbers - old.shape[1])))

    def add(self, info: Info, step: int, counted: Tensor) -> None:
        """Adds step `step` of the episode for the environments where `counted` (bool `[N]`) is true."""
        amount, unit = (part.to(widest(part.device)).where(counted, 0.0) for part in info["metrics"][self.metric])
        terms = torch.stack([amount, unit, (unit > 0).to(unit.dtype)])
        for name, group in self.groups.items():
            self.sums[name].index_add_(1, group.number[step], terms)

    def tables(self) -> dict[str, list[Row]]:
        """The rows of each group by name; groups with a single row are left out."""
        tables = {}
        for name, sums in self.sums.items():
            labels = self.groups[name].labels
            occurring = sums[1].nonzero()[:, 0].tolist()
            if len(occurring) < 2:
                continue
            least, most = occurring[0], occurring[-1]
            width = 1 if labels else math.ceil((most - least + 1) / _ROWS)
            rows = []
            for first in range(least, most + 1, width):
                last = min(first + width - 1, most)
                amount, unit, answers = sums[:, first : last + 1].sum(1).tolist()
                number = f"{first}" if first == last else f"{first} to {last}"
                if unit:
                    rows.append(Row(labels[first] if labels else number, amount / unit, int(answers)))
            tables[name] = rows
        return tables
