"""GraphTraversal: read a graph edge by edge, then follow a path whose edges are named."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.single_env import single as _single
from envs.tasks.graphs.base import GraphTask, Question
from envs.tasks.graphs.curricula import TRAVERSAL
from envs.tasks.graphs.sample import LABELS, Graphs, below, follow


class GraphTraversal(GraphTask):
    """Follow a path through a graph that was described edge by edge.

    Description:
        A graph of points in the unit square, each with edges to its nearest neighbours, is drawn for each episode.
        Nodes and edges have labels from 0 to 999. Node labels are unique; the edges out of one node have different
        labels. Phases follow one another, one triple per step:

        1. description: all edges (source, edge, destination) in random order;
        2. query: (source, edge, _), (_, edge, _), ..., a walk of L edges;
        3. planning: `planning_steps` steps without input, none by default;
        4. answer: nothing is shown, and the L triples of the walk are due, complete.

    Observation: `Box(float32)` `[92]`: the three labels, each as three digits, each one-hot over 0..9 (all zeros where
        blank); then 1 at the first step of every phase, else 0; then 1 where an answer is due, else 0.

    Action: `MultiDiscrete([10] * 9)`: the nine digits of a triple. `info["target"]` (int64 `[num_envs, 9]`) is the one
        due, `info["weight"]` (float32 `[num_envs]`) 1 where one is, else 0.

    Reward: `weight * (share of right digits) / L`; a perfect episode returns 1.

    Termination: after the longest possible episode; shorter ones are padded with blanks of weight 0.

    Metrics: `right_answers` (share of episodes without a wrong digit), `right_triples` (share of triples without one),
        with a curriculum also `lesson` (the current one).

    Args:
        num_envs: number of environments.
        lesson: 1 to 14; see `envs.tasks.graphs.curricula`. None: the last.
        curriculum: False: all episodes are of `lesson`. True: lessons advance from 1 to `lesson`, and one episode in
            ten is of an earlier one. All episodes are then as long as the last lesson needs.
        pass_mark: share of right answers at which a lesson is passed.
        window: minimum number of episodes of the current lesson from which that share is computed.
        graph: "random"; or a fixed graph to test on, with new labels in every episode: "underground" (interchange
            stations of the London Underground in zone 1) or "family" (a family tree).
        path_length: L; None: drawn from the lesson's range, 7 on a fixed graph.
        planning_steps: steps without input between query and answer.
        data_dir: folder searched first for the files of the Underground; see `envs.data.files`.
        device: torch device of all tensors.
        render_mode: None or "rgb_array".

    Scores:
        Without memory 0.100: nothing is shown when the answer is due, and all digits are equally likely. With memory 1.

    Raises:
        ValueError: an argument is out of its range; or, as `DataError`, a file is missing or damaged.

    Source: Graves et al., "Hybrid computing using a neural network with dynamic external memory" (Nature, 2016): 14
        lessons up to 10 to 40 nodes, out-degrees 2 to 6 and paths of 1 to 20 edges; random walks of seven steps on the
        Underground. How many edge labels a graph has is not known to us: as many as the greatest out-degree of the
        lesson, up to ten.
    """

    lessons = TRAVERSAL
    test_path = 7

    @staticmethod
    def query_rows(path: int) -> int:
        return path

    @staticmethod
    def answer_rows(path: int) -> int:
        return path

    def _draw_questions(self, graphs: Graphs, length: Tensor, limits: Tensor) -> Question:
        at = below(self._uniform(self.num_envs), graphs.nodes)
        edges = (graphs.successors >= 0).sum(2)  # out of each node, [N, V]
        chance = self._uniform(self.longest, self.num_envs)
        path, kinds = [at], []
        for step in range(self.longest):
            slot = below(chance[step], edges.gather(1, at[:, None]).squeeze(1))[:, None]
            kinds.append(follow(graphs.kinds, at).gather(1, slot).squeeze(1))
            at = follow(graphs.successors, at).gather(1, slot).squeeze(1)
            path.append(at)
        walk = torch.stack(path, 1)  # [N, longest + 1]
        node = self.node_labels.gather(1, walk)
        edge = self._kind_labels.gather(1, torch.stack(kinds, 1))
        answer = torch.stack([node[:, :-1], edge, node[:, 1:]], 2)
        query = torch.full_like(answer, LABELS)
        query[:, 0, 0] = node[:, 0]
        query[:, :, 1] = edge
        beyond = torch.arange(self.longest + 1, device=self.device) > length[:, None]
        return Question(graphs, query, length, answer, length, walk.masked_fill(beyond, -1))


single = _single(GraphTraversal)
