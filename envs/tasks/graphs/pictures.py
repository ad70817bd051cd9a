"""Pictures and texts of the graph tasks: described edges, query and answers."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, Protocol

from envs.tasks.graphs.sample import LABELS

if TYPE_CHECKING:
    from torch import Tensor

    from envs.rendering import Canvas, Colour, Frame
    from envs.tasks.graphs.worlds import World
    from envs.tasks.sequence.base import Story

_PHASES = ("description", "query", "planning", "answer", "over")
_MARGIN, _PITCH = 28, 23  # pixels around the unit square, and from line to line beside it

Triple = tuple[int, int, int]


class Drawn(Protocol):
    """The part of `envs.tasks.graphs.base.GraphTask` that is drawn."""

    length: int
    planning_steps: int
    world: World | None
    weights: Tensor
    points: Tensor
    successors: Tensor
    node_labels: Tensor
    edge_labels: Tensor

    @staticmethod
    def answer_rows(path: int) -> int: ...

    def path_to_draw(self, index: int) -> list[int]: ...

    def meaning(self, label: int) -> list[int]: ...


class _Row(NamedTuple):
    """One answered step."""

    right: Triple
    given: Triple | None
    """None if no longer known."""
    verdict: bool | None


class _Episode(NamedTuple):
    """One environment's inputs and answers so far, on the host."""

    phase: str
    described: list[Triple]
    query: list[Triple]
    shown: Triple
    """The triple shown at the current step."""
    rows: list[_Row]


def _episode(env: Drawn, index: int, story: Story, verdicts: list[Tensor]) -> _Episode:
    correct: list[bool | None] = [None] * (len(story.asked) - len(verdicts))
    correct += [bool(verdict[index]) for verdict in verdicts]
    names = [name for name in _PHASES if name != "planning" or env.planning_steps]
    place, phases, triples = -1, [], []
    for *labels, begins, _ in story.inputs.tolist():
        place += int(begins)
        phases.append(names[place])
        triples.append((labels[0], labels[1], labels[2]))
    due = int(env.weights[:, index].sum())
    rows = []
    for target, answer, asked, verdict in zip(story.targets.tolist(), story.answers, story.asked, correct, strict=True):
        if asked:
            given = None if answer is None else _labels(answer.flatten().tolist())
            rows.append(_Row(_labels(target), given, verdict))
    if len(rows) == due:
        phases[-1] = "over"
    return _Episode(
        phases[-1],
        [triple for triple, phase in zip(triples, phases, strict=True) if phase == "description"],
        [triple for triple, phase in zip(triples, phases, strict=True) if phase == "query"],
        triples[-1] if len(triples) <= env.length else (LABELS, LABELS, LABELS),
        rows,
    )


def _labels(digits: list[int]) -> Triple:
    first, second, third = (100 * digits[i] + 10 * digits[i + 1] + digits[i + 2] for i in (0, 3, 6))
    return first, second, third


class _Names:
    """Names for the labels of an environment: three digits, or names on a fixed graph; relations with their meaning."""

    def __init__(self, env: Drawn, index: int) -> None:
        self.meaning = env.meaning
        self.nodes = {label: node for node, label in enumerate(env.node_labels[index].tolist())}
        self.words: tuple[dict[int, str], dict[int, str]] = ({}, {})
        if env.world is not None:
            self.words[0].update((label, env.world.names[node]) for label, node in self.nodes.items())
            edges = zip(env.edge_labels[index].tolist(), env.successors[index].tolist(), strict=True)
            kinds = {(source, end): env.world.kinds[kind] for source, kind, end in env.world.edges}
            for source, (labels, ends) in enumerate(edges):
                for label, end in zip(labels, ends, strict=True):
                    if end >= 0 and label not in self.words[1]:
                        self.words[1][label] = kinds[source, end]

    def node(self, label: int) -> str:
        return "_" if label == LABELS else self.words[0].get(label, f"{label:03d}")

    def edge(self, label: int) -> str:
        words = self.meaning(label)
        if words:
            return f"{label:03d} = " + " ".join(self.words[1].get(word, str(word)) for word in words)
        return "_" if label == LABELS else self.words[1].get(label, f"{label:03d}")

    def triple(self, triple: Triple) -> str:
        return f"({self.node(triple[0])}, {self.edge(triple[1])}, {self.node(triple[2])})"


def _lines(
    env: Drawn, index: int, story: Story, verdicts: list[Tensor]
) -> tuple[_Episode, _Names, list[tuple[str, bool | None]]]:
    """The episode as text: the query's triples, then each answer, whether it is right, and the right one."""
    episode, names = _episode(env, index, story, verdicts), _Names(env, index)
    lines: list[tuple[str, bool | None]] = [("query  " + names.triple(triple), None) for triple in episode.query]
    for right, given, verdict in episode.rows:
        lines.append(("answer " + (names.triple(given) if given is not None else "(not known)"), verdict))
        if given != right:
            lines.append(("right  " + names.triple(right), None))
    return episode, names, lines


def graph_text(env: Drawn, index: int, story: Story, verdicts: list[Tensor]) -> str:
    """The current step's triple, the query, and the answers with `!` behind wrong ones."""
    episode, names, lines = _lines(env, index, story, verdicts)
    return "\n".join(
        [
            f"step {len(story.targets)} / {env.length}, {episode.phase}",
            "shown  " + names.triple(episode.shown),
            *(line + (" !" if verdict is False else "") for line, verdict in lines),
        ]
    )


def graph_frame(env: Drawn, index: int, story: Story, verdicts: list[Tensor]) -> Frame:
    """The graph in the unit square, and the query and the answers beside it.

    Edges that are not described yet are faint, the current edge is bold. From the query on, the queried path is blue;
    answered edges are green if right and red if wrong. A disc marks the source. A star marks the goal, if it is shown,
    or the destination after the last answer.
    """
    from envs.rendering import AGENT, FAINT, FLOOR, GOAL, INK, LINE, RIGHT, WRONG, Canvas, blend

    episode, names, lines = _lines(env, index, story, verdicts)
    side, panel = (400, 210) if env.world is None else (560, 330)  # names are longer than numbers
    canvas = Canvas(side + panel + 3 * _MARGIN, side + 3 * _MARGIN)
    canvas.box(_MARGIN / 2, _MARGIN / 2, side + _MARGIN, side + _MARGIN, FLOOR, round=10)
    points = [(_MARGIN + x * side, _MARGIN + (1 - y) * side) for x, y in env.points[index].tolist()]
    successors, labels = env.successors[index].tolist(), env.edge_labels[index].tolist()
    described, node = set(episode.described), env.node_labels[index].tolist()
    edges = [
        (source, end, (node[source], label, node[end]))
        for source, (ends, row) in enumerate(zip(successors, labels, strict=True))
        for end, label in zip(ends, row, strict=True)
        if end >= 0
    ]
    radius = 12 if len(points) <= 20 and env.world is None else 7
    for known in (False, True):  # described edges on top
        for source, end, triple in edges:
            if (triple in described) == known:
                colour = blend(INK, FLOOR, 0.55) if known else LINE
                _arrow(canvas, points[source], points[end], 1.2, colour, radius)
    if episode.phase == "description":
        source, _, end = (names.nodes[label] if place != 1 else 0 for place, label in enumerate(episode.shown))
        _arrow(canvas, points[source], points[end], 3.5, INK, radius)

    path, asked = env.path_to_draw(index), episode.phase != "description"
    marks = [row.verdict for row in episode.rows]
    if asked:
        for source, end in pairwise(path):
            _arrow(canvas, points[source], points[end], 6, blend(AGENT, FLOOR, 0.45), radius)
    if env.answer_rows(2) == 1:  # one answer for the whole path
        marks *= len(path)
    for (source, end), verdict in zip(pairwise(path), marks, strict=False):
        if verdict is not None:
            _arrow(canvas, points[source], points[end], 3, RIGHT if verdict else WRONG, radius)

    seen = {place for source, end, triple in edges if triple in described for place in (source, end)}
    for place in {source for source, _, _ in edges} | {end for _, end, _ in edges}:
        x, y = points[place]
        canvas.disc(x, y, radius, INK if place in seen else FAINT)
        if radius > 10:
            canvas.text(f"{node[place]:03d}", x, y + 1, 15, FLOOR, "center")
    if asked:
        canvas.disc(points[path[0]][0], points[path[0]][1], radius + 3, AGENT)
        goal = episode.query[0][2]
        end = names.nodes[goal] if goal != LABELS else path[-1] if episode.phase == "over" else None
        if end is not None:
            lost = episode.phase == "over" and False in marks
            x, y = points[end]
            if end != path[0]:
                canvas.disc(x, y, radius + 6, FLOOR)
            canvas.star(x, y, radius + 6, WRONG if lost else GOAL)
        for place in {path[0], *([end] if end is not None else [])} if radius > 10 else ():
            canvas.text(f"{node[place]:03d}", points[place][0], points[place][1] + 1, 15, FLOOR, "center")
    if env.world is not None:
        for place, name in enumerate(env.world.names):
            x, y = points[place]
            if place in path or not asked:
                left = x > 0.8 * side
                canvas.text(
                    name, x - 9 if left else x + 9, y - 8, 15 if asked else 13, INK, f"mid{'right' if left else 'left'}"
                )
    _panel(canvas, side, [("shown  " + names.triple(episode.shown), None), *lines])
    canvas.caption(
        f"step {len(story.targets)} / {env.length}, {episode.phase}", _MARGIN, canvas.height - 0.75 * _MARGIN
    )
    return canvas.frame()


def _panel(canvas: Canvas, side: float, lines: list[tuple[str, bool | None]]) -> None:
    from envs.rendering import FAINT, INK, RIGHT, WRONG

    first, *rest = lines
    rest = rest[2 - int(side / _PITCH) :]  # the last ones, if not all fit
    for row, (words, verdict) in enumerate([first, ("", None), *rest]):
        colour = {True: RIGHT, False: WRONG, None: INK if row == 0 else FAINT}[verdict]
        canvas.text(
            words if len(words) < 62 else words[:60] + "…", side + 2 * _MARGIN, _MARGIN + row * _PITCH, 16, colour
        )


def _arrow(
    canvas: Canvas, start: tuple[float, float], end: tuple[float, float], width: float, colour: Colour, gap: float
) -> None:
    """An arrow, `gap` pixels shorter at both ends, shifted sideways so that an edge does not overlap its reverse."""
    long = math.dist(start, end) or 1.0
    along = ((end[0] - start[0]) / long, (end[1] - start[1]) / long)
    gap = min(gap, 0.3 * long)
    head = min(5 + 1.5 * width, 0.4 * long)

    def at(distance: float, aside: float) -> tuple[float, float]:
        aside += 2.5
        return start[0] + distance * along[0] - aside * along[1], start[1] + distance * along[1] + aside * along[0]

    neck, tip, half = long - gap - head, long - gap, width / 2
    canvas.polygon([at(gap, -half), at(neck, -half), at(neck, half), at(gap, half)], colour)
    canvas.polygon([at(tip, 0), at(neck, -0.5 * head), at(neck, 0.5 * head)], colour)
