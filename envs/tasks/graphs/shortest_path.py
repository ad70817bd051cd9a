"""ShortestPath: read a graph edge by edge, then walk from one node to another by a shortest path."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from envs.single_env import single as _single
from envs.tasks.graphs.base import GraphTask, Question
from envs.tasks.graphs.curricula import SHORTEST_PATH
from envs.tasks.graphs.sample import LABELS, Graphs, below, follow, hops


class ShortestPath(GraphTask):
    """Find a shortest path through a graph that was described edge by edge, seeing where each answer leads.

    Description:
        As in `GraphTraversal`, but the query is one triple (start, _, goal), whose shortest path has L edges; then come
        ten planning steps; then L triples are due, the edges of a path from start to goal.

        The answer is a walk: each answered triple is taken and shown at the next step, and the next target is the first
        edge of a shortest path from the node it leads to. (Of several such edges, the target is the one to the nearest
        node; the others are right too.) An answer that is not an edge out of the current node, or after which the goal
        cannot be reached, is wrong, and the target is taken instead. With probability `beta` the target is taken
        whatever the answer.

    Observation: as in `GraphTraversal`. While answers are due the last triple that was taken is shown; at the first of
        these steps nothing is.

    Action: `MultiDiscrete([10] * 9)`: the nine digits of a triple. `info["target"]` (int64 `[num_envs, 9]`) is one that
        is right, `info["weight"]` (float32 `[num_envs]`) 1 where one is due, else 0.

    Reward: `weight * score / L`, the score 1 for the next edge of any shortest path, else the share of digits that are
        those of the target. A perfect episode returns 1.

    Termination: after the longest possible episode; shorter ones are padded with blanks of weight 0.

    Metrics: `right_answers` (share of episodes in which every answer was the next edge of a shortest path: with
        `beta=0` the share of optimal paths), `right_triples` (share of such answers), with a curriculum also `lesson`.

    Args:
        num_envs: number of environments.
        lesson: 1 to 15; see `envs.tasks.graphs.curricula`. None: the last.
        curriculum: as in `GraphTraversal`.
        pass_mark: share of right answers at which a lesson is passed. The paper requires less than 90 % in this task;
            0.8 is our choice.
        window: minimum number of episodes of the current lesson from which that share is computed.
        beta: probability that the target replaces the answer. The paper trains with 0.8. Evaluate with 0.
        snap: True: the answer is replaced by the edge out of the current node that agrees with it in most digits. The
            paper's policy chooses among existing triples only; this is similar, and raises the score of chance.
        graph: "random", "underground" or "family".
        path_length: L; None: drawn from the lesson's range, 4 on a fixed graph, where all pairs of nodes at this
            distance are equally likely. Where a random graph has no node so far from the start, L is the nearest length
            that it has.
        planning_steps: steps without input between query and answer.
        data_dir: folder searched first for the files of the Underground; see `envs.data.files`.
        device: torch device of all tensors.
        render_mode: None or "rgb_array".

    Scores:
        Without memory 0.333 in the last lesson: the source of every triple except the first is shown, the last edge
        label recurs now and then, and the other digits are guessed. With memory 1. Random actions with `snap`
        have `right_triples` 0.40 and `right_answers` 0.05.

    Raises:
        ValueError: an argument is out of its range; or, as `DataError`, a file is missing or damaged.

    Source: Graves et al., "Hybrid computing using a neural network with dynamic external memory" (Nature, 2016): 15
        lessons, ten planning steps, structured prediction with beta 0.8, four steps on the Underground. There the
        policy's distribution is renormalised over valid triples, which no environment can do: it is given digits, not
        probabilities. See `snap`.
    """

    lessons = SHORTEST_PATH
    test_path = 4
    ignores_actions = False  # the next triple starts at the destination of the last answer
    state_names = (*GraphTask.state_names, "at", "far", "count")
    at: Tensor  # the current node, [N]
    far: Tensor  # edges from every node to the goal, [N, V]
    count: Tensor  # triples taken so far, [N]

    def __init__(
        self,
        num_envs: int = 1,
        *,
        lesson: int | None = None,
        curriculum: bool = False,
        pass_mark: float = 0.8,
        window: int = 512,
        beta: float = 0.0,
        snap: bool = False,
        graph: str = "random",
        path_length: int | None = None,
        planning_steps: int = 10,
        data_dir: str | Path | None = None,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ) -> None:
        if not 0 <= beta <= 1:
            raise ValueError(f"beta is {beta}, expected 0 to 1")
        super().__init__(
            num_envs,
            lesson=lesson,
            curriculum=curriculum,
            pass_mark=pass_mark,
            window=window,
            graph=graph,
            path_length=path_length,
            planning_steps=planning_steps,
            data_dir=data_dir,
            device=device,
            render_mode=render_mode,
        )
        self.beta, self.snap = beta, snap
        self._powers = 10 ** torch.arange(8, -1, -1, device=self.device)
        self._pairs: Tensor | None = None  # on a fixed graph, all pairs of nodes at the requested distance
        if self.world is not None:
            every = torch.arange(len(self.world.names), device=self.device)
            table = self._fixed.successors[:1].expand(len(every), -1, -1)
            self._pairs = (hops(table, every, self.longest, towards=False) == self.longest).nonzero()
            if not len(self._pairs):
                raise ValueError(f"path_length is {self.longest}, but no shortest path of {graph} has as many edges")

    @staticmethod
    def query_rows(path: int) -> int:
        return 1

    @staticmethod
    def answer_rows(path: int) -> int:
        return path

    def _draw_questions(self, graphs: Graphs, length: Tensor, limits: Tensor) -> Question:
        max_nodes = graphs.points.shape[1]
        if self._pairs is not None:
            start, goal = self._pairs[below(self._uniform(self.num_envs), len(self._pairs))].unbind(1)
        else:
            start, goal, length = self._draw_ends(graphs, length)
        self.at, self.count = start, torch.zeros_like(start)
        self.far = hops(graphs.successors, goal, max_nodes - 1, towards=True)
        self.successors = graphs.successors
        self.edge_labels = self._kind_labels.gather(1, graphs.kinds.flatten(1)).view_as(graphs.kinds)
        self._compute_tables()
        at, path, triples = start, [start], []
        for _ in range(self.longest):
            triples.append(self._best_code.gather(1, at[:, None]))
            at = self._best_node.gather(1, at[:, None]).squeeze(1)
            path.append(at)
        query = torch.full((self.num_envs, 1, 3), LABELS, device=self.device)
        query[:, 0, ::2] = self.node_labels.gather(1, torch.stack([start, goal], 1))
        beyond = torch.arange(self.longest + 1, device=self.device) > length[:, None]
        walk = torch.stack(path, 1).masked_fill(beyond, -1)
        answer = self._labels_of(torch.cat(triples, 1))
        return Question(graphs, query, torch.ones_like(length), answer, length, walk)

    def _draw_ends(self, graphs: Graphs, length: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Start, goal and distance `[N]`: a random goal at the requested distance, or at the nearest available one."""
        max_nodes = graphs.points.shape[1]
        start = below(self._uniform(self.num_envs), graphs.nodes)
        distance = hops(graphs.successors, start, min(self.longest, max_nodes - 1), towards=False)
        # of two equally near distances, the longer one
        misfit = 4.0 * (distance - length[:, None]).abs() - (distance > length[:, None]).float()
        far_or_start = (distance == 0) | (distance > self.longest)
        misfit = misfit.masked_fill(far_or_start | (distance > max_nodes - 1), torch.inf)
        goal = (misfit + 0.5 * self._uniform(*misfit.shape)).argmin(1)
        return start, goal, distance.gather(1, goal[:, None]).squeeze(1)

    def _compute_tables(self) -> None:
        """Computes tables of all nodes from graph and goal; the code of a triple is its nine digits as a number."""
        nodes = self.successors.shape[1]
        beyond = self.successors.clamp(min=0).flatten(1)
        far = self.far.gather(1, beyond).view_as(self.successors)
        legal = (self.successors >= 0) & (far < nodes)
        self._optimal = legal & (far < self.far[..., None])
        destination = self.node_labels.gather(1, beyond).view_as(self.successors)
        codes = (self.node_labels[..., None] * LABELS + self.edge_labels) * LABELS + destination
        best = _first(self._optimal)[..., None]  # 0 at the goal and where it cannot be reached, never looked up
        self._best_code = codes.gather(2, best).squeeze(2)
        self._best_node = beyond.view_as(self.successors).gather(2, best).squeeze(2)
        self._codes = codes.masked_fill(~legal, -1)

    def _labels_of(self, codes: Tensor) -> Tensor:
        """The labels of triples, `[..., 3]` from codes `[...]`."""
        return codes[..., None] // self._powers[2::3] % LABELS

    def _digits_of(self, codes: Tensor) -> Tensor:
        """The digits of triples, `[..., 9]` from codes `[...]`."""
        return self._look_up(self._digits, self._labels_of(codes))

    def _advance(self, action: Tensor) -> tuple[Tensor, None, None]:
        now = self._elapsed
        if now < self._earliest:
            return super()._advance(action)
        due, target, at = self.weights[now], self.targets[now], self.at[:, None]
        codes = follow(self._codes, self.at)  # [N, D]
        if self.snap:
            agree = (self._digits_of(codes) == action[:, None]).sum(2).masked_fill(codes < 0, -1)
            slot = _first(agree == agree.amax(1, keepdim=True))[:, None]
            chosen = torch.zeros_like(codes, dtype=torch.bool).scatter_(1, slot, True) & (codes >= 0)
        else:
            chosen = codes == (action * self._powers).sum(1, keepdim=True)
        valid = chosen.any(1)
        right = (chosen & follow(self._optimal, self.at)).any(1)
        score = torch.where(right, 1.0, (action == target).float().mean(1))
        if self.render_mode is not None:
            self._answers.append(action.clone())
        self._measure(**self._metrics(due * ~right, due, now))

        if self.beta:
            valid = valid & (self._uniform(self.num_envs) >= self.beta)
        slot = _first(chosen)[:, None]
        code = torch.where(valid, codes.gather(1, slot)[:, 0], self._best_code.gather(1, at)[:, 0])
        node = follow(self.successors, self.at).gather(1, slot)[:, 0]
        self._move(due > 0, code, torch.where(valid, node, self._best_node.gather(1, at)[:, 0]))
        return due * score / self.total, None, None

    def _move(self, where: Tensor, code: Tensor, node: Tensor) -> None:
        """Moves along the triple of `code` `[N]` to `node` `[N]` where the mask is true, and sets the next target."""
        next_step = self._elapsed + 1
        self.at = torch.where(where, node, self.at)
        self.count = self.count + where
        step = torch.where(where, self.count, 0)[:, None]  # without a move, the start is written again
        self.path = self.path.scatter(1, step, torch.where(where[:, None], self.at[:, None], self.path[:, :1]))
        if next_step < self.length:
            more = (where & (self.weights[next_step] > 0))[:, None]
            shown = self.inputs[next_step, :, :3]
            shown.copy_(torch.where(more, self._labels_of(code), shown))
            digits = self._digits_of(self._best_code.gather(1, self.at[:, None])[:, 0])
            self.targets[next_step] = torch.where(more, digits, self.targets[next_step])

    def path_to_draw(self, index: int) -> list[int]:
        """The nodes walked so far and, while answers are due, those of a shortest path from there to the goal."""
        count, due = int(self.count[index]), int(self.total[index])
        nodes: list[int] = self.path[index, : count + 1].tolist()
        while len(nodes) <= due and self.far[index, nodes[-1]] > 0:
            nodes.append(int(self._best_node[index, nodes[-1]]))
        return nodes

    def state_limits(self) -> dict[str, tuple[int, int]]:
        nodes, longest = self._max_sizes[0] - 1, self.longest
        return {**super().state_limits(), "at": (0, nodes), "count": (0, longest), "successors": (-1, nodes)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict(state)
        if self._started:
            self._compute_tables()


def _first(mask: Tensor) -> Tensor:
    """The first true entry along the last dimension; 0 where there is none."""
    return mask.to(torch.uint8).argmax(-1)


single = _single(ShortestPath)
