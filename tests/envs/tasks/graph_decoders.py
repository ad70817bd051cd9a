"""Slow readers of the graph tasks: from what one copy is shown, step by step, to graph, question and answer.

They see observations only, and are written from the format: three labels of three one-hot digits, a mark at the first
step of every phase and one wherever an answer is due.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from envs.tasks.graphs.base import GraphTask

Label = int | None
Triple = tuple[Label, Label, Label]


class Episode(NamedTuple):
    """What one copy was shown."""

    described: list[Triple]
    query: list[Triple]
    planning: list[Triple]
    answering: list[Triple]
    """Shown while an answer is due."""
    first: int
    """Step of the first answer."""

    @property
    def edges(self) -> dict[Label, dict[Label, Label]]:
        """Node, edge label: node."""
        table: dict[Label, dict[Label, Label]] = {}
        for source, edge, destination in self.described:
            assert edge not in table.setdefault(source, {}), "two edges of a node are alike"
            table[source][edge] = destination
        return table


def label(digits: list[float]) -> Label:
    """Three one-hot digits; None where all are blank."""
    assert len(digits) == 30
    assert set(digits) <= {0.0, 1.0}
    places = [[i for i in range(10) if digits[10 * place + i]] for place in range(3)]
    if places == [[], [], []]:
        return None
    assert [len(place) for place in places] == [1, 1, 1]
    return int("".join(str(place[0]) for place in places))


def read(rows: list[list[float]], planning_steps: int) -> Episode:
    """An episode of observations of 92 numbers."""
    phases: list[list[Triple]] = []
    answers = [step for step, row in enumerate(rows) if row[91]]
    for step, row in enumerate(rows):
        assert len(row) == 92
        triple = (label(row[:30]), label(row[30:60]), label(row[60:90]))
        if step > answers[-1]:
            assert not any(row)
            continue
        if row[90]:
            phases.append([])
        phases[-1].append(triple)
    assert answers == list(range(answers[0], answers[-1] + 1))
    assert rows[answers[0]][90] == 1
    if not planning_steps:
        phases.insert(2, [])
    described, query, planning, answering = phases
    assert planning == [(None, None, None)] * planning_steps
    assert len(answering) == len(answers)
    assert all(None not in triple for triple in described)
    assert len(set(described)) == len(described)
    return Episode(described, query, planning, answering, answers[0])


def walk(episode: Episode) -> list[Triple]:
    """The answer of GraphTraversal."""
    at, answer = episode.query[0][0], []
    for place, (source, edge, destination) in enumerate(episode.query):
        assert destination is None
        assert edge is not None
        assert (source is None) == (place > 0)
        following = episode.edges[at][edge]
        answer.append((at, edge, following))
        at = following
    return answer


def distances(episode: Episode, goal: Label) -> dict[Label, int]:
    """Edges from every node from which the goal can be reached."""
    far, ring = {goal: 0}, {goal}
    while ring:
        ring = {source for source, _, end in episode.described if end in ring and source not in far}
        far |= dict.fromkeys(ring, max(far.values()) + 1)
    return far


def play(env: GraphTask, policy: str | float = "right", seed: int = 0) -> tuple[list[torch.Tensor], ...]:
    """Observations, actions, targets, rewards and weights of an episode.

    `policy`: "right", or the share of answers in which one digit is wrong.
    """
    obs, info = env.reset(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    seen, actions, targets, rewards, weights = [], [], [], [], []
    for _ in range(env.length):
        assert isinstance(obs, torch.Tensor)
        action = info["target"].clone()
        if policy != "right":
            wrong = torch.rand(env.num_envs, generator=generator) < float(policy)
            action[:, 8] = (action[:, 8] + wrong) % 10
        seen.append(obs)
        actions.append(action)
        targets.append(info["target"])
        weights.append(info["weight"])
        obs, reward, _, _, info = env.step(action)
        rewards.append(reward)
    return seen, actions, targets, rewards, weights


def rows_of(seen: list[torch.Tensor], index: int) -> list[list[float]]:
    """One copy's observations."""
    return [obs[index].tolist() for obs in seen]


def triple_of(digits: torch.Tensor) -> Triple:
    """Nine digits as labels."""
    text = "".join(map(str, digits.tolist()))
    return int(text[:3]), int(text[3:6]), int(text[6:])


def said(triples: list[torch.Tensor], episode: Episode, index: int) -> list[Triple]:
    """A copy's answers or targets at the steps where answers were due."""
    return [triple_of(triples[episode.first + place][index]) for place in range(len(episode.answering))]
