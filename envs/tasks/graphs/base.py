"""`GraphTask`: base class of the three graph tasks, from the graph's description to the metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from envs.tasks.graphs.curricula import Lesson, Progress, advance, draw_lessons
from envs.tasks.graphs.sample import LABELS, Graphs, below, distinct, random_graphs
from envs.tasks.graphs.worlds import World, family, underground
from envs.tasks.sequence.base import Sequences, SequenceTask, Steps
from envs.tensor_env import AnswerGroup

GRAPHS = ("random", "underground", "family")
_DIGITS = 3  # in a label
_KINDS = 10  # edge labels that a random graph may have


class Question(NamedTuple):
    """Questions about N graphs, in labels. Q and A: maximum number of triples in a query and in an answer."""

    graphs: Graphs
    """The graphs; a task may have changed the kinds of edges."""
    query: Tensor
    """Triples shown, int64 `[N, Q, 3]`."""
    shown: Tensor
    """Their number, int64 `[N]`."""
    answer: Tensor
    """Triples due, int64 `[N, A, 3]`."""
    due: Tensor
    """Their number, int64 `[N]`."""
    path: Tensor
    """Nodes from the source to the end of the queried path, int64 `[N, most + 1]`; -1 beyond it."""


class GraphTask(SequenceTask):
    """Base class of the graph tasks: a graph is described triple by triple, then something is asked about it.

    An episode has up to four phases, one step for each triple: all edges as (source, edge, destination), in random
    order; the query, with blank parts; `planning_steps` without input; the answer. See `GraphTraversal` for the
    observation, the action and the arguments, which are the same for all three tasks.

    A subclass sets `lessons` and `test_path` (length of queried paths on a fixed graph). It implements `query_rows` and
    `answer_rows` (number of triples for a path of a given length), and `_draw_questions`.

    Raises:
        ValueError: an argument is out of its range; or, as `DataError`, a file of the Underground is missing or
            damaged.
    """

    metric_names: tuple[str, ...] = ("right_answers", "right_triples")
    grouped_metric = "right_triples"
    state_names = (
        *SequenceTask.state_names,
        *("points", "successors", "node_labels", "edge_labels", "path", "lesson", "level", "tried", "passed"),
    )
    lessons: tuple[Lesson, ...]
    test_path: int
    points: Tensor  # as in `Graphs`
    successors: Tensor
    node_labels: Tensor  # [N, V]
    edge_labels: Tensor  # of each edge, [N, V, D]
    _kind_labels: Tensor  # of each kind of edge, [N, kinds]; used by `_draw_questions` only
    path: Tensor  # as in `Question`
    lesson: Tensor  # of the episode, [N]; 0 on a fixed graph

    def __init__(
        self,
        num_envs: int = 1,
        *,
        lesson: int | None = None,
        curriculum: bool = False,
        pass_mark: float = 0.9,
        window: int = 512,
        graph: str = "random",
        path_length: int | None = None,
        planning_steps: int = 0,
        data_dir: str | Path | None = None,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ) -> None:
        last = len(self.lessons) if lesson is None else lesson
        if not 1 <= last <= len(self.lessons):
            raise ValueError(f"lesson is {lesson}, expected 1 to {len(self.lessons)}")
        if graph not in GRAPHS:
            raise ValueError(f"graph is {graph!r}, expected one of {GRAPHS}")
        if curriculum and graph != "random":
            raise ValueError(
                f"curriculum is True with graph={graph!r}, expected 'random': a fixed graph has no lessons"
            )
        if not 0 < pass_mark <= 1 or window < 1:
            raise ValueError(f"pass_mark is {pass_mark}, window {window}; expected 0 < pass_mark <= 1 and window >= 1")
        if planning_steps < 0:
            raise ValueError(f"planning_steps is {planning_steps}, expected at least 0")
        if path_length is not None and path_length < 1:
            raise ValueError(f"path_length is {path_length}, expected at least 1")
        self.world: World | None = None
        """The fixed graph, if the task has one."""
        if graph != "random":
            self.world = underground(data_dir) if graph == "underground" else family()
            path_length = self.test_path if path_length is None else path_length
        stages = self.lessons[0 if curriculum else last - 1 : last]
        if path_length is not None:
            stages = tuple(stage._replace(path=(path_length, path_length)) for stage in stages)
        self.graph, self.curriculum, self.last_lesson = graph, curriculum, last
        self.ignores_actions = self.ignores_actions and not curriculum  # lessons depend on the answers
        self.pass_mark, self.window, self.planning_steps = pass_mark, window, planning_steps
        self.longest = max(stage.path[1] for stage in stages)
        """The largest number of edges in a queried path."""
        min_edges = min(stage.nodes[0] * stage.degree[0] for stage in stages)
        max_edges = max(stage.nodes[1] * stage.degree[1] for stage in stages)
        if self.world is not None:
            min_edges = max_edges = len(self.world.edges)
        # no answer is due before this step, so earlier steps can skip the check
        self._earliest = min_edges + self.query_rows(min(stage.path[0] for stage in stages)) + planning_steps
        super().__init__(
            num_envs,
            spaces.Box(0.0, 1.0, (3 * _DIGITS * 10 + 2,)),
            spaces.MultiDiscrete([10] * (3 * _DIGITS)),
            max_edges + self.query_rows(self.longest) + planning_steps + self.answer_rows(self.longest),
            device,
            render_mode,
        )
        if curriculum:
            self.metric_names = (*self.metric_names, "lesson")
        parts = ("source", "edge", "target")
        self.observation_parts = tuple((part, (_DIGITS, 10)) for part in parts)
        self.observation_parts += (("phase begins", (1,)), ("answer due", (1,)))
        self.action_names = tuple(f"{part} · {place}" for part in parts for place in ("100", "10", "1"))
        self._max_sizes = (max(s.nodes[1] for s in stages), max(s.degree[1] for s in stages), _KINDS)
        if self.world is not None:
            self._fixed = self.world.graphs(num_envs, self.device)
        rows = [(*s.nodes, *s.degree, *s.path, s.relations) for s in stages]
        self._limits = torch.tensor(rows, device=self.device)  # one row per lesson
        self._first = 1 if curriculum else last
        self.level = torch.tensor(self._first, device=self.device)
        self.tried = torch.zeros_like(self.level)
        self.passed = torch.zeros_like(self.level)
        self._make_digits()
        self._verdicts: list[Tensor] = []  # whether each of `_answers` is right, for pictures only

    def _make_digits(self) -> None:
        """Makes the tables of the digits of every label, and of the blank after them."""
        numbers = torch.arange(LABELS, device=self.device)[:, None] // torch.tensor([100, 10, 1], device=self.device)
        self._digits = torch.cat([numbers % 10, torch.zeros_like(numbers[:1])])  # [1001, 3]; the blank's are 0
        self._one_hot = torch.nn.functional.one_hot(self._digits, 10).flatten(1).float()  # [1001, 30]
        self._one_hot[LABELS] = 0.0

    # -- implemented by subclasses ----------------------------------------------------------------------------------

    @staticmethod
    def query_rows(path: int) -> int:
        """Triples in the query for a path of `path` edges."""
        raise NotImplementedError

    @staticmethod
    def answer_rows(path: int) -> int:
        """Triples in the answer for a path of `path` edges."""
        raise NotImplementedError

    def _draw_questions(self, graphs: Graphs, length: Tensor, limits: Tensor) -> Question:
        """Draws the questions, for paths of `length` `[N]` edges.

        `node_labels` and `_kind_labels` are those of the graphs; `limits` are the rows `[N, 7]` of the lessons.
        """
        raise NotImplementedError

    def _label_kinds(self, kinds: int) -> Tensor:
        """The labels of each graph's edge kinds, int64 `[N, kinds]`."""
        return distinct(self._uniform(self.num_envs, kinds), LABELS)

    # -- the sequences ---------------------------------------------------------------------------------------------

    def _sequences(self) -> Sequences:
        count = self.num_envs
        limits, graphs = self._draw_graphs()
        length = limits[:, 4] + below(self._uniform(count), limits[:, 5] - limits[:, 4] + 1)
        self.node_labels = distinct(self._uniform(count, graphs.points.shape[1]), LABELS)
        self._kind_labels = self._label_kinds(_KINDS if self.world is None else len(self.world.kinds))
        question = self._draw_questions(graphs, length, limits)
        graphs = question.graphs
        self.points, self.successors, self.path = graphs.points, graphs.successors, question.path
        self.edge_labels = self._kind_labels.gather(1, graphs.kinds.flatten(1)).view_as(graphs.kinds)

        # all rows that an environment may show, concatenated, and the index of the row of each step
        exists = self.successors.flatten(1) >= 0  # [N, V * D]
        order = self._uniform(*exists.shape).masked_fill_(~exists, 2.0).argsort(1)
        blank = torch.full((count, 1, 3), LABELS, device=self.device)
        rows = torch.cat([self._triples(), question.query, blank], 1)
        slots, shown, due = exists.shape[1], question.shown[:, None], question.due[:, None]
        edges = exists.sum(1)[:, None]
        times = self._times.T  # [1, T]
        asking, answering = times - edges, times - edges - shown - self.planning_steps
        described = order.gather(1, times.clamp(max=slots - 1).expand(count, -1))
        row = torch.where(asking < shown, slots + asking, rows.shape[1] - 1)
        row = torch.where(asking < 0, described, row)
        asked = (answering >= 0) & (answering < due)
        begins = (times == 0) | (asking == 0) | (answering == 0)
        begins |= (asking == shown) & bool(self.planning_steps)
        flags = torch.stack([begins, asked], 2)
        inputs = torch.cat([self._rows_at(rows, row), flags], 2)  # [N, T, 5]

        answer = torch.cat([question.answer, blank], 1)
        triple = torch.where(asked, answering, answer.shape[1] - 1)
        targets = self._look_up(self._digits, self._rows_at(answer, triple))
        inputs, targets = (part.transpose(0, 1).contiguous() for part in (inputs, targets))
        return Sequences(inputs, targets, asked.T.float().contiguous())

    def _draw_graphs(self) -> tuple[Tensor, Graphs]:
        """The limits `[N, 7]` of the environments' lessons, and graphs."""
        if self.world is not None:
            self.lesson = torch.zeros(self.num_envs, dtype=torch.int64, device=self.device)
            return self._limits[self.lesson], self._fixed
        if self.curriculum:
            self.lesson = draw_lessons(self.level, self._uniform(2, self.num_envs))
        else:
            self.lesson = torch.full((self.num_envs,), self.last_lesson, device=self.device)
        limits = self._limits[self.lesson - self._first]
        nodes = limits[:, 0] + below(self._uniform(self.num_envs), limits[:, 1] - limits[:, 0] + 1)
        kinds = self._draw_kinds(limits[:, 3])
        return limits, random_graphs(nodes, (limits[:, 2], limits[:, 3]), kinds, self._max_sizes, self.generator)

    def _draw_kinds(self, most_edges: Tensor) -> Tensor:
        """The number of edge labels of each graph, int64 `[N]`, at least the greatest out-degree."""
        return most_edges + below(self._uniform(self.num_envs), _KINDS + 1 - most_edges)

    def _triples(self) -> Tensor:
        """The labels of all edges, `[N, V * D, 3]`; entries of missing edges are undefined."""
        source = self.node_labels[:, :, None].expand_as(self.edge_labels)
        destination = self.node_labels.gather(1, self.successors.flatten(1).clamp(min=0))
        return torch.stack([source.flatten(1), self.edge_labels.flatten(1), destination], 2)

    @staticmethod
    def _rows_at(rows: Tensor, index: Tensor) -> Tensor:
        """`rows[n, index[n, t]]`: `[N, T, 3]` from `[N, R, 3]` and `[N, T]`."""
        return rows.gather(1, index[..., None].expand(-1, -1, 3))

    @staticmethod
    def _look_up(table: Tensor, labels: Tensor) -> Tensor:
        """The rows of three labels concatenated: `[..., 3 K]` from `[1001, K]` and `[..., 3]`."""
        return table.index_select(0, labels.flatten()).view(*labels.shape[:-1], -1)

    # -- the environment -------------------------------------------------------------------------------------------

    def _begin(self, where: Tensor | None) -> None:
        super()._begin(where)
        self._verdicts.clear()

    def _metrics(self, wrong: Tensor, asked: Tensor, steps: Steps) -> dict[str, tuple[Tensor, Tensor]]:
        triples, missed = (asked > 0).float(), wrong > 0
        failed, ended = self._fail(wrong), self._ended(steps)
        if self.render_mode is not None:
            self._verdicts.extend(~missed if isinstance(steps, slice) else ~missed[None])
        metrics = {
            "right_answers": (~failed * ended, ended),
            "right_triples": (triples * ~missed, triples),
        }
        if self.curriculum:
            metrics["lesson"] = (self.level * ended, ended)
            if self._ends(steps):
                progress = Progress(self.level, self.tried, self.passed)
                self.level, self.tried, self.passed = advance(
                    progress, self.lesson, ~self.failed, self.pass_mark, self.window, self.last_lesson
                )
        return metrics

    def answer_groups(self) -> dict[str, AnswerGroup]:
        """Also groups by the number of edges in the graph."""
        return {**super().answer_groups(), "edges shown": self._group((self.successors >= 0).sum((1, 2)))}

    def _group(self, number: Tensor, labels: tuple[str, ...] = ()) -> AnswerGroup:
        """A group with one number per episode, from int64 `[N]`."""
        return AnswerGroup(number.expand(self.length, -1), labels)

    def _shown(self, steps: Steps) -> Tensor:
        shown = self.inputs[steps]
        return torch.cat([self._look_up(self._one_hot, shown[..., :3]), shown[..., 3:].float()], -1)

    def state_limits(self) -> dict[str, tuple[int, int]]:
        lesson = (self._first, self.last_lesson)
        return {"level": lesson, "lesson": lesson}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict(state)
        self._verdicts.clear()

    def path_to_draw(self, index: int) -> list[int]:
        """The nodes of the queried path in one environment, for display."""
        return [node for node in self.path[index].tolist() if node >= 0]

    def meaning(self, label: int) -> list[int]:
        """The edge labels that a relation's label stands for, for display; empty for other labels."""
        return []

    # -- pictures --------------------------------------------------------------------------------------------------

    def text(self, index: int = 0) -> str:
        """The current triple, the query, and given and right answers as text; `!` marks errors."""
        from envs.tasks.graphs.pictures import graph_text

        return graph_text(self, index, self._story(index), self._verdicts)

    def observation_text(self, index: int = 0) -> str:
        if self._elapsed == self.length:
            return ""
        labels = self.inputs[self._elapsed, index, :3].tolist()
        return " ".join("_" if label == LABELS else f"{label:03d}" for label in labels)

    def frame(self, index: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
        from envs.tasks.graphs.pictures import graph_frame  # pygame is needed for pictures only

        return graph_frame(self, index, self._story(index), self._verdicts)
