"""Random labelled graphs for all environments at once, with walks and distances."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

LABELS = 1000
"""Labels are below this number, which marks a blank."""


class Graphs(NamedTuple):
    """N directed graphs of at most V nodes, each with at most D outgoing edges."""

    points: Tensor
    """Positions of the nodes in the unit square, float32 `[N, V, 2]`."""
    successors: Tensor
    """The node that an edge leads to, int64 `[N, V, D]`; -1 where there is no edge. A node's edges come first."""
    kinds: Tensor
    """The edge label of each edge, int64 `[N, V, D]`; the edges of a node have different labels."""
    nodes: Tensor
    """Number of nodes, int64 `[N]`; they come first."""


def below(chance: Tensor, limit: Tensor | int) -> Tensor:
    """Random integers from 0 to `limit - 1` (`limit` at least 1), from random numbers from 0 to 1."""
    scaled = (chance * limit).long()  # rounding can reach the limit itself
    return torch.minimum(scaled, limit - 1) if isinstance(limit, Tensor) else scaled.clamp(max=limit - 1)


def distinct(chance: Tensor, pool: int, limit: Tensor | None = None) -> Tensor:
    """Different integers in random order, int64 `[R, k]`, from random numbers from 0 to 1 of this shape; k <= `pool`.

    Args:
        chance: random numbers `[R, k]`.
        pool: the results are below this number.
        limit: int64 `[R]`; the results of a row are also below its limit, as long as any are left.
    """
    rows, count = chance.shape
    numbers = torch.arange(pool, device=chance.device).expand(rows, pool).contiguous()
    places = torch.arange(count, device=chance.device)
    left = pool - places if limit is None else (limit[:, None] - places).clamp(min=1)
    others = places + below(chance, left.expand_as(chance))
    pairs = torch.stack([others, places.expand_as(others)], 2)
    drawn = []
    for place in range(count):  # the first steps of a Fisher-Yates shuffle
        pair = numbers.gather(1, pairs[:, place])
        numbers.scatter_(1, others[:, place : place + 1], pair[:, 1:])
        drawn.append(pair[:, 0])
    return torch.stack(drawn, 1)


def random_graphs(
    nodes: Tensor,
    degree: tuple[Tensor, Tensor],
    kinds: Tensor,
    max_sizes: tuple[int, int, int],
    generator: torch.Generator,
) -> Graphs:
    """Nearly planar graphs: points drawn uniformly from the unit square, with edges to their nearest neighbours.

    Args:
        nodes: number of nodes, int64 `[N]`, more than the greatest out-degree.
        degree: minimum and maximum number of edges out of a node, int64 `[N]`; drawn uniformly for each node.
        kinds: number of edge labels of each graph, int64 `[N]`, at least the greatest out-degree.
        max_sizes: V, D and the maximum number of edge labels.
        generator: random generator.
    """
    most_nodes, most_edges, most_kinds = max_sizes
    count, device = len(nodes), nodes.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=device)

    points = uniform(count, most_nodes, 2)
    x, y = points.unbind(2)
    distance = (x[:, :, None] - x[:, None]).square_() + (y[:, :, None] - y[:, None]).square_()  # [N, V, V]
    exists = torch.arange(most_nodes, device=device) < nodes[:, None]  # [N, V]
    distance.masked_fill_(~exists[:, None], torch.inf).diagonal(dim1=1, dim2=2).fill_(torch.inf)
    nearest = distance.topk(most_edges, dim=2, largest=False).indices

    least, most = degree
    edges = least[:, None] + below(uniform(count, most_nodes), (most - least + 1)[:, None])
    slots = torch.arange(most_edges, device=device)
    missing = (slots >= edges[..., None]) | ~exists[..., None]
    limits = kinds[:, None].expand(count, most_nodes).flatten()
    chosen = distinct(uniform(count * most_nodes, most_edges), most_kinds, limits)
    return Graphs(points, nearest.masked_fill(missing, -1), chosen.view(count, most_nodes, most_edges), nodes)


def follow(successors: Tensor, at: Tensor) -> Tensor:
    """The rows of a table `[N, V, D]`, such as successors, at the nodes `at` `[N]`: `[N, D]`."""
    return successors.gather(1, at[:, None, None].expand(-1, 1, successors.shape[2])).squeeze(1)


def hops(successors: Tensor, node: Tensor, most: int, towards: bool) -> Tensor:
    """Number of edges on the shortest path from `node` to every node, or from every node to it, int64 `[N, V]`.

    Args:
        successors: `[N, V, D]`, -1 where there is no edge.
        node: `[N]`.
        most: maximum length; `most + 1` if there is no such path.
        towards: True: to `node`, against the edges.
    """
    count, nodes, _ = successors.shape
    edges = torch.zeros(count, nodes, nodes + 1, device=successors.device)
    edges = edges.scatter_(2, successors.masked_fill(successors < 0, nodes), 1.0)[..., :nodes]
    edges.diagonal(dim1=1, dim2=2).fill_(1.0)  # reached nodes stay reached
    step = edges.transpose(1, 2) if towards else edges
    reached = torch.zeros(count, 1, nodes, device=successors.device).scatter_(2, node[:, None, None], 1.0)
    within = [reached]
    for _ in range(most):
        within.append(torch.bmm(within[-1], step).clamp_(max=1.0))
    return (most + 1 - torch.cat(within, 1).sum(1)).long()
