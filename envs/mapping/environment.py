"""Mapping and localisation: see 3×3 cells at a time, and mark on a map where a patch was seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor

from envs.bits import count_common
from envs.mapping.ahead import Walk, look_ahead, same_code
from envs.mapping.worlds import (
    MOVES,
    cells_of,
    check_arguments,
    offsets,
    patch_codes,
    patches_of_codes,
    random_cells,
    random_maze,
    spiral,
)
from envs.preview import Preview, Taken
from envs.single_env import single as _single
from envs.tensor_env import Info, TensorEnv


class Mapping(TensorEnv):
    """Explore a world seen through a 3×3 window; at every step, mark all places that look like a given patch.

    Description:
        A world of `size` × `size` cells with a ring of wall around it, a new one every episode. The agent starts in the
        centre, sees the 3×3 cells around it and knows how far it is from the start. At every step it is shown one patch
        for each entry of `queries`, from what it has explored:

        - 3: what it saw at a random earlier step, or sees now. It must mark every visited place that looks the same.
        - 9: the 9×9 cells around a random place, all of which it has seen, though never at once. It must mark every
          place that looks the same. While there is no such place, the patch is blank and nothing is to be marked.

        The centre of the map is the place where the agent started. The answer refers to the moment of the question,
        before the next move. (In the paper's program the agent moves before the answer is read.)

        `trajectory`: "spiral" walks over all cells from the centre outwards, through walls; "random" goes to a random
        free neighbour; with "explore" the agent chooses its moves, and names one matching place at every step.

    Observation: `Dict`:
        | key        | shape     | content                                                                            |
        |------------|-----------|------------------------------------------------------------------------------------|
        | `view`     | [4, 3, 3] | free (one-hot), wall (one-hot), rows from the start, columns from the start        |
        | `query_3`  | [4, 3, 3] | the query patch, in the same form; the last two planes are 0                       |
        | `query_9`  | [4, 9, 9] | likewise                                                                           |

        Rows and columns are integers times `position_scale`.

    Action: `MultiBinary([M, M])`, or `MultiBinary([queries, M, M])` for several queries: the marks. M is `map_size`;
        the start is at row and column M // 2. With "explore" `MultiDiscrete([4, M²])`: a move (0 up, 1 down, 2 left,
        3 right), and a place, counted row by row. `info["target"]` is the mask. With "explore" it is a matching place,
        with `weight` 1 if there is one, and a move with weight 0, since no right move is defined.

    Reward: F1 = 2 TP / (2 TP + FP + FN) of the marks, averaged over the queries and divided by the number of steps, so
        that a perfect episode returns 1. F1 is 1 if there is nothing to mark and nothing is marked. With "explore":
        `0.5 * [the place is right] / horizon + 0.5 * cells seen for the first time / size²`.

    Termination: after `horizon` steps.

    Metrics: `precision`, `recall`, `f1` of all marks; with both queries also `f1_3` and `f1_9`. With "explore"
        `located` (share of right places among the steps that have one) and `explored` (share of cells seen in the end).

    Args:
        num_envs: number of environments.
        size: width of the world including its ring of wall, odd, at least 5.
        trajectory: "spiral", a fixed walk over all cells; "random", a random walk; or "explore", where the agent moves.
        queries: widths of the query patches, each 3 or 9; 9 needs a size of at least 11.
        world: "maze", or "cells", where each cell is a wall with probability `density`; see `envs.mapping.worlds`.
        density: amount of walls; 0: none inside the ring.
        complexity: length of the walls of a maze.
        passable: whether the agent can walk through walls; None: only on a spiral.
        horizon: steps of an episode; None: `(size - 2)²`, the number of cells on a spiral.
        map_size: M; None: the smallest 3 · 2ⁱ that holds all places. The paper has 48 for size 25, where 24 is enough.
        position_scale: factor on the last two planes of `view`.
        device: torch device of all tensors.
        render_mode: None or "rgb_array".

    Scores:
        Best 1. Marking nothing returns 0 (0.14 with queries of 3 and 9 at size 15). Marking the current cell if it
        looks like the query, which needs no memory, returns 0.040 at size 15 on a spiral (0.104 at 9, 0.016 at 25).

    Raises:
        ValueError: an argument is out of its range.

    Source: Huynh, Maire, Walter, "Multigrid Neural Memory", ICML 2020, section 4.1 and appendix B.1.1: mazes of 25 × 25
        and 15 × 15, spiral of 529 and 169 steps, 3×3 and 9×9 queries. How 9×9 queries are drawn, the random walk and
        joint exploration are not published; what is here is our reading.
    """

    state_names = ("walls", "cell", "visited", "seen", "path", "asked", "target")

    def __init__(
        self,
        num_envs: int = 1,
        *,
        size: int = 15,
        trajectory: str = "spiral",
        queries: Sequence[int] = (3,),
        world: str = "maze",
        density: float = 0.2,
        complexity: float = 0.05,
        passable: bool | None = None,
        horizon: int | None = None,
        map_size: int | None = None,
        position_scale: float = 1.0,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ) -> None:
        inner = size - 2
        horizon = inner**2 if horizon is None else horizon
        map_size = next(3 * 2**k for k in range(64) if 3 * 2**k >= inner) if map_size is None else map_size
        queries = tuple(queries)
        check_arguments(size, trajectory, queries, world, complexity, density, horizon, map_size, position_scale)
        self.size, self.trajectory, self.queries, self.world = size, trajectory, queries, world
        self.density, self.complexity = density, complexity
        self.passable = trajectory == "spiral" if passable is None else passable
        self.map_size, self.position_scale = map_size, position_scale
        self.explores = trajectory == "explore"
        self.ignores_actions = not self.explores
        each_width = tuple(f"f1_{width}" for width in queries if len(queries) > 1)
        self.metric_names = ("located", "explored") if self.explores else ("precision", "recall", "f1", *each_width)
        shape = (map_size, map_size) if len(queries) == 1 else (len(queries), map_size, map_size)
        reach = max(1.0, abs(position_scale) * (inner // 2))
        view = np.full((4, 3, 3), reach, dtype=np.float32)
        view[:2] = 1.0
        low = np.minimum(-view, 0)
        low[:2] = 0.0
        parts: dict[str, spaces.Space[Any]] = {"view": spaces.Box(low, view)}
        parts |= {f"query_{width}": spaces.Box(0.0, 1.0, (4, width, width)) for width in queries}
        planes = ("free", "wall", "", "")  # a question has no place
        self.observation_names = dict.fromkeys(parts, planes) | {"view": ("free", "wall", "row", "column")}
        self.action_names = ("move", "place") if self.explores else ()
        super().__init__(
            num_envs,
            spaces.Dict(parts),
            spaces.MultiDiscrete([4, map_size**2]) if self.explores else spaces.MultiBinary(shape),
            device,
            horizon=horizon,
            render_mode=render_mode,
        )
        self.marks: Tensor | None = None
        """The last marks `[N, queries, M, M]` and the right ones (`wanted`), for pictures only."""
        self.wanted: Tensor | None = None
        self._spiral = torch.tensor(spiral(size), device=self.device)
        self._moves = torch.tensor(MOVES, device=self.device)
        self._around = {width: offsets(width, size, self.device) for width in {3, *queries}}
        self._patches = patches_of_codes(self.device)
        place, shift = torch.arange(size**2 + 1, device=self.device), map_size // 2 - size // 2
        place[-1] = -1
        self._on_map_at = (place // size + shift) * map_size + place % size + shift
        """By the flat index of a cell in the world, also -1, its flat index on the map: int64 `[size² + 1]`."""

    # -- the rules -------------------------------------------------------------------------------------------------

    def _begin(self, where: Tensor | None) -> None:
        assert where is None
        count, size, device = self.num_envs, self.size, self.device
        if self.world == "maze":
            self.walls = random_maze(count, size, self.complexity, self.density, self.generator)
        else:
            self.walls = random_cells(count, size, self.density, self.generator)
        centre = size // 2
        if not self.passable:
            self.walls[:, centre, centre] = False
        self.cell = torch.full((count, 2), centre, device=device)
        self.visited = torch.zeros(count, size * size, dtype=torch.bool, device=device)
        self.seen = torch.zeros_like(self.visited)
        self.path = torch.zeros(count, self.horizon + 1, dtype=torch.int64, device=device)  # type: ignore[operator]
        self._compute_codes()
        self.marks = self.wanted = None
        self._arrive(0)

    def _compute_codes(self) -> None:
        """Computes the codes of all patches, from the walls and the visited cells."""
        self._flat = self.walls.flatten(1)
        self._codes = {width: self._on_map(patch_codes(self.walls, width), width) for width in {3, *self.queries}}
        visited = self._on_map(self.visited.view(-1, 1, self.size, self.size), 1) == 1
        self._known = torch.where(visited, self._codes[3], -1).squeeze(1)
        """Codes of the places where the agent has been, -1 elsewhere: int16 `[N, M, M]`."""

    def _on_map(self, cells: Tensor, width: int) -> Tensor:
        """Numbers of patches `[N, keys, S, S]` at their places on the map, `[N, keys, M, M]`; -1 elsewhere.

        S is `size - width + 1`. If the map is narrower than the world, the ring of wall is left out.
        """
        begin = self.map_size // 2 - self.size // 2 + width // 2
        end = self.map_size - begin - cells.shape[-1]
        numbers = cells if cells.dtype.is_signed else cells.to(torch.int16)
        return F.pad(numbers, (begin, end, begin, end), value=-1)

    def _arrive(self, step: int) -> None:
        """Updates the cells that the agent at `cell` has seen at `step`, and draws the next queries."""
        at = self._flat_index(self.cell)[:, None]
        self.path[:, step] = at.squeeze(1)
        if self.explores:
            self._discovered = (~self.seen.gather(1, at + self._around[3])).sum(1)
        self._visit(at)
        asked, masks = zip(*(self._query(width, self._draw(width, step)) for width in self.queries), strict=True)
        self.asked, self.target = torch.stack(asked, 1), torch.stack(masks, 1)

    def _flat_index(self, cell: Tensor) -> Tensor:
        return cell[:, 0] * self.size + cell[:, 1]

    def _visit(self, cells: Tensor) -> None:
        """Updates what the agents know after visiting cells, flat indices `[N, k]`."""
        self.visited.scatter_(1, cells, True)
        here = self._on_map_at[cells]
        self._known.flatten(1).scatter_(1, here, self._codes[3].flatten(1).gather(1, here))
        self.seen.scatter_(1, (cells[..., None] + self._around[3]).flatten(1), True)

    def _draw(self, width: int, step: int) -> Tensor:
        """The random numbers of a query at `step`: an earlier step `[N]`, or for 9×9 numbers of all its places."""
        if width == 3:
            return torch.randint(step + 1, (self.num_envs,), generator=self.generator, device=self.device)
        side = self.size - width + 1
        return torch.rand(self.num_envs, 1, side, side, generator=self.generator, device=self.device)

    def _query(self, width: int, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """The place `[N]` of the queried patch (-1: none), and the mask `[N, M, M]`, int8, of all places that look like
        it."""
        if width == 3:
            place = self.path.gather(1, drawn[:, None]).squeeze(1)
            code = self._known.flatten(1).gather(1, self._on_map_at[place][:, None])
            right = torch.empty(self._known.shape, dtype=torch.int8, device=self.device)
            return place, torch.eq(self._known, code[..., None], out=right)  # twice as fast as with a bool result
        unseen = 1.0 - self.seen.view(-1, 1, self.size, self.size).float()
        known = F.max_pool2d(unseen, width, stride=1) == 0  # [N, 1, S, S]
        place, mask = self._choose(width, drawn[None], known[None])
        return place[0], mask[0]

    def _choose(self, width: int, drawn: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """The known place `[T, N]` with the largest number drawn (-1: none), and the mask `[T, N, M, M]` of all that
        look like it, from numbers and bools `[T, N, 1, S, S]`."""
        margin, side, shape = width // 2, known.shape[-1], (*known.shape[:2], self.map_size, self.map_size)
        best, index = (drawn * known).flatten(2).max(2)
        place = (index // side + margin) * self.size + index % side + margin
        none = best == 0
        same = same_code(self._codes[width].flatten(2), self._on_map_at[place]).view(shape)
        same &= (self._on_map(known.flatten(0, 1), width) == 1).view(shape)
        return place.masked_fill(none, -1), (same & ~none[..., None, None]).to(torch.int8)

    def _advance(self, action: Tensor) -> tuple[Tensor, None, None]:
        assert self.horizon is not None
        if self.explores:
            due = self.target.flatten(1).amax(1).float()
            right = self.target.amax(1).flatten(1).gather(1, action[:, 1:].long()).squeeze(1).float()
            if self.render_mode is not None:
                place = F.one_hot(action[:, 1].long(), self.map_size**2).float()
                self.marks = place.view(-1, 1, self.map_size, self.map_size).expand(self.target.shape)
                self.wanted = self.target
        else:
            reward, metrics = self._grade(action, self.target)
        self._move(action)
        self._arrive(self._elapsed + 1)
        if self.explores:
            last = torch.full_like(right, float(self._elapsed + 1 == self.horizon))
            self._measure(located=(right, due), explored=(self.seen.sum(1) / self.size**2 * last, last))
            return 0.5 * right / self.horizon + 0.5 * self._discovered / self.size**2, None, None
        self._measure(**metrics)
        return reward, None, None

    def _grade(self, actions: Tensor, target: Tensor) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """Rewards `[...]` and metrics, from actions `[..., *action_shape]` and masks `[..., queries, M, M]`."""
        assert self.horizon is not None
        marks = actions.to(torch.int8).view(target.shape)
        if self.render_mode is not None:
            self.marks, self.wanted = (each.view(-1, *self.target.shape)[-1] for each in (marks, target))
        hits, marked, wanted = count_common(marks, target)
        both, either = 2 * hits, marked + wanted
        score = torch.where(either > 0, both / either.clamp(min=1), 1.0)
        each = {name: (both[..., q], either[..., q]) for q, name in enumerate(self.metric_names[3:])}
        hits, marked, wanted = hits.sum(-1), marked.sum(-1), wanted.sum(-1)
        metrics = {"precision": (hits, marked), "recall": (hits, wanted), "f1": (2 * hits, marked + wanted), **each}
        return score.mean(-1) / self.horizon, metrics

    def _move(self, action: Tensor) -> None:
        if not self.explores:
            self.cell = self._next_cell(self.cell, self._elapsed + 1)
            return
        beyond = self.cell + self._moves[action[:, 0].long()]
        self.cell = torch.where(self._open(beyond[:, None]), beyond, self.cell)

    def _next_cell(self, cell: Tensor, step: int) -> Tensor:
        """Where agents at `cell` `[N, 2]` are at `step`, on a spiral or a random walk."""
        if self.trajectory == "spiral":
            return self._spiral[min(step, len(self._spiral) - 1)].expand(self.num_envs, 2)
        beyond = cell[:, None] + self._moves  # [N, 4, 2]
        drawn = torch.rand(self.num_envs, 4, generator=self.generator, device=self.device)
        best, choice = (drawn * self._open(beyond)).max(1, keepdim=True)
        return torch.where(best > 0, beyond.gather(1, choice[..., None].expand(-1, 1, 2)).squeeze(1), cell)

    def _open(self, cells: Tensor) -> Tensor:
        """Whether the agent may stand on `cells` `[N, k, 2]`, all of them in the world: bool `[N, k]`."""
        inside = ((cells > 0) & (cells < self.size - 1)).all(-1)
        if self.passable:
            return inside
        return inside & ~self._flat.gather(1, cells[..., 0] * self.size + cells[..., 1])

    def _observe(self) -> dict[str, Tensor]:
        return self._shown(self.path[:, self._elapsed], self.cell, self.asked)

    def _shown(self, at: Tensor, cell: Tensor, asked: Tensor) -> dict[str, Tensor]:
        """The observations at flat indices `[...]`, that is cells `[..., 2]`, asked for places `[..., queries]`."""
        place = (cell - self.size // 2) * self.position_scale
        view = self._patch(at, 3)
        view[..., 2:, :, :] = place[..., None, None]
        obs = {"view": view}
        for index, width in enumerate(self.queries):
            obs[f"query_{width}"] = self._patch(asked[..., index], width)
        return obs

    def _patch(self, place: Tensor, width: int) -> Tensor:
        """The patches around places `[N]` or `[T, N]`, `[..., 4, width, width]`; blank where `place` is -1, which only
        occurs for 9×9."""
        if width == 3:
            code = self._codes[3].flatten(1).expand(*place.shape, -1).gather(-1, self._on_map_at[place][..., None])
            return self._patches.index_select(0, code.flatten().int()).view(*place.shape, *self._patches.shape[1:])
        here = place >= 0
        index = torch.where(here, place, self.size**2 // 2)[..., None] + self._around[width]
        wall = self._flat.expand(*place.shape, -1).gather(-1, index).view(*place.shape, width, width)
        patch = torch.zeros(*place.shape, 4, width, width, device=self.device)
        patch[..., 0, :, :], patch[..., 1, :, :] = ~wall & here[..., None, None], wall & here[..., None, None]
        return patch

    def _describe(self) -> Info:
        if not self.explores:
            target = self.target.view(self.num_envs, *self.single_action_space.shape).clone()  # type: ignore[misc]
            return {"target": target, "weight": torch.ones(self.num_envs, device=self.device)}
        place = self.asked.amax(1)  # of several queries one is enough; -1: no query yet
        cell = self._on_map_at[place]
        weight = torch.stack([torch.zeros_like(place), place >= 0], 1).float()
        return {"target": torch.stack([torch.zeros_like(place), cell.clamp(min=0)], 1), "weight": weight}

    # -- many steps at once ----------------------------------------------------------------------------------------

    @property
    def previews(self) -> bool:
        # a subclass with rules of its own has to be stepped
        rules = ("step", "_advance", "_arrive", "_visit", "_query", "_move", "_observe", "_describe")
        ours = all(getattr(type(self), name) is getattr(Mapping, name) for name in rules)
        return ours and self.ignores_actions and self.autoreset

    def preview(self, steps: int) -> Preview | None:
        assert self.horizon is not None
        begin, end = self._elapsed, self._elapsed + steps
        if not self.previews or end > self.horizon:
            return None
        walk = look_ahead(self, end)
        shown = self._shown(at := walk.path[:, begin:end].t(), cells_of(at, self.size), walk.asked[:-1])
        target = walk.target[:-1].view(steps, self.num_envs, *self.single_action_space.shape)  # type: ignore[misc]
        ones = torch.ones(steps, self.num_envs, device=self.device)
        return Preview(shown, target.clone(), ones, lambda actions: self._take(walk, actions))

    def _take(self, walk: Walk, actions: Tensor) -> Taken:
        reward, metrics = self._grade(actions, walk.target[:-1])
        self.generator.set_state(walk.generator)
        self.path, self.asked, self.target = walk.path, walk.asked[-1], walk.target[-1]
        if not (ended := self._pass(len(actions))):
            new = self.path[:, self._elapsed - len(actions) + 1 : self._elapsed + 1]
            self.cell = cells_of(new[:, -1], self.size)
            self._visit(new)
        return Taken(self._observe(), reward, ended, metrics)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict(state)
        if self._started:
            self.target = self.target.to(torch.int8)  # older checkpoints have float32
            self._compute_codes()
        self.marks = self.wanted = None

    # -- for people ------------------------------------------------------------------------------------------------

    def text(self, index: int = 0) -> str:
        """The world as text: `#` wall, `.` free, blank not seen, `A` agent, `?` centre of the queried patch."""
        walls, seen = self.walls[index].cpu().numpy(), self.seen[index].view(self.size, self.size).cpu().numpy()
        picture = np.where(seen, np.where(walls, "#", "."), " ")
        for place in self.asked[index].tolist():
            if place >= 0:
                picture[place // self.size, place % self.size] = "?"
        row, column = self.cell[index].tolist()
        picture[row, column] = "A"
        return "\n".join("".join(row) for row in picture)

    def frame(self, index: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
        from envs.mapping.picture import mapping_frame  # pygame is needed for pictures only

        return mapping_frame(self, index, self._elapsed)


single = _single(Mapping)
