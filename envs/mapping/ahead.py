"""Many steps of `Mapping` at once: what is asked at each of them, given the walk and the random numbers."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

_NEVER = 2**30


class Walking(Protocol):
    """What is read of `Mapping`."""

    device: torch.device
    generator: torch.Generator
    queries: tuple[int, ...]
    size: int
    map_size: int
    path: Tensor
    cell: Tensor
    asked: Tensor
    target: Tensor
    _elapsed: int
    _codes: dict[int, Tensor]
    _around: dict[int, Tensor]
    _on_map_at: Tensor

    def _next_cell(self, cell: Tensor, step: int) -> Tensor: ...
    def _flat_index(self, cell: Tensor) -> Tensor: ...
    def _draw(self, width: int, step: int) -> Tensor: ...
    def _choose(self, width: int, drawn: Tensor, known: Tensor) -> tuple[Tensor, Tensor]: ...


class Walk(NamedTuple):
    """The walk of N agents up to the next T steps, and the T + 1 questions from the current one on."""

    path: Tensor
    """Flat indices of the cells of all steps, int64 `[N, horizon + 1]`."""
    asked: Tensor
    """Flat indices of the queried places, int64 `[T + 1, N, queries]`; -1: none."""
    target: Tensor
    """The right marks, int8 `[T + 1, N, queries, M, M]`."""
    generator: Tensor
    """The state of the environment's generator after the steps."""


def look_ahead(env: Walking, end: int) -> Walk:
    """The walk up to step `end` of the episode, and what is asked on it; leaves the environment as it is."""
    now, places = env._elapsed, env.map_size**2
    before, path, cell = env.generator.get_state(), env.path.clone(), env.cell
    drawn: dict[int, list[Tensor]] = {width: [] for width in env.queries}
    for step in range(now + 1, end + 1):  # random numbers in the order of single steps
        cell = env._next_cell(cell, step)
        path[:, step] = env._flat_index(cell)
        for width in env.queries:
            drawn[width].append(env._draw(width, step))
    after = env.generator.get_state()
    env.generator.set_state(before)

    cells, times = path[:, : end + 1, None], torch.arange(now + 1, end + 1, device=env.device)
    asked, target = [env.asked[None]], [env.target[None]]
    pairs = []
    for width in env.queries:
        numbers = torch.stack(drawn[width])
        if width == 3:
            place = path.t().gather(0, numbers)
            visited = _first_times(env._on_map_at[cells], places) <= times[:, None, None]
            same = visited & same_code(env._codes[3].flatten(2), env._on_map_at[place])
            pairs.append((place, same.view(*place.shape, env.map_size, env.map_size).to(torch.int8)))
        else:
            seen = _first_times(cells + env._around[3], env.size**2).view(-1, 1, env.size, env.size)
            known = F.max_pool2d(seen.float(), width, stride=1) <= times.view(-1, 1, 1, 1, 1)
            pairs.append(env._choose(width, numbers, known))
    for parts, found in zip((asked, target), zip(*pairs, strict=True), strict=True):
        parts.append(torch.stack(found, 2))
    return Walk(path, torch.cat(asked), torch.cat(target), after)


def _first_times(cells: Tensor, count: int) -> Tensor:
    """The first time of each of `count` cells, int32 `[N, count]`, from k cells at each time, int64 `[N, T, k]`."""
    steps = torch.arange(cells.shape[1], dtype=torch.int32, device=cells.device)
    never = torch.full((len(cells), count), _NEVER, dtype=torch.int32, device=cells.device)
    times = steps[:, None].expand(cells.shape)
    return never.scatter_reduce(1, cells.flatten(1), times.flatten(1), "amin")


def same_code(codes: Tensor, place: Tensor) -> Tensor:
    """Which places have the code of another: bool `[T, N, places]`.

    Args:
        codes: integers `[N, keys, places]`.
        place: int64 `[T, N]`.
    """
    same: Tensor | bool = True
    for key in codes.unbind(1):
        same = (key == key.expand(*place.shape, -1).gather(-1, place.unsqueeze(-1))) & same
    assert isinstance(same, Tensor)
    return same
