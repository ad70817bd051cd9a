"""Texts and frames of the graph tasks show what was described, asked and answered."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch

from envs.rendering import AGENT, FLOOR, GOAL, RIGHT, WRONG, blend
from envs.tasks.graphs.base import GraphTask
from envs.tasks.graphs.inference import GraphInference
from envs.tasks.graphs.shortest_path import ShortestPath
from envs.tasks.graphs.traversal import GraphTraversal

Make = Callable[..., GraphTask]
ASKED = blend(AGENT, FLOOR, 0.45)


def amount(frame: np.ndarray, colour: tuple[int, int, int], graph: bool = True) -> int:
    """How many pixels of the graph, or of the words beside it, are of a colour; scaling shifts it by a little."""
    edge = 600 if frame.shape[1] > 800 else 440  # where words begin
    part = frame[:, :edge] if graph else frame[:, edge:]
    return int((abs(part.astype(int) - np.array(colour)) <= 6).all(2).sum())


def played(make: Make, spoil: Callable[[torch.Tensor], torch.Tensor], steps: int | None = None, **kwargs) -> GraphTask:  # type: ignore[no-untyped-def]
    env = make(2, render_mode="rgb_array", **kwargs)
    env.autoreset = False
    _, info = env.reset(seed=3)
    for _ in range(env.length if steps is None else steps):
        _, _, _, _, info = env.step(spoil(info["target"]) if info["weight"].any() else info["target"])
    return env


def right(target: torch.Tensor) -> torch.Tensor:
    return target


def wrong(target: torch.Tensor) -> torch.Tensor:
    return (target + 5) % 10


def test_text_of_a_traversal() -> None:
    env = GraphTraversal(1, lesson=3, path_length=2, render_mode="rgb_array")
    env.autoreset = False
    env.reset(seed=0)
    lines = env.text().splitlines()
    edges = int((env.successors >= 0).sum())
    first = [f"{label:03d}" for label in env.inputs[0, 0, :3].tolist()]
    assert lines == [f"step 0 / {env.length}, description", "shown  ({}, {}, {})".format(*first)]
    for _ in range(edges):
        env.step(torch.zeros(1, 9, dtype=torch.long))
    source, edge = (f"{label:03d}" for label in env.inputs[edges, 0, :2].tolist())
    shown = f"({source}, {edge}, _)"
    assert env.text().splitlines() == [f"step {edges} / {env.length}, query", "shown  " + shown, "query  " + shown]
    answers = [env.targets[edges + 2 + place, 0].tolist() for place in (0, 1)]
    words = [
        "({}{}{}, {}{}{}, {}{}{})".format(*digits) for digits in (answers[0], [1, 2, 3, 0, 4, 5, 6, 7, 8], answers[1])
    ]
    env.step(torch.zeros(1, 9, dtype=torch.long))
    env.step(torch.zeros(1, 9, dtype=torch.long))
    assert env.text().splitlines()[0].endswith("answer")
    env.step(env.targets[edges + 2])
    env.step(torch.tensor([[1, 2, 3, 0, 4, 5, 6, 7, 8]]))
    lines = env.text().splitlines()
    assert lines[0] == f"step {edges + 4} / {env.length}, over"
    assert lines[4:] == ["answer " + words[0], "answer " + words[1] + " !", "right  " + words[2]]


def test_text_of_a_relation_in_the_family() -> None:
    env = played(GraphInference, right, graph="family")
    query = env.text(1).splitlines()[2]
    names, kinds = env.world.names, env.world.kinds  # type: ignore[union-attr]
    path = env.path[1].tolist()
    edges = {(one, other): kinds[kind] for one, kind, other in env.world.edges}  # type: ignore[union-attr]
    label = int(env.inputs[72, 1, 1])
    meaning = " ".join(edges[pair] for pair in pairwise(path))
    assert query == f"query  ({names[path[0]]}, {label:03d} = {meaning}, _)"
    assert env.text(1).splitlines()[3].endswith(f"{names[path[-1]]})")


def test_planning_is_named() -> None:
    env = played(ShortestPath, right, steps=0, lesson=1)
    phases = [env.text().splitlines()[0].split(", ")[1]]
    for _ in range(env.length):
        env.step(env.targets[env._elapsed])
        phases.append(env.text().splitlines()[0].split(", ")[1])
    assert list(dict.fromkeys(phases)) == ["description", "query", "planning", "answer", "over"]
    assert phases.count("planning") == 10


@pytest.mark.parametrize(
    ("make", "kwargs"),
    [
        (GraphTraversal, {"lesson": 6, "path_length": 4}),
        (GraphTraversal, {"graph": "family"}),
        (ShortestPath, {"lesson": 12}),
        (GraphInference, {"lesson": 12}),
    ],
)
def test_frames_mark_right_and_wrong(make: Make, kwargs: dict[str, object]) -> None:
    good, bad = played(make, right, **kwargs).frame(1), played(make, wrong, **kwargs).frame(1)
    assert amount(good, RIGHT) > 100
    assert amount(good, GOAL) > 50
    assert amount(good, RIGHT, graph=False) > 20
    assert amount(bad, WRONG) > 150
    assert amount(bad, WRONG, graph=False) > 20
    for frame, colour in ((good, WRONG), (bad, RIGHT), (bad, GOAL)):
        assert amount(frame, colour) == amount(frame, colour, graph=False) == 0
    assert good.shape == bad.shape


@pytest.mark.parametrize("make", [GraphTraversal, ShortestPath, GraphInference])
def test_the_path_is_shown_once_it_is_asked_for(make: Make) -> None:
    env = played(make, right, steps=0, lesson=2)
    for _ in range(env.length):
        described = env.text(1).splitlines()[0].endswith("description")
        frame = env.frame(1)
        assert (amount(frame, AGENT) > 0) == (not described)
        if described or env.text(1).splitlines()[0].endswith("query"):
            assert (amount(frame, ASKED) > 0) == (not described)
        env.step(env.targets[env._elapsed])


def test_a_detour_is_drawn_where_it_leads() -> None:
    env = ShortestPath(1, lesson=12, render_mode="rgb_array")
    env.autoreset = False
    _, info = env.reset(seed=1)
    for _ in range(env.length):
        at, action = int(env.at), info["target"]
        if info["weight"].any():
            others = [c for c in env._codes[0, at].tolist() if c >= 0 and c != env._best_code[0, at]]
            action = torch.tensor([others[0]])[:, None] // env._powers % 10 if others else action
        _, _, _, _, info = env.step(action) if env._elapsed < env.length - 1 else (*env.step(action)[:4], {})
        table = env.successors[0].tolist()
        way = env.path_to_draw(0)
        assert all(end in table[node] for node, end in pairwise(way))
        assert way[0] == env.path[0, 0]
        assert len(way) <= env.total + 1
    assert way[-1] == env.at
    assert amount(env.frame(), RIGHT) + amount(env.frame(), WRONG) > 50


def test_answers_are_kept_for_pictures_only_and_not_saved() -> None:
    quiet, drawn = GraphTraversal(2, lesson=2), GraphTraversal(2, lesson=2, render_mode="rgb_array")
    for env in (quiet, drawn):
        env.reset(seed=0)
        for _ in range(env.length - 1):
            env.step(env.targets[env._elapsed])
    assert (len(quiet._answers), len(drawn._answers)) == (0, quiet.length - 1)
    assert len(quiet._verdicts) == 0
    assert "(not known)" in quiet.text()
    assert "(not known)" not in drawn.text()
    resumed = GraphTraversal(2, lesson=2, render_mode="rgb_array")
    resumed.load_state_dict(drawn.state_dict())
    assert "(not known)" in resumed.text()
    assert resumed.frame().shape == drawn.frame().shape
    drawn.step(drawn.targets[drawn._elapsed])
    assert len(drawn._answers) == len(drawn._verdicts) == 0  # a new episode
