"""Lessons, and the curriculum that moves through them."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from envs.tasks.graphs.base import GraphTask
from envs.tasks.graphs.curricula import INFERENCE, SHORTEST_PATH, TRAVERSAL, Lesson, Progress, advance, draw_lessons
from envs.tasks.graphs.inference import GraphInference
from envs.tasks.graphs.shortest_path import ShortestPath
from envs.tasks.graphs.traversal import GraphTraversal


def test_lessons_are_as_many_as_in_the_paper_and_never_become_smaller() -> None:
    assert [len(table) for table in (TRAVERSAL, INFERENCE, SHORTEST_PATH)] == [14, 17, 15]
    assert TRAVERSAL[-1] == Lesson((10, 40), (2, 6), (1, 20))
    assert INFERENCE[-1].path == (2, 5)
    for table in (TRAVERSAL, INFERENCE, SHORTEST_PATH):
        for lesson, following in pairwise(table):
            assert lesson.nodes[0] <= following.nodes[0]
            assert lesson.nodes[1] <= following.nodes[1]
            assert lesson.degree[1] <= following.degree[1]
            assert lesson.path[1] <= following.path[1]
            assert lesson != following
        for lesson in table:
            assert lesson.nodes[0] > lesson.degree[1]  # so many neighbours there must be
            assert 1 <= lesson.degree[0] <= lesson.degree[1]
            assert 1 <= lesson.path[0] <= lesson.path[1]
    assert all(lesson.degree[0] >= 2 for lesson in INFERENCE)  # or a relation's path could get stuck
    assert all(lesson.nodes[1] * lesson.degree[1] <= 240 for lesson in TRAVERSAL)  # rows in the paper's memories
    assert all(lesson.nodes[1] * lesson.degree[1] <= 120 for lesson in INFERENCE + SHORTEST_PATH)


def test_one_in_ten_is_of_an_earlier_lesson() -> None:
    chances = torch.rand(2, 40000, generator=torch.Generator().manual_seed(0))
    drawn = draw_lessons(torch.tensor(5), chances)
    shares = drawn.bincount(minlength=6) / 40000
    assert shares.tolist() == pytest.approx([0, 0.025, 0.025, 0.025, 0.025, 0.9], abs=0.005)
    assert (draw_lessons(torch.tensor(1), chances) == 1).all()
    assert set(draw_lessons(torch.tensor(2), chances).tolist()) == {1, 2}


def numbers(level: int, tried: int, passed: int) -> Progress:
    return Progress(*(torch.tensor(number) for number in (level, tried, passed)))


@pytest.mark.parametrize(
    ("lessons", "right", "expected"),
    [
        ([2, 2, 2], [1, 1, 0], (2, 7, 6)),  # not enough yet
        ([2, 2, 2, 2, 2, 2], [1, 1, 1, 1, 1, 1], (3, 0, 0)),  # 10 of 10
        ([2, 2, 2, 2, 2, 2], [1, 1, 1, 1, 1, 0], (3, 0, 0)),  # 9 of 10
        ([2, 2, 2, 2, 2, 2], [1, 1, 1, 1, 0, 0], (2, 0, 0)),  # 8 of 10: once more
        ([1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], (2, 4, 4)),  # earlier lessons do not count
    ],
)
def test_a_lesson_is_passed_at_the_pass_mark(lessons: list[int], right: list[int], expected: tuple[int, ...]) -> None:
    after = advance(numbers(2, 4, 4), torch.tensor(lessons), torch.tensor(right).bool(), 0.9, 10, 5)
    assert tuple(number.item() for number in after) == expected


def test_nothing_comes_after_the_last_lesson() -> None:
    after = advance(numbers(5, 9, 9), torch.tensor([5, 5]), torch.tensor([True, True]), 0.9, 10, 5)
    assert tuple(number.item() for number in after) == (5, 0, 0)


def play(env: GraphTask, episodes: int, wrong: float = 0.0) -> list[float]:
    """The lesson that is reported at the end of each episode."""
    _, info = env.reset(seed=0)
    levels = []
    generator = torch.Generator().manual_seed(0)
    for _ in range(episodes):
        spoiled = (torch.rand(env.num_envs, generator=generator) < wrong)[:, None]
        for _ in range(env.length):
            _, _, _, _, info = env.step(torch.where(spoiled, (info["target"] + 5) % 10, info["target"]))
            amount, count = info["metrics"]["lesson"] if env._elapsed == 0 else (torch.zeros(1), torch.zeros(1))
            levels += [(amount / count).mean().item()] if count.any() else []
    return levels


@pytest.mark.parametrize(("make", "last"), [(GraphTraversal, 4), (ShortestPath, 3), (GraphInference, 3)])
def test_who_answers_right_moves_on(make: type[GraphTask], last: int) -> None:
    env = make(20, lesson=last, curriculum=True, window=30)
    assert env.level.item() == 1
    levels = play(env, 14)
    assert levels[:3] == [1, 1, 2]  # 20 episodes are not enough, 40 are
    assert levels == sorted(levels)
    assert levels[-1] == last
    assert env.level.item() == last
    assert set(env.lesson.tolist()) <= set(range(1, last + 1))


def test_who_does_not_stays() -> None:
    assert set(play(GraphTraversal(40, lesson=3, curriculum=True, window=30), 8, wrong=0.2)) == {1.0}
    assert play(GraphTraversal(40, lesson=3, curriculum=True, window=30, pass_mark=0.5), 8, wrong=0.2)[-1] == 3


def test_graphs_are_those_of_each_copys_lesson() -> None:
    env = GraphTraversal(3000, lesson=9, curriculum=True)
    env.level.fill_(9)
    env.reset(seed=0)
    for number in (1, 5, 9):
        here = env.lesson == number
        limits = TRAVERSAL[number - 1]
        out = (env.successors[here] >= 0).sum(2)
        nodes = (out > 0).sum(1)
        assert {nodes.min().item(), nodes.max().item()} == set(limits.nodes)
        assert set(out[out > 0].tolist()) == set(range(limits.degree[0], limits.degree[1] + 1))
        lengths = (env.path[here] >= 0).sum(1) - 1
        assert {lengths.min().item(), lengths.max().item()} == set(limits.path)


def test_progress_is_kept_through_resets_and_checkpoints() -> None:
    env = GraphTraversal(20, lesson=4, curriculum=True, window=15)
    play(env, 2)
    assert env.level.item() == 3
    env.reset(seed=5)
    assert env.level.item() == 3
    other = GraphTraversal(20, lesson=4, curriculum=True, window=15)
    other.load_state_dict(env.state_dict())
    assert other.level.item() == 3
    assert GraphTraversal(2).metric_names == ("right_answers", "right_triples")
