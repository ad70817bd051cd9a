"""Lessons of the graph tasks, from small graphs to large ones, and a curriculum that advances on the device.

Lessons are numbered from 1. From the paper (Graves et al., Nature 2016, methods and extended data tables 3 to 5): a
lesson is passed at 90 %, 10 % of the samples come from earlier lessons, the numbers of lessons, and the last lesson of
traversal. The other sizes are ours: a progression towards graphs that fit into the paper's memories (one triple per
row; 256 rows, 128 in the other two tasks).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

REHEARSED = 0.1
"""Share of the episodes that come from earlier lessons."""


class Lesson(NamedTuple):
    """Ranges for an episode's graph and question, both ends included."""

    nodes: tuple[int, int]
    """Number of nodes; the minimum exceeds the greatest out-degree."""
    degree: tuple[int, int]
    """Edges out of a node, drawn for each."""
    path: tuple[int, int]
    """Edges of the queried path."""
    relations: int = 100
    """Inference only: number of queried relations of the greatest length; of shorter ones all 100 are queried."""


TRAVERSAL = (
    Lesson((3, 5), (1, 2), (1, 1)),
    Lesson((3, 7), (1, 2), (1, 2)),
    Lesson((4, 8), (1, 3), (1, 2)),
    Lesson((4, 10), (1, 3), (1, 3)),
    Lesson((5, 12), (1, 3), (1, 4)),
    Lesson((5, 14), (2, 4), (1, 5)),
    Lesson((6, 16), (2, 4), (1, 6)),
    Lesson((6, 18), (2, 4), (1, 8)),
    Lesson((7, 20), (2, 5), (1, 10)),
    Lesson((8, 24), (2, 5), (1, 12)),
    Lesson((8, 28), (2, 5), (1, 14)),
    Lesson((9, 32), (2, 6), (1, 16)),
    Lesson((10, 36), (2, 6), (1, 18)),
    Lesson((10, 40), (2, 6), (1, 20)),
)
INFERENCE = (
    Lesson((3, 4), (2, 2), (2, 2), 5),
    Lesson((3, 6), (2, 2), (2, 2), 10),
    Lesson((4, 8), (2, 3), (2, 2), 20),
    Lesson((5, 10), (2, 3), (2, 2), 50),
    Lesson((5, 10), (2, 3), (2, 2)),
    Lesson((5, 10), (2, 3), (2, 3), 20),
    Lesson((5, 10), (2, 3), (2, 3), 50),
    Lesson((6, 12), (2, 3), (2, 3)),
    Lesson((6, 12), (2, 4), (2, 3)),
    Lesson((6, 12), (2, 4), (2, 4), 20),
    Lesson((6, 12), (2, 4), (2, 4), 50),
    Lesson((8, 14), (2, 4), (2, 4)),
    Lesson((8, 16), (2, 4), (2, 4)),
    Lesson((8, 16), (2, 4), (2, 5), 20),
    Lesson((8, 16), (2, 4), (2, 5), 50),
    Lesson((10, 18), (2, 5), (2, 5)),
    Lesson((10, 20), (2, 5), (2, 5)),
)
SHORTEST_PATH = (
    Lesson((3, 5), (1, 2), (1, 1)),
    Lesson((3, 6), (1, 2), (1, 2)),
    Lesson((4, 8), (1, 2), (1, 2)),
    Lesson((4, 8), (1, 3), (1, 2)),
    Lesson((5, 10), (1, 3), (1, 3)),
    Lesson((5, 10), (2, 3), (1, 3)),
    Lesson((6, 12), (2, 3), (1, 3)),
    Lesson((6, 12), (2, 3), (2, 4)),
    Lesson((7, 14), (2, 3), (2, 4)),
    Lesson((8, 16), (2, 3), (2, 4)),
    Lesson((8, 16), (2, 4), (2, 4)),
    Lesson((10, 18), (2, 4), (2, 5)),
    Lesson((10, 20), (2, 4), (2, 5)),
    Lesson((10, 20), (2, 4), (3, 5)),
    Lesson((10, 20), (2, 4), (3, 6)),
)


class Progress(NamedTuple):
    """Progress of a curriculum: int64 scalars."""

    level: Tensor
    """The current lesson."""
    tried: Tensor
    """Episodes of it since the last decision."""
    passed: Tensor
    """Number of those answered without an error."""


def draw_lessons(level: Tensor, chances: Tensor) -> Tensor:
    """Draws the lessons of N episodes `[N]`: the current one, or with probability `REHEARSED` an earlier one.

    Args:
        level: the current lesson, int64 without dimensions.
        chances: random numbers from 0 to 1, `[2, N]`.
    """
    before = (level - 1).clamp(min=1)
    earlier = torch.minimum(1 + (chances[1] * before).long(), before)
    return torch.where((chances[0] < REHEARSED) & (level > 1), earlier, level)


def advance(
    progress: Progress, lesson: Tensor, right: Tensor, pass_mark: float, window: int, last_lesson: int
) -> Progress:
    """Counts ended episodes. After `window` episodes of the current lesson, advances if enough were right.

    Args:
        progress: so far.
        lesson: of the ended episodes, `[N]`.
        right: whether they were answered without an error, bool `[N]`.
        pass_mark: required share of right episodes.
        window: minimum number of episodes of the current lesson between decisions.
        last_lesson: the final lesson.
    """
    present = lesson == progress.level
    tried, passed = progress.tried + present.sum(), progress.passed + (present & right).sum()
    due = tried >= window
    moves = due & (passed >= pass_mark * tried) & (progress.level < last_lesson)
    return Progress(progress.level + moves, tried * ~due, passed * ~due)
