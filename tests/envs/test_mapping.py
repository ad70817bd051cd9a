"""Mapping against slow readings of its rules: what is seen, asked, right, rewarded and measured."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from pretend_cuda import PretendCuda
from torch import Tensor

from agents.evaluation import play
from envs.bits import count_common
from envs.mapping.environment import Mapping
from envs.mapping.worlds import patch_codes, random_maze, spiral
from envs.testing import ENV_CHECKS, EnvCase
from envs.testing.case import expect_same

Array = np.ndarray[Any, np.dtype[Any]]


def around(walls: Array, row: int, column: int, width: int) -> Array:
    reach = width // 2
    return walls[row - reach : row + reach + 1, column - reach : column + reach + 1]


class Witness:
    """Follows one copy and works out, cell by cell, what is right."""

    def __init__(self, env: Mapping, copy: int) -> None:
        self.env, self.copy = env, copy
        self.visited: list[tuple[int, int]] = []
        self.seen = np.zeros((env.size, env.size), dtype=bool)

    def look(self) -> dict[int, tuple[Array, Array]]:
        """After a step: for every query its patch (all -1 where there is none) and the right mask."""
        env = self.env
        walls = env.walls[self.copy].numpy()
        row, column = env.cell[self.copy].tolist()
        self.visited.append((row, column))
        around(self.seen, row, column, 3)[:] = True
        middle, start = env.map_size // 2, env.size // 2
        result = {}
        for width, place in zip(env.queries, env.asked[self.copy].tolist(), strict=True):
            mask = np.zeros((env.map_size, env.map_size), dtype=bool)
            reach = width // 2
            inside = range(reach, env.size - reach)
            if width == 3:
                known = set(self.visited)
            else:
                known = {(r, c) for r in inside for c in inside if around(self.seen, r, c, width).all()}
            patch = np.full((width, width), -1)
            if place >= 0:
                assert divmod(place, env.size) in known
                patch = around(walls, *divmod(place, env.size), width).astype(int)
                for r, c in known:
                    mask[middle + r - start, middle + c - start] = (around(walls, r, c, width) == patch).all()
            else:
                assert not known
            result[width] = (patch, mask)
        return result


@pytest.mark.parametrize(
    ("trajectory", "queries", "world"),
    [("spiral", (3,), "maze"), ("random", (9, 3), "cells"), ("spiral", (3, 9), "maze"), ("explore", (3,), "maze")],
)
def test_views_questions_answers_and_rewards(trajectory: str, queries: tuple[int, ...], world: str) -> None:
    count = 3
    env = Mapping(count, size=13, trajectory=trajectory, queries=queries, world=world, density=0.3, position_scale=0.5)
    obs, info = env.reset(seed=4)
    witnesses = [Witness(env, copy) for copy in range(count)]
    generator = torch.Generator().manual_seed(0)
    blank = asked = 0
    for step in range(121):
        truth = [witness.look() for witness in witnesses]
        assert isinstance(obs, dict)
        for copy in range(count):
            walls = env.walls[copy].numpy()
            row, column = env.cell[copy].tolist()
            view = obs["view"][copy].numpy()
            assert np.array_equal(view[1], around(walls, row, column, 3))
            assert np.array_equal(view[0], 1 - view[1])
            assert (view[2] == 0.5 * (row - 6)).all()
            assert (view[3] == 0.5 * (column - 6)).all()
            for width in queries:
                patch, _ = truth[copy][width]
                shown = obs[f"query_{width}"][copy].numpy()
                assert np.array_equal(shown[1], patch == 1)
                assert np.array_equal(shown[0], patch == 0)
                assert not shown[2:].any()
                blank += bool((patch < 0).all())
                asked += 1
        masks = torch.tensor(np.array([[truth[copy][width][1] for width in queries] for copy in range(count)]))
        if trajectory == "explore":
            place = info["target"][:, 1]
            assert masks.any(1).flatten(1)[range(count), place].all()
            assert info["weight"].tolist() == [[0.0, 1.0]] * count
            action = torch.stack(
                [torch.randint(4, (count,), generator=generator), torch.randint(144, (count,), generator=generator)], 1
            )
        else:
            assert torch.equal(info["target"].view(masks.shape).bool(), masks)
            wrong = torch.rand(masks.shape, generator=generator) < 0.2
            action = (masks ^ wrong).view(count, *env.single_action_space.shape).to(torch.int8)
        before = [int(witness.seen.sum()) for witness in witnesses]
        obs, reward, _, _, info = env.step(action)
        if step == 120:
            break
        for copy in range(count):
            if trajectory == "explore":
                row, column = env.cell[copy].tolist()
                seen = witnesses[copy].seen.copy()
                around(seen, row, column, 3)[:] = True
                right = bool(masks[copy].any(0).flatten()[action[copy, 1]])
                expected = 0.5 * right / 121 + 0.5 * (int(seen.sum()) - before[copy]) / 169
            else:
                scores = [f1(action.view(masks.shape)[copy, q].bool(), masks[copy, q]) for q in range(len(queries))]
                expected = np.mean(scores) / 121
            assert reward[copy].item() == pytest.approx(float(expected), rel=1e-5)
    assert (blank > 0) == (9 in queries)
    assert blank < asked


def f1(marked: Tensor, wanted: Tensor) -> float:
    total = int(marked.sum() + wanted.sum())
    return 2 * int((marked & wanted).sum()) / total if total else 1.0


def test_metrics_are_those_of_all_marks_together() -> None:
    env = Mapping(2, size=7, queries=(3,), density=0.5)
    _, info = env.reset(seed=0)
    hits = marked = wanted = 0
    sums = {name: torch.zeros(2) for name in env.metric_names}
    generator = torch.Generator().manual_seed(1)
    for _ in range(25):
        action = (torch.rand(info["target"].shape, generator=generator) < 0.3).to(torch.int8)
        hits += int((action & info["target"]).sum())
        marked, wanted = marked + int(action.sum()), wanted + int(info["target"].sum())
        _, _, _, _, info = env.step(action)
        for name, (amount, total) in info["metrics"].items():
            sums[name] += torch.stack([amount.sum(), total.sum()])
    found = {name: (amount / total).item() for name, (amount, total) in sums.items()}
    assert found["precision"] == pytest.approx(hits / marked)
    assert found["recall"] == pytest.approx(hits / wanted)
    assert found["f1"] == pytest.approx(2 * hits / (marked + wanted))


def test_marks_are_counted_alike_on_a_gpu() -> None:
    env = Mapping(4, size=15, queries=(3, 9), device="cpu")
    env.reset(seed=0)
    marks = env.target | torch.randint(2, env.target.shape, dtype=torch.int8)
    expected = count_common(marks, env.target)
    with PretendCuda():
        found = [number.cpu() for number in count_common(marks.cuda(), env.target.cuda())]
    for ours, theirs in zip(found, expected, strict=True):
        assert theirs.any()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"size": 7, "map_size": 6},
        {"size": 7, "horizon": 30, "position_scale": 0.5},
        {"size": 7, "trajectory": "random"},
        {"size": 11, "queries": [9], "world": "cells"},
        {"size": 11, "queries": [9, 3], "trajectory": "random", "passable": True},
    ],
    ids=str,
)
def test_a_preview_is_the_steps_it_stands_for(kwargs: dict[str, Any]) -> None:
    """Their random numbers are drawn in the same order too."""
    case = EnvCase("Engram/Mapping-v0", kwargs)
    assert ENV_CHECKS["a_preview_is_the_steps_it_stands_for"](case) is None
    env = case.make()
    env.reset(seed=0)
    before = env.state_dict()
    env.preview(4)
    expect_same(env.state_dict(), before, "the state after a preview that is not taken")


def test_explorers_and_rules_of_ones_own_have_no_previews() -> None:
    class Asks(Mapping):
        def _query(self, width: int, drawn: Tensor) -> tuple[Tensor, Tensor]:
            return super()._query(width, torch.zeros_like(drawn))

    assert Mapping(2).previews
    assert not Mapping(2, trajectory="explore").previews
    assert not Asks(2).previews
    assert Asks(2).preview(3) is None


def test_a_walk_of_ones_own_is_previewed() -> None:
    class Down(Mapping):
        def _next_cell(self, cell: Tensor, step: int) -> Tensor:
            return (cell + torch.tensor([1, 0])).clamp(max=self.size - 2)

    env, stepped = Down(2, size=9), Down(2, size=9)
    env.reset(seed=0)
    stepped.reset(seed=0)
    preview = env.preview(6)
    assert preview is not None
    actions = torch.zeros_like(preview.targets)
    for t in range(6):
        assert torch.equal(preview.targets[t], stepped.describe()["target"])
        stepped.step(actions[t])
    preview.take(actions)
    expect_same(env.state_dict(), stepped.state_dict(), "the state after a preview")
    assert env.cell.tolist() == [[7, 4]] * 2


def test_the_right_answers_earn_everything() -> None:
    env = Mapping(4, size=11, queries=(3, 9), trajectory="random")
    score = play(lambda obs, starts: env.describe()["target"], env, 4, seed=0)
    assert score.mean == pytest.approx(1.0, abs=1e-5)
    assert score.metrics == dict.fromkeys(("precision", "recall", "f1", "f1_3"), 1.0)  # no walk sees 9×9 cells


def test_each_query_has_its_own_score() -> None:
    env = Mapping(4, size=11, queries=(9, 3))
    only_3 = torch.tensor([0, 1], dtype=torch.int8)[:, None, None]
    found = play(lambda obs, starts: env.describe()["target"] * only_3, env, 4, seed=0).metrics
    assert (found["f1_3"], found["f1_9"]) == (1.0, 0.0)
    assert 0.0 < found["f1"] < 1.0


def test_what_needs_no_memory_earns_little() -> None:
    """The figure in the class's docstring."""
    env = Mapping(64)
    middle = env.map_size // 2

    def here(obs: Any, starts: Tensor | None) -> Tensor:
        marks = torch.zeros(64, env.map_size, env.map_size, dtype=torch.int8)
        same = (obs["view"][:, 1] == obs["query_3"][:, 1]).all(2).all(1)
        place = obs["view"][:, 2:, 0, 0].long() + middle
        marks[torch.arange(64), place[:, 0], place[:, 1]] = same.to(torch.int8)
        return marks

    assert play(here, env, 64, seed=0).mean == pytest.approx(0.04, abs=0.004)
    assert play(lambda obs, starts: torch.zeros(64, 24, 24), env, 64, seed=0).mean == 0.0


def test_a_spiral_sees_every_cell_once() -> None:
    for size in (5, 7, 15):
        path = spiral(size)
        assert path[0] == (size // 2, size // 2)
        assert sorted(path) == [(r, c) for r in range(1, size - 1) for c in range(1, size - 1)]
        assert all(abs(a - c) + abs(b - d) == 1 for (a, b), (c, d) in itertools.pairwise(path))


def test_a_walk_respects_walls_unless_it_may_pass() -> None:
    for passable in (False, True):
        env = Mapping(16, size=9, trajectory="random", passable=passable, density=0.6, world="cells", horizon=60)
        env.reset(seed=0)
        hits = 0
        last = env.cell
        for _ in range(59):
            env.step(torch.zeros(16, env.map_size, env.map_size))
            assert ((env.cell - last).abs().sum(1) <= 1).all()
            assert ((env.cell > 0) & (env.cell < 8)).all()
            hits += int(env.walls[torch.arange(16), env.cell[:, 0], env.cell[:, 1]].sum())
            last = env.cell
        assert (hits > 0) == passable


def test_an_explorer_goes_where_it_wants_and_not_through_walls() -> None:
    env = Mapping(1, size=7, trajectory="explore", density=0.0, horizon=40)
    env.reset(seed=0)
    for move, expected in ((0, (2, 3)), (3, (2, 4)), (1, (3, 4)), (2, (3, 3)), (0, (2, 3)), (0, (1, 3)), (0, (1, 3))):
        env.step(torch.tensor([[move, 0]]))
        assert tuple(env.cell[0].tolist()) == expected


def test_an_explorer_that_cannot_be_asked_yet_is_not_scored() -> None:
    env = Mapping(4, size=11, queries=(9,), trajectory="explore", horizon=5)
    _, info = env.reset(seed=0)
    assert (env.asked == -1).all()  # nobody has seen 9×9 cells
    assert not info["weight"].any()
    _, _, _, _, info = env.step(torch.zeros(4, 2, dtype=torch.int64))
    amount, count = info["metrics"]["located"]
    assert not amount.any()
    assert not count.any()


def test_mazes_grow_from_even_cells_inside_a_ring() -> None:
    walls = random_maze(200, 15, 0.05, 0.2, torch.Generator().manual_seed(0))
    assert walls[:, [0, -1]].all()
    assert walls[:, :, [0, -1]].all()
    assert not walls[:, 1::2, 1::2].any()  # walls run along even rows and columns
    inside = walls[:, 1:-1, 1:-1].float().mean().item()
    assert 0.1 < inside < 0.4
    for maze in walls[:20]:  # and every one hangs together with an even cell two away or stands alone
        for row, column in maze[1:-1, 1:-1].nonzero().tolist():
            r, c = row + 1, column + 1
            assert r % 2 == 0 or c % 2 == 0
            if r % 2:
                assert maze[r - 1, c]
                assert maze[r + 1, c]
            if c % 2:
                assert maze[r, c - 1]
                assert maze[r, c + 1]
    assert not torch.equal(walls[0], walls[1])
    assert not random_maze(3, 9, 0.05, 0.0, torch.Generator())[:, 1:-1, 1:-1].any()


@pytest.mark.parametrize(("size", "complexity", "density"), [(9, 0.05, 0.3), (15, 0.2, 0.2)])
def test_mazes_are_those_of_the_routine_in_a_loop(size: int, complexity: float, density: float) -> None:
    count, half = 20, size // 2
    found = random_maze(count, size, complexity, density, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    walls, length = int(density * half * half), int(complexity * 5 * 2 * size)
    starts = 2 * torch.randint(half + 1, (walls, count, 2), generator=generator)
    choices = torch.randint(12, (walls, length, count), generator=generator)
    for copy in range(count):
        maze = np.zeros((size, size), dtype=bool)
        maze[[0, -1]] = maze[:, [0, -1]] = True
        for wall in range(walls):
            row, column = starts[wall, copy].tolist()
            maze[row, column] = True
            for step in range(length):
                near = [(row - 2, column), (row + 2, column), (row, column - 2), (row, column + 2)]
                near = [(r, c) for r, c in near if 0 <= r < size and 0 <= c < size]
                r, c = near[int(choices[wall, step, copy]) % len(near)]
                if not maze[r, c]:
                    maze[r, c] = maze[(row + r) // 2, (column + c) // 2] = True
                    row, column = r, c
        assert np.array_equal(found[copy].numpy(), maze)


@pytest.mark.parametrize("width", [3, 9])
def test_equal_codes_are_equal_patches(width: int) -> None:
    walls = torch.rand(4, 13, 13, generator=torch.Generator().manual_seed(0)) < 0.05
    codes = patch_codes(walls, width).flatten(2)
    patches = walls.float().unfold(1, width, 1).unfold(2, width, 1).flatten(1, 2).flatten(2)
    same = (codes[:, :, :, None] == codes[:, :, None]).all(1)
    assert torch.equal(same, (patches[:, :, None] == patches[:, None]).all(3))


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"size": 6}, "size is 6"),
        ({"trajectory": "walk"}, "trajectory is 'walk'"),
        ({"world": "sea"}, "world is 'sea'"),
        ({"queries": (5,)}, "queries are"),
        ({"queries": ()}, "queries are"),
        ({"size": 9, "queries": (9,)}, "9 only with size >= 11"),
        ({"density": 1.5}, "density is 1.5"),
        ({"map_size": 6}, "map_size is 6"),
        ({"horizon": 0}, "horizon 0"),
        ({"complexity": -1.0}, "complexity is -1.0"),
        ({"complexity": math.nan}, "complexity is nan"),
        ({"position_scale": math.inf}, "position_scale is inf"),
    ],
)
def test_wrong_arguments_are_named(kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Mapping(1, **kwargs)


def test_the_map_is_as_large_as_it_must_be() -> None:
    assert [Mapping(1, size=size).map_size for size in (5, 9, 15, 25)] == [3, 12, 24, 24]
    assert Mapping(1, size=25).horizon == 529
    assert Mapping(1, size=15).horizon == 169


@pytest.mark.parametrize("scale", [-2.0, 2.0])
def test_positions_lie_in_the_space(scale: float) -> None:
    env = Mapping(8, size=7, position_scale=scale)
    space: Any = env.single_observation_space["view"]
    obs = env.reset(seed=0)[0]
    least, most = 0.0, 0.0
    for _ in range(40):
        least, most = min(least, float(obs["view"].min())), max(most, float(obs["view"].max()))
        obs = env.step(torch.zeros(8, 36, dtype=torch.int64))[0]
    assert (space.low.min(), space.high.max()) == (least, most) == (-4.0, 4.0)
