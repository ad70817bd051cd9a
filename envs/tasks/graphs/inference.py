"""GraphInference: read a graph edge by edge, then find the node in a given relation, whose meaning must be learned."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from envs.single_env import single as _single
from envs.tasks.graphs.base import GraphTask, Question
from envs.tasks.graphs.curricula import INFERENCE
from envs.tasks.graphs.sample import LABELS, Graphs, below, follow
from envs.tasks.graphs.worlds import World
from envs.tensor_env import AnswerGroup

EDGES = 10
"""Number of edge labels, 0 to 9, of which relations consist."""
PER_LENGTH = 100
"""Number of relations of each length."""
LENGTHS = (2, 5)
"""Minimum and maximum number of edges in a relation."""


def relations(seed: int) -> Tensor:
    """Edge labels that relations stand for, int64 `[400, 5]`, -1 beyond their length; relation r has label 10 + r.

    The first hundred are all pairs of edge labels; then come a hundred different sequences of three, four and five.
    """
    generator = torch.Generator().manual_seed(seed)
    table = torch.full(((LENGTHS[1] - LENGTHS[0] + 1) * PER_LENGTH, LENGTHS[1]), -1)
    for index, length in enumerate(range(LENGTHS[0], LENGTHS[1] + 1)):
        words = torch.randperm(EDGES**length, generator=generator)[:PER_LENGTH, None]
        powers = EDGES ** torch.arange(length - 1, -1, -1)
        table[index * PER_LENGTH : (index + 1) * PER_LENGTH, :length] = words // powers % EDGES
    return table


class GraphInference(GraphTask):
    """Find the node that is in a given relation to another, in a graph that was described edge by edge.

    Description:
        As in `GraphTraversal`, but edges have labels from 0 to 9. The query is one triple (source, relation, _), and
        after ten planning steps the triple (source, relation, destination) is due. 400 relations, with the labels 10 to
        409, stand for paths of two to five edge labels, a hundred for each length. They are the same in all episodes
        and never shown: what they mean has to be learned.

    Observation: as in `GraphTraversal`.

    Action: `MultiDiscrete([10] * 9)`: the nine digits of a triple. `info["target"]` (int64 `[num_envs, 9]`) is the
        right one, `info["weight"]` (float32 `[num_envs]`) 1 where it is due, else 0.

    Reward: `weight * (share of right digits)`; a perfect episode returns 1.

    Termination: after the longest possible episode; shorter ones are padded with blanks of weight 0.

    Metrics: `right_answers` and `right_triples`, here the same: the share of answers without a wrong digit; with a
        curriculum also `lesson`.

    Args:
        num_envs: number of environments.
        lesson: 1 to 17; see `envs.tasks.graphs.curricula`. None: the last.
        curriculum: as in `GraphTraversal`.
        pass_mark: share of right answers at which a lesson is passed.
        window: minimum number of episodes of the current lesson from which that share is computed.
        relation_seed: seed of the meaning of the relations. An agent trained with one seed fails with another.
        graph: "random" or "family". In the family tree the eight kinds of edges have eight of the ten labels, drawn
            for every episode, so that the trained relations can be queried.
        path_length: edges in the relation, 2 to 5; None: drawn from the lesson's range, 4 in the family tree.
        planning_steps: steps without input between query and answer.
        device: torch device of all tensors.
        render_mode: None or "rgb_array".

    Scores:
        Without memory 0.117: the hundreds digit of a relation is 1, 2 or 3 with probability 1/4 each, and the other
        digits are guessed. With memory 1.

    Raises:
        ValueError: an argument is out of its range.

    Source: Graves et al., "Hybrid computing using a neural network with dynamic external memory" (Nature, 2016): 17
        lessons, ten planning steps, 400 relations with labels from 10 to 410, four-step relations in the family tree.
        The paper does not say how questions and graphs were matched. Here a source and a relation are drawn uniformly,
        and the edges on a path from the source are labelled so that the relation leads along it.
    """

    lessons = INFERENCE
    test_path = 4

    def __init__(
        self,
        num_envs: int = 1,
        *,
        lesson: int | None = None,
        curriculum: bool = False,
        pass_mark: float = 0.9,
        window: int = 512,
        relation_seed: int = 0,
        graph: str = "random",
        path_length: int | None = None,
        planning_steps: int = 10,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ) -> None:
        if graph == "underground":
            raise ValueError("graph is 'underground', whose lines are more than ten; expected 'random' or 'family'")
        if path_length is not None and not LENGTHS[0] <= path_length <= LENGTHS[1]:
            raise ValueError(f"path_length is {path_length}, expected {LENGTHS[0]} to {LENGTHS[1]}")
        super().__init__(
            num_envs,
            lesson=lesson,
            curriculum=curriculum,
            pass_mark=pass_mark,
            window=window,
            graph=graph,
            path_length=path_length,
            planning_steps=planning_steps,
            device=device,
            render_mode=render_mode,
        )
        self.relations = relations(relation_seed).to(self.device)
        """The meaning of relations; see the function `relations`."""
        if self.world is not None:
            self._prepare(self.world)

    @staticmethod
    def query_rows(path: int) -> int:
        return 1

    @staticmethod
    def answer_rows(path: int) -> int:
        return 1

    def meaning(self, label: int) -> list[int]:
        if not EDGES <= label < EDGES + len(self.relations):
            return []
        return [word for word in self.relations[label - EDGES].tolist() if word >= 0]

    def answer_groups(self) -> dict[str, AnswerGroup]:
        """Also groups by the queried relation, its number of edges, and whether it repeats an edge label."""
        shown = self.inputs[..., 1]
        label = shown.masked_fill(shown == LABELS, 0).amax(0)  # a relation's label exceeds those of edges
        words = self.relations[label - EDGES]
        edges = (words >= 0).sum(1)
        equal = ((words[:, :, None] == words[:, None]) & (words >= 0)[:, None]).sum((1, 2))  # each edge equals itself
        return {
            **super().answer_groups(),
            "relation": self._group(label),
            "edges of the relation": self._group(edges),
            "edge labels of the relation": self._group((equal > edges).long(), ("differ", "repeat")),
        }

    def _label_kinds(self, kinds: int) -> Tensor:
        if self.world is None:
            return torch.arange(EDGES, device=self.device).expand(self.num_envs, EDGES)
        return self._uniform(self.num_envs, EDGES).argsort(1)  # there are more labels than kinds; the last are unused

    def _draw_kinds(self, most_edges: Tensor) -> Tensor:
        return torch.full_like(most_edges, EDGES)

    def _draw_questions(self, graphs: Graphs, length: Tensor, limits: Tensor) -> Question:
        if self.world is None:
            known = torch.where(length == limits[:, 5], limits[:, 6], PER_LENGTH)
            relation = (length - LENGTHS[0]) * PER_LENGTH + below(self._uniform(self.num_envs), known)
            source = below(self._uniform(self.num_envs), graphs.nodes)
            graphs, path = self._relabel(graphs, relation, source, length)
        else:
            relation, path = self._match()
            source = path[:, 0]
        end = path.gather(1, length[:, None])
        ends = self.node_labels.gather(1, torch.cat([source[:, None], end], 1))
        answer = torch.stack([ends[:, 0], EDGES + relation, ends[:, 1]], 1)[:, None]
        query = answer.clone()
        query[:, :, 2] = LABELS
        count = torch.ones_like(length)
        return Question(graphs, query, count, answer, count, path)

    def _relabel(self, graphs: Graphs, relation: Tensor, source: Tensor, length: Tensor) -> tuple[Graphs, Tensor]:
        """Relabels edges so that each relation leads along a path; returns the graphs and the path `[N, longest + 1]`.

        At each node the walk takes the edge to which it has already assigned the required label. Otherwise it takes an
        unassigned edge, if possible to a new node, and swaps labels with the edge that had the required one. Unassigned
        edges do not run out: with two edges out of every node, a path of five edges leaves no node a third time.
        """
        count, nodes, max_edges = graphs.kinds.shape
        kinds, fixed = graphs.kinds, torch.zeros_like(graphs.kinds, dtype=torch.bool)
        visited = torch.zeros(count, nodes, device=self.device).scatter_(1, source[:, None], 1.0)
        noise = self._uniform(self.longest, count, max_edges)
        at, path = source, [source]
        for step in range(self.longest):
            wanted = self.relations[relation, step][:, None]
            ends, row, assigned = follow(graphs.successors, at), follow(kinds, at), follow(fixed, at)
            continues = assigned & (row == wanted)
            revisits = visited.gather(1, ends.clamp(min=0))
            cost = (noise[step] + revisits).masked_fill((ends < 0) | assigned, torch.inf).masked_fill(continues, -1.0)
            slot = cost.argmin(1, keepdim=True)
            row = torch.where(row == wanted, row.gather(1, slot), row).scatter(1, slot, wanted)
            assigned = assigned.scatter(1, slot, True)
            moves = (step < length)[:, None]
            index = at[:, None, None].expand(-1, 1, max_edges)
            kinds = kinds.scatter(1, index, torch.where(moves, row, follow(kinds, at))[:, None])
            fixed = fixed.scatter(1, index, (assigned & moves)[:, None])
            node = ends.gather(1, slot)
            visited = visited.scatter(1, node, 1.0)
            at = torch.where(moves, node, at[:, None]).squeeze(1)
            path.append(torch.where(moves.squeeze(1), at, -1))
        return graphs._replace(kinds=kinds), torch.stack(path, 1)

    def _match(self) -> tuple[Tensor, Tensor]:
        """Relations `[N]` and paths `[N, longest + 1]` in the fixed graph; `_kind_labels` are changed to fit.

        A relation fits a path if its labels and the path's kinds of edges repeat at the same positions: then some
        labelling of the kinds makes the relation lead along the path. Both are drawn uniformly: first a relation that
        fits any path, then a path.
        """
        choice = below(self._uniform(self.num_envs), len(self._fitting))
        relation, group = self._fitting[choice].unbind(1)
        first, size = self._groups[group].unbind(1)
        walk = first + below(self._uniform(self.num_envs), size)
        words, kinds = self.relations[relation], self._walk_kinds[walk]
        labels = self._kind_labels
        for step in range(self.longest):  # swap labels, so that the kind of this edge has the required one
            kind, wanted = kinds[:, step, None], words[:, step, None]
            labels = torch.where(labels == wanted, labels.gather(1, kind), labels).scatter(1, kind, wanted)
        self._kind_labels = labels
        return relation, self._walks[walk]

    def _prepare(self, world: World) -> None:
        """Lists the paths of a fixed graph that visit no node twice, and the relations that fit them."""
        walks: list[tuple[tuple[int, ...], tuple[int, ...]]] = [((node,), ()) for node in range(len(world.names))]
        for _ in range(self.longest):
            walks = [
                ((*nodes, end), (*kinds, kind))
                for nodes, kinds in walks
                for start, kind, end in world.edges
                if start == nodes[-1] and end not in nodes
            ]
        walks.sort(key=lambda walk: _pattern(walk[1]))
        patterns = [_pattern(kinds) for _, kinds in walks]
        groups = sorted(set(patterns))
        begin = (self.longest - LENGTHS[0]) * PER_LENGTH
        words = self.relations[begin : begin + PER_LENGTH, : self.longest].tolist()
        fitting = [
            (begin + number, groups.index(_pattern(word)))
            for number, word in enumerate(words)
            if _pattern(word) in groups
        ]
        if not fitting:
            raise ValueError(f"no relation of relation_seed fits a path of {self.longest} edges in the graph")
        self._walks = torch.tensor([nodes for nodes, _ in walks], device=self.device)
        self._walk_kinds = torch.tensor([kinds for _, kinds in walks], device=self.device)
        starts = [(patterns.index(pattern), patterns.count(pattern)) for pattern in groups]
        self._groups = torch.tensor(starts, device=self.device)
        self._fitting = torch.tensor(fitting, device=self.device)


def _pattern(word: Sequence[int]) -> tuple[int, ...]:
    """The pattern of equal symbols in a word: for each symbol the index of its first occurrence."""
    return tuple(word.index(symbol) for symbol in word)


single = _single(GraphInference)
