"""The graph tasks: what is shown decoded by slow readers, right answers, rewards, metrics and memoryless scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import graph_decoders as decode
import pytest
import torch

from envs.tasks.graphs.base import GraphTask
from envs.tasks.graphs.inference import GraphInference, relations
from envs.tasks.graphs.shortest_path import ShortestPath
from envs.tasks.graphs.traversal import GraphTraversal

Make = Callable[..., GraphTask]
TASKS: list[Make] = [GraphTraversal, ShortestPath, GraphInference]
every_task = pytest.mark.parametrize("make", TASKS)


def episodes(env: GraphTask, policy: str | float = "right", seed: int = 0) -> tuple[Any, list[decode.Episode]]:
    """What was played, and each copy's episode as decoded."""
    played = decode.play(env, policy, seed)
    return played, [decode.read(decode.rows_of(played[0], index), env.planning_steps) for index in range(env.num_envs)]


# -- formats and right answers -----------------------------------------------------------------------------------------


@every_task
@pytest.mark.parametrize("lesson", [1, 5, 9, None])
def test_graphs_are_those_of_the_lesson(make: Make, lesson: int | None) -> None:
    env = make(60, lesson=lesson, planning_steps=3)
    limits = env.lessons[-1 if lesson is None else lesson - 1]
    _, read = episodes(env)
    nodes, degrees, lengths = set(), set(), set()
    for index, episode in enumerate(read):
        nodes.add(len(episode.edges))
        degrees |= {len(edges) for edges in episode.edges.values()}
        assert {end for _, _, end in episode.described} <= set(episode.edges)
        lengths.add(sum(node >= 0 for node in env.path[index].tolist()) - 1)
    assert limits.nodes[0] <= min(nodes) <= max(nodes) <= limits.nodes[1]
    assert degrees == set(range(limits.degree[0], limits.degree[1] + 1))
    assert max(lengths) == limits.path[1]
    assert min(lengths) >= (1 if make is ShortestPath else limits.path[0])
    assert env.length == limits.nodes[1] * limits.degree[1] + 3 + env.query_rows(limits.path[1]) + env.answer_rows(
        limits.path[1]
    )


@pytest.mark.parametrize("lesson", [1, 4, 8, 14])
@pytest.mark.parametrize("planning_steps", [0, 2])
def test_traversal(lesson: int, planning_steps: int) -> None:
    env = GraphTraversal(40, lesson=lesson, planning_steps=planning_steps)
    (_, _, targets, rewards, weights), read = episodes(env)
    for index, episode in enumerate(read):
        assert decode.said(targets, episode, index) == decode.walk(episode)
        assert episode.answering == [(None, None, None)] * len(episode.query)
        assert [bool(weight[index]) for weight in weights].index(True) == episode.first
    assert sum(rewards).tolist() == pytest.approx([1.0] * 40)


def test_walks_and_labels_are_drawn_evenly() -> None:
    env = GraphTraversal(3000, lesson=3, path_length=1)
    env.reset(seed=0)
    out = (env.successors >= 0).sum(2)
    place = env.path[:, 0]
    assert (place < (out > 0).sum(1)).all()
    assert all((place == node).any() for node in range(8))
    slots = (env.successors[torch.arange(3000), place] == env.path[:, 1:2]).long().argmax(1)
    three = out[torch.arange(3000), place] == 3
    assert (slots[three].bincount(minlength=3) / three.sum()).tolist() == pytest.approx([1 / 3] * 3, abs=0.06)
    numbers = env.node_labels.flatten().float()
    assert (numbers.min(), numbers.max()) == (0, 999)
    assert numbers.mean().item() == pytest.approx(499.5, abs=10)
    assert all(len(set(row)) == len(row) for row in env.node_labels[:50].tolist())


def test_triples_come_in_random_order() -> None:
    env = GraphTraversal(2000, lesson=1)
    env.reset(seed=0)
    first = env.inputs[0, :, 0] == env.node_labels[:, 0]  # an edge of node 0 comes first
    share = (env.successors[:, 0] >= 0).sum(1) / (env.successors >= 0).sum((1, 2))
    assert first.float().mean().item() == pytest.approx(share.mean().item(), abs=0.05)


@pytest.mark.parametrize("lesson", range(1, 18))
def test_inference(lesson: int) -> None:
    env = GraphInference(300, lesson=lesson, planning_steps=1)
    table = relations(0).tolist()
    (_, _, targets, rewards, _), read = episodes(env)
    limits, asked = env.lessons[lesson - 1], set()
    for index, episode in enumerate(read):
        ((source, relation, blank),) = episode.query
        assert blank is None
        assert relation is not None
        assert all(edge is not None and edge < 10 for _, edge, _ in episode.described)
        at = source
        word = [edge for edge in table[relation - 10] if edge >= 0]
        for edge in word:
            at = episode.edges[at][edge]
        assert decode.said(targets, episode, index) == [(source, relation, at)]
        assert limits.path[0] <= len(word) <= limits.path[1]
        number = (relation - 10) % 100
        assert number < (limits.relations if len(word) == limits.path[1] else 100)
        asked.add(number)
    assert len(asked) > 0.8 * min(100, limits.relations)
    assert sum(rewards).tolist() == pytest.approx([1.0] * 300)


def test_relations() -> None:
    table = relations(0)
    assert table.shape == (400, 5)
    for place, length in enumerate((2, 3, 4, 5)):
        words = [tuple(word) for word in table[100 * place : 100 * place + 100].tolist()]
        assert len(set(words)) == 100
        assert all(min(word[:length]) >= 0 and set(word[length:]) <= {-1} for word in words)
        assert all({word[step] for word in words} == set(range(10)) for step in range(length))
    assert torch.equal(table, relations(0))
    assert not torch.equal(table, relations(1))
    env = GraphInference()
    assert env.meaning(9) == env.meaning(410) == []
    assert env.meaning(409) == table[399].tolist()
    assert len(env.meaning(10)) == 2


@pytest.mark.parametrize("path_length", [None, 2, 3, 5])
def test_inference_in_the_family(path_length: int | None) -> None:
    env = GraphInference(80, graph="family", path_length=path_length)
    (_, _, targets, _, _), read = episodes(env)
    table, labels, sources = relations(0).tolist(), set(), set()
    for index, episode in enumerate(read):
        assert len(episode.described) == 72
        ((source, relation, _),) = episode.query
        assert relation is not None
        at, passed = source, [source]
        word = [edge for edge in table[relation - 10] if edge >= 0]
        for edge in word:
            at = episode.edges[at][edge]
            passed.append(at)
        assert len(word) == (path_length or 4)
        assert len(set(passed)) == len(passed)  # nobody twice
        assert decode.said(targets, episode, index) == [(source, relation, at)]
        labels.add(tuple(sorted({edge for _, edge, _ in episode.described})))
        sources.add(env.path[index, 0].item())
    assert {len(row) for row in labels} == {8}
    assert len(labels) > 20
    assert len(sources) > 10


# -- rewards, metrics, scores ------------------------------------------------------------------------------------------


@every_task
def test_rewards_and_metrics_by_hand(make: Make) -> None:
    env = make(40, lesson=8)
    env.reset(seed=0)
    sums = {name: [0.0, 0.0] for name in env.metric_names}
    step = env.step

    def counted(action: torch.Tensor) -> Any:
        result = step(action)
        assert set(result[4]["metrics"]) == {"right_answers", "right_triples"}
        for name, parts in result[4]["metrics"].items():
            for number in (0, 1):
                sums[name][number] += parts[number].sum().item()
        return result

    env.step = counted  # type: ignore[method-assign]
    (_, actions, targets, rewards, _), read = episodes(env, policy=0.3)
    returns, right, whole, triples = [], 0, 0, 0
    for index, episode in enumerate(read):
        pairs = list(zip(decode.said(actions, episode, index), decode.said(targets, episode, index), strict=True))
        good = [one == other for one, other in pairs]
        if make is ShortestPath:  # a wrong digit may name another right edge, but no label is so near
            far = decode.distances(episode, episode.query[0][2])
            good = [one == other or (one in episode.described and far[one[2]] < far[other[0]]) for one, other in pairs]
        returns.append(sum(1.0 if ok else 8 / 9 for ok in good) / len(good))
        right, triples, whole = right + sum(good), triples + len(good), whole + all(good)
    assert sum(rewards).tolist() == pytest.approx(returns, abs=1e-5)
    assert 0 < whole < 40
    assert sums == {"right_answers": [whole, 40], "right_triples": [right, triples]}


@every_task
def test_answers_that_nobody_asked_for_cost_nothing(make: Make) -> None:
    env = make(20, lesson=4)
    _, info = env.reset(seed=0)
    for _ in range(env.length):
        asked = info["weight"] > 0
        action = torch.where(asked[:, None], info["target"], (info["target"] + 1) % 10)
        _, reward, _, _, info = env.step(action)
        assert torch.equal(reward > 0, asked)
    assert info["metrics"]["right_answers"][0].sum() == 20


@pytest.mark.parametrize(("make", "score"), [(GraphTraversal, 0.1), (ShortestPath, 0.333), (GraphInference, 0.117)])
def test_scores_without_memory(make: Make, score: float) -> None:
    """The best guess at each digit from what is shown at the step: the most frequent one, or a digit that is shown."""
    assert f"Without memory {score:.3f}" in (make.__doc__ or "")
    count = 1500
    tally: dict[bool, torch.Tensor] = {}  # by whether a triple is shown: how often each digit is due, [9, 10]
    copied: dict[bool, torch.Tensor] = {}  # and how often copying would be right, [9]
    for learning in (True, False):
        env = make(count)
        total = torch.zeros(count)
        obs, info = env.reset(seed=int(learning))
        for _ in range(env.length):
            assert isinstance(obs, torch.Tensor)
            asked, target = info["weight"] > 0, info["target"]
            digits = obs[:, :90].view(count, 9, 10)
            shown, last = digits.sum((1, 2)) > 0, digits.argmax(2)
            copy = torch.cat([last[:, 6:], last[:, 3:6], last[:, :3]], 1)  # where it led, its edge, where it came from
            action = torch.zeros_like(target)
            for kind in (True, False):
                where = asked & (shown == kind)
                if learning:
                    tally[kind] = tally.get(kind, 0) + torch.nn.functional.one_hot(target[where], 10).sum(0)
                    copied[kind] = copied.get(kind, 0) + (copy[where] == target[where]).sum(0)
                else:
                    guess = torch.where(copied[kind] > tally[kind].amax(1), copy, tally[kind].argmax(1))
                    action = torch.where(where[:, None], guess, action)
            obs, reward, _, _, info = env.step(target if learning else action)
            total += reward
    assert total.mean().item() == pytest.approx(score, abs=0.012)


# -- arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GraphTraversal(lesson=0), "lesson is 0, expected 1 to 14"),
        (lambda: GraphTraversal(lesson=15), "lesson is 15, expected 1 to 14"),
        (lambda: ShortestPath(lesson=16), "expected 1 to 15"),
        (lambda: GraphInference(lesson=18), "expected 1 to 17"),
        (lambda: GraphTraversal(graph="paris"), "graph is 'paris', expected one of"),
        (lambda: GraphInference(graph="underground"), "expected 'random' or 'family'"),
        (lambda: GraphTraversal(graph="family", curriculum=True), "curriculum is True with graph='family'"),
        (lambda: GraphTraversal(pass_mark=0), "pass_mark is 0"),
        (lambda: GraphTraversal(window=0), "window 0"),
        (lambda: GraphTraversal(path_length=0), "path_length is 0, expected at least 1"),
        (lambda: GraphInference(path_length=6), "path_length is 6, expected 2 to 5"),
        (lambda: ShortestPath(planning_steps=-1), "planning_steps is -1"),
        (lambda: ShortestPath(beta=1.1), "beta is 1.1, expected 0 to 1"),
    ],
)
def test_arguments_out_of_range(make: Callable[[], GraphTask], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
