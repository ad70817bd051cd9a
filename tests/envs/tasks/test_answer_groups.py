"""What tasks say their answers depend on, against episodes read by hand."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from envs.tasks.graphs.inference import EDGES, GraphInference
from envs.tasks.graphs.sample import LABELS
from envs.tasks.graphs.traversal import GraphTraversal
from envs.tasks.images.mnist_recall import MnistRecall
from envs.tasks.sequence.associative_recall import AssociativeRecall
from envs.tasks.sequence.copy import Copy
from envs.tasks.sequence.dictionary_inference import DictionaryInference
from envs.tasks.sequence.priority_sort import PrioritySort


def test_place_and_number_of_the_answers() -> None:
    env = Copy(8, max_length=5)
    env.reset(seed=0)
    groups = env.answer_groups()
    lengths = set()
    for index in range(8):
        steps = env.weights[:, index].nonzero()[:, 0]
        lengths.add(len(steps))
        assert groups["place of the answer"].number[steps, index].tolist() == list(range(1, len(steps) + 1))
        assert groups["answers due"].number[:, index].tolist() == [len(steps)] * env.length
    assert len(lengths) > 2


def test_dictionary_inference_counts_shows_of_a_letter() -> None:
    env = DictionaryInference(32, k=3, l=2)
    env.reset(seed=0)
    groups = env.answer_groups()
    times, last = (groups[name].number for name in ("times the letter was shown", "last word with the letter"))
    found = set()
    for index in range(32):
        shown = "".join((env.alphabet + " ")[symbol] for symbol in env.inputs[:, index].tolist())
        support, asking = shown.split(";")
        words = [example.split(".")[0] for example in support.split(",")]
        for place, letter in enumerate(asking[:2]):
            step = env.length - 2 + place
            assert times[step, index] == sum(word.count(letter) for word in words)
            assert last[step, index] == max(number for number, word in enumerate(words, 1) if letter in word)
            found.add((int(times[step, index]), int(last[step, index])))
    assert len(found) > 4


@pytest.mark.parametrize("grid", [False, True])
def test_priority_sort_measures_the_nearest_priority(grid: bool) -> None:
    env = PrioritySort(64, min_length=1, max_length=12, outputs=7, grid=grid)
    env.reset(seed=0)
    group = env.answer_groups()["distance to the nearest priority"]
    edges = [0.0, 0.002, 0.005, 0.01, 0.02, 0.05, float("inf")]
    found = set()
    for index in range(64):
        steps = env.weights[:, index].nonzero()[:, 0].tolist()
        length = steps[0]
        rows = env.inputs[:length, index]
        priorities = (rows[:, 1, 0, 0] if grid else rows[:, -1]).tolist()
        falling = sorted(priorities, reverse=True)
        for step, priority in zip(steps, falling, strict=False):
            others = [abs(priority - other) for other in priorities if other != priority]
            nearest = min(others, default=1e9)
            number = int(group.number[step, index])
            assert edges[number] - 1e-6 <= nearest < edges[number + 1] + 1e-6
            found.add(number)
    assert found == set(range(len(group.labels)))


@pytest.mark.parametrize("grid", [False, True])
def test_associative_recall_counts_its_items(grid: bool) -> None:
    env = AssociativeRecall(16, min_items=2, max_items=5, grid=grid)
    env.reset(seed=0)
    number = env.answer_groups()["items shown"].number
    for index in range(16):
        if grid:
            items = int(env.inputs[:, index, 1, 0, 0].nonzero()[0, 0])  # all that was before the question
        else:
            items = int(env.inputs[:, index, env.bits].sum())  # delimiters
        assert number[:, index].tolist() == [items] * env.length
    assert len(number.unique()) == 4


@pytest.mark.parametrize("ask", ["after", "last", "each"])
def test_mnist_recall_counts_the_images_since(ask: str) -> None:
    env = MnistRecall(16, length=6, ask=ask)
    env.reset(seed=0)
    number = env.answer_groups()["images after the one due"].number
    assert env.labels is not None
    found = set()
    for question, step in enumerate(range(env.first_asked, env.length)):
        for index in range(16):
            shown = env.inputs[:, index].tolist()
            due = shown.index(int(env.asked_with[question, index])) + 1
            assert env.labels[shown[due]] == env.targets[step, index]
            since = int(number[step, index])
            assert since == min(step, len(shown) - 1) - due
            found.add(since)
    assert found == set(range(5))


def test_graphs_count_the_edges_shown() -> None:
    env = GraphTraversal(16, lesson=3)
    env.reset(seed=0)
    number = env.answer_groups()["edges shown"].number
    for index in range(16):
        edges = [row for row in env.inputs[:, index, :3].tolist() if LABELS not in row]
        assert number[:, index].tolist() == [len(edges)] * env.length
    assert len(number.unique()) > 4


def test_inference_groups_by_the_relation() -> None:
    env = GraphInference(64, lesson=6)
    env.reset(seed=0)
    groups = env.answer_groups()
    relation, edges, repeat = (groups[f"{name}relation"] for name in ("", "edges of the ", "edge labels of the "))
    assert repeat.labels == ("differ", "repeat")
    for index in range(64):
        ((_, label, _),) = [row for row in env.inputs[:, index, :3].tolist() if row[2] == LABELS and row[0] != LABELS]
        word = env.meaning(label)
        assert relation.number[:, index].tolist() == [label] * env.length
        assert edges.number[:, index].tolist() == [len(word)] * env.length
        assert repeat.number[:, index].tolist() == [int(len(set(word)) < len(word))] * env.length
    assert set(edges.number[0].tolist()) == {2, 3}
    assert set(repeat.number[0].tolist()) == {0, 1}
    assert relation.number.min() >= EDGES


def test_groups_are_asked_of_the_episode_at_hand() -> None:
    env = Copy(8, max_length=5)
    env.reset(seed=0)
    seen = []
    for _ in range(3):
        seen.append(env.answer_groups()["answers due"].number[0].clone())
        for _ in range(env.length):
            env.step(torch.zeros_like(env.targets[0]))
    assert not any(torch.equal(one, other) for one, other in combinations(seen, 2))
