"""ShortestPath: where answers lead, what is shown after them and what is right then."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import graph_decoders as decode
import pytest
import torch

from agents.evaluation import random_score
from envs.tasks.graphs.base import GraphTask
from envs.tasks.graphs.shortest_path import ShortestPath

Choice = Callable[[decode.Episode, list[decode.Triple], decode.Triple], decode.Triple | None]


def digits(triple: decode.Triple) -> list[int]:
    return [int(digit) for label in triple for digit in f"{label:03d}"]


def graph_of(env: GraphTask, index: int) -> decode.Episode:
    """The graph and the query of a copy, from the rows that it will be shown."""
    flags = env.inputs[:, index].tolist()
    starts = [step for step, row in enumerate(flags) if row[3]]
    triples = [tuple(row[:3]) for row in flags]
    return decode.Episode(triples[: starts[1]], [triples[starts[1]]], [], [], starts[-1])


def test_right_answers_are_shortest_paths() -> None:
    for lesson in (1, 5, 10, 15):
        env = ShortestPath(60, lesson=lesson, planning_steps=2)
        _, _, targets, rewards, _ = played = decode.play(env)
        assert sum(rewards).tolist() == pytest.approx([1.0] * 60)
        lengths = []
        for index in range(60):
            episode = decode.read(decode.rows_of(played[0], index), 2)
            ((start, blank, goal),) = episode.query
            assert blank is None
            assert goal != start
            answer = decode.said(targets, episode, index)
            assert set(answer) <= set(episode.described)
            assert answer[0][0] == start
            assert answer[-1][2] == goal
            assert all(one[2] == other[0] for one, other in pairwise(answer))
            assert len(answer) == decode.distances(episode, goal)[start]
            assert episode.answering == [(None, None, None), *answer[:-1]]  # each is shown at the step after
            lengths.append(len(answer))
        least, most = env.lessons[lesson - 1].path
        assert max(lengths) == most
        assert sum(length >= least for length in lengths) > 0.8 * 60  # small graphs do not always have so long a path


def test_a_path_length_that_no_graph_has() -> None:
    """Where nothing is so far away the farthest node is asked for."""
    env = ShortestPath(100, lesson=3, path_length=7)
    _, _, targets, _, _ = played = decode.play(env)
    for index in range(100):
        episode = decode.read(decode.rows_of(played[0], index), 10)
        start = episode.query[0][0]
        around = {start: 0}
        ring = [start]
        while ring:
            node = ring.pop(0)
            for end in episode.edges[node].values():
                if end not in around:
                    around[end] = around[node] + 1
                    ring.append(end)
        assert len(decode.said(targets, episode, index)) == min(7, max(around.values()))


def simulate(env: ShortestPath, choose: Choice, seed: int = 0) -> tuple[list[float], list[list[bool]]]:
    """Play with `choose(graph, edges out of the present node, target)`; None says nonsense.

    Everything that the environment shows, wants and pays is checked against a slow walk.
    """
    obs, info = env.reset(seed=seed)
    graphs = [graph_of(env, index) for index in range(env.num_envs)]
    far = [decode.distances(graph, graph.query[0][2]) for graph in graphs]
    at = [graph.query[0][0] for graph in graphs]
    shown: list[decode.Triple | None] = [None] * env.num_envs
    returns, verdicts = [0.0] * env.num_envs, [[] for _ in graphs]  # type: list[float], list[list[bool]]
    for step in range(env.length):
        assert isinstance(obs, torch.Tensor)
        action, expected = info["target"].clone(), [0.0] * env.num_envs
        for index, graph in enumerate(graphs):
            count = len(verdicts[index])
            due = step >= graph.first and count < far[index][graph.query[0][0]]
            assert bool(info["weight"][index]) == due
            if not due:
                continue
            row = obs[index].tolist()
            parts = [decode.label(row[30 * part : 30 * part + 30]) for part in range(3)]
            assert parts == list(shown[index] or (None, None, None))
            target = decode.triple_of(info["target"][index])
            out = [triple for triple in graph.described if triple[0] == at[index]]
            best = [triple for triple in out if far[index].get(triple[2], 99) < far[index][at[index]]]
            assert target in best
            answer = choose(graph, out, target)
            said = digits(answer) if answer is not None else [(digit + 5) % 10 for digit in digits(target)]
            action[index] = torch.tensor(said)
            legal = [triple for triple in out if triple[2] in far[index]]
            taken = answer if answer in legal else None
            if env.snap:
                agree = [sum(a == b for a, b in zip(digits(triple), said, strict=True)) for triple in legal]
                closest = [triple for triple, same in zip(legal, agree, strict=True) if same == max(agree)]
                taken = closest[0] if len(closest) == 1 else None
                if taken is None:  # a tie: any of them will do, and the next source tells which
                    taken = target
                    action[index] = info["target"][index]
            right = taken in best
            verdicts[index].append(right)
            same = sum(a == b for a, b in zip(action[index].tolist(), digits(target), strict=True))
            expected[index] = (1.0 if right else same / 9) / far[index][graph.query[0][0]]
            shown[index] = taken or target
            at[index] = shown[index][2]  # type: ignore[index]
        obs, reward, _, _, info = env.step(action)
        assert reward.tolist() == pytest.approx(expected)
        returns = [total + paid for total, paid in zip(returns, expected, strict=True)]
    assert info["metrics"]["right_answers"][0].tolist() == [float(all(row)) for row in verdicts]
    return returns, verdicts


def another(_: decode.Episode, out: list[decode.Triple], target: decode.Triple) -> decode.Triple:
    """Some other edge, if there is one."""
    return next((triple for triple in out if triple != target), target)


def dead_end(graph: decode.Episode, out: list[decode.Triple], target: decode.Triple) -> decode.Triple:
    """An edge from which the goal cannot be reached, if there is one."""
    far = decode.distances(graph, graph.query[0][2])
    return next((triple for triple in out if triple[2] not in far), target)


def elsewhere(graph: decode.Episode, out: list[decode.Triple], _: decode.Triple) -> decode.Triple:
    """An edge of another node."""
    return next(triple for triple in graph.described if triple not in out)


@pytest.mark.parametrize("snap", [False, True])
@pytest.mark.parametrize(
    "choose",
    [another, dead_end, elsewhere, lambda *_: None, lambda graph, out, target: target],
    ids=["another", "dead-end", "elsewhere", "nonsense", "right"],
)
@pytest.mark.parametrize("lesson", [4, 12])
def test_answers_lead_where_they_say(choose: Choice, snap: bool, lesson: int) -> None:
    returns, verdicts = simulate(ShortestPath(60, lesson=lesson, planning_steps=1, snap=snap), choose)
    wrong = [not right for row in verdicts for right in row]
    name = getattr(choose, "__name__", "")
    if name == "another":
        assert 0 < sum(wrong) < len(wrong)  # some edges are optimal too
    if name == "elsewhere" and not snap:
        assert all(wrong)
    assert all(0 <= total <= 1 + 1e-6 for total in returns)


def test_dead_ends_exist() -> None:
    env = ShortestPath(60, lesson=4)
    env.reset(seed=0)
    assert ((env.successors >= 0) & (env._codes < 0)).any()
    simulate(env, dead_end)


def test_snapping_pays_what_is_meant() -> None:
    """One wrong digit does no harm, as no other edge is so near; without snapping it does."""

    def returns(snap: bool) -> torch.Tensor:
        env = ShortestPath(50, lesson=12, snap=snap)
        _, info = env.reset(seed=0)
        total = torch.zeros(50)
        for _ in range(env.length):
            action = info["target"].clone()
            action[:, 2] = (action[:, 2] + 1) % 10
            _, reward, _, _, info = env.step(action)
            total += reward
        return total

    assert returns(True).tolist() == pytest.approx([1.0] * 50)
    assert returns(False).tolist() == pytest.approx([8 / 9] * 50)


@pytest.mark.parametrize("beta", [0.0, 0.8, 1.0])
def test_beta_mixes_in_the_target(beta: float) -> None:
    """Among answers that lead astray, the share of steps at which the target is taken all the same."""
    env = ShortestPath(400, lesson=12, beta=beta)
    _, info = env.reset(seed=0)
    kept = asked = 0
    for _ in range(env.length):
        beyond, at, due = env.successors[torch.arange(400), env.at], env.at, info["weight"] > 0
        codes = env._codes[torch.arange(400), at]
        best = env._best_node[torch.arange(400), at]
        astray = (codes >= 0) & (beyond != best[:, None])
        slot = astray.long().argmax(1)
        counts = due & astray.any(1)
        code = codes.gather(1, slot[:, None])
        action = torch.where(counts[:, None], code // env._powers % 10, info["target"])
        _, _, _, _, info = env.step(action)
        kept += (counts & (env.at == best)).sum().item()
        asked += counts.sum().item()
    assert asked > 500
    assert kept / asked == pytest.approx(beta, abs=0.06)


def test_beta_leaves_the_score_alone() -> None:
    """Right is what was answered, not what was taken."""
    env = ShortestPath(50, lesson=5, beta=1.0)
    _, info = env.reset(seed=0)
    right = torch.zeros(50)
    for _ in range(env.length):
        _, reward, _, _, info = env.step((info["target"] + 1) % 10)
        right += info["metrics"]["right_triples"][0]
        assert (reward == 0).all()
    assert (right == 0).all()


def test_an_episode_under_way_is_resumed() -> None:
    env, other = ShortestPath(30, lesson=12, beta=0.5), ShortestPath(30, lesson=12, beta=0.5)
    env.reset(seed=0)
    other.reset(seed=1)
    for step in range(env.length - 1):
        if step in (20, 60, env.length - 3):
            other.load_state_dict(env.state_dict())
        action = torch.randint(10, (30, 9), generator=torch.Generator().manual_seed(step))
        results = env.step(action), other.step(action)
        if step >= 20:
            assert torch.equal(results[0][0], results[1][0])
            assert torch.equal(results[0][4]["target"], results[1][4]["target"])


@pytest.mark.parametrize(("lesson", "documented"), [(1, 0.76), (None, 0.05)])
def test_chance_with_snapping_is_the_documented_one(lesson: int | None, documented: float) -> None:
    score = random_score(ShortestPath(500, lesson=lesson, snap=True), 2000, seed=0)
    assert score.metrics["right_answers"] == pytest.approx(documented, abs=0.02)
