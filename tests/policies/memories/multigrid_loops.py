"""The multigrid memory's equations written as loops, and a small memory to hold to them.

Source: Huynh, Maire and Walter, "Multigrid Neural Memory", ICML 2020, and its supplement.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor

from policies.memories import make_memory
from policies.memories.contract import State, Unrolled
from policies.memories.multigrid.memory import Multigrid

BATCH, LENGTH = 2, 3
TINY = {"base": 2, "levels": (1, 2), "channels": (2, 3), "down_levels": (2, 1), "down_channels": (3, 2)}


def build(shape: tuple[int, ...] = (2, 2, 2), queries: dict[str, tuple[int, ...]] | None = None, **options: Any) -> Any:
    """A memory in which every parameter matters."""
    memory = make_memory("multigrid", input_size=shape, queries=queries, **{**TINY, **options}).double()
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return memory


def sequence(shape: tuple[int, ...], *sizes: int) -> Tensor:
    return torch.randn(*sizes, *shape, dtype=torch.float64)


def cells(sides: torch.Size) -> list[tuple[int, ...]]:
    return list(product(*map(range, sides)))


def conv(grid: Tensor, weight: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """3x3 (or 3), zero padding, one place at a time. `grid` `[C, ...]`."""
    padded = torch.zeros(len(grid), *(side + 2 for side in grid.shape[1:]), dtype=grid.dtype)
    padded[(slice(None), *[slice(1, -1)] * (grid.dim() - 1))] = grid
    out = []
    for place in cells(grid.shape[1:]):
        patch = padded[(slice(None), *(slice(p, p + 3) for p in place))]
        out.append((weight * patch).flatten(1).sum(1) + bias)
    return torch.stack(out, 1).view(-1, *grid.shape[1:])


def up(grid: Tensor) -> Tensor:
    sides = torch.Size(2 * side for side in grid.shape[1:])
    return torch.stack([grid[(slice(None), *(p // 2 for p in place))] for place in cells(sides)], 1).view(-1, *sides)


def down(grid: Tensor) -> Tensor:
    sides = torch.Size(side // 2 for side in grid.shape[1:])
    blocks = [grid[(slice(None), *(slice(2 * p, 2 * p + 2) for p in place))].flatten(1) for place in cells(sides)]
    return torch.stack([block.max(1).values for block in blocks], 1).view(-1, *sides)


def concatenated(pyramid: dict[int, Tensor], level: int) -> Tensor:
    """H^x_j = (↑h^x_{j-1}) ⊕ (h^x_j) ⊕ (↓h^x_{j+1})."""
    parts = [up(pyramid[level - 1])] if level - 1 in pyramid else []
    parts += [pyramid[level]] if level in pyramid else []
    parts += [down(pyramid[level + 1])] if level + 1 in pyramid else []
    return torch.cat(parts)


def entered(x: Tensor, memory: Multigrid) -> dict[int, Tensor]:
    plan = memory.plan
    if plan.input_levels == "all":
        pyramid = {}
        for level in range(1, plan.levels[0] + 1):
            sides = torch.Size([plan.base * 2 ** (level - 1)] * plan.rank)
            nearest = [
                x[(slice(None), *(p * s // side for p, s, side in zip(place, x.shape[1:], sides, strict=True)))]
                for place in cells(sides)
            ]
            pyramid[level] = torch.stack(nearest, 1).view(-1, *sides)
        return pyramid
    level = next(level for level in range(1, 9) if plan.base * 2 ** (level - 1) >= max(x.shape[1:]))
    side = plan.base * 2 ** (level - 1)
    canvas = torch.zeros(len(x), *[side] * plan.rank, dtype=x.dtype)
    canvas[(slice(None), *(slice((side - s) // 2, (side - s) // 2 + s) for s in x.shape[1:]))] = x
    return {level: canvas}


def over_time(rows: list[Tensor], norm: Any) -> Tensor:
    """The last of `rows` `[C, ...]`, normalised with the statistics of all."""
    seen = torch.cat([row.flatten(1) for row in rows], 1)
    shape = (-1, *[1] * (rows[-1].dim() - 1))
    mean, std = seen.mean(1), (seen.var(1, correction=0) + 1e-5).sqrt()
    return ((rows[-1] - mean.view(shape)) / std.view(shape)) * norm.weight.view(shape) + norm.bias.view(shape)


def over_step(row: Tensor, norm: Any) -> Tensor:
    shape = (-1, *[1] * (row.dim() - 1))
    normal = (row - row.mean()) / (row.var(correction=0) + 1e-5).sqrt()
    return normal * norm.weight.view(shape) + norm.bias.view(shape)


def reference(memory: Multigrid, xs: Tensor, queries: dict[str, Tensor], state: State) -> dict[str, Tensor]:
    """The paper, one batch entry, one step, one grid and one place at a time."""
    plan = memory.plan
    outputs, maps, finals = [], [], []
    for b in range(xs.shape[1]):
        held = {name: value[b] for name, value in state.items()}
        seen: dict[str, list[Tensor]] = {}

        def normalized(row: Tensor, grid: Any, key: str, seen: dict[str, list[Tensor]] = seen) -> Tensor:
            if plan.normalization == "none":
                return row
            if key.startswith("reader") and plan.reader == "query":
                return over_step(row, grid.norm)
            seen.setdefault(key, []).append(row)
            return over_time(seen[key], grid.norm)

        def add(out: dict[int, Tensor], source: dict[int, Tensor]) -> None:
            for level in out.keys() & source.keys():
                padded = torch.zeros_like(out[level])
                padded[: len(source[level])] = source[level]
                out[level] = out[level] + padded

        outputs.append([])
        maps.append([])
        for t, x in enumerate(xs[:, b]):
            answering = not x.any() if plan.decoder == "silence" else False
            if isinstance(plan.decoder, int):
                answering = bool((x[plan.decoder] > 0.5).any())
            written: list[dict[int, Tensor]] = []
            before = entered(x, memory)
            for number, layer in enumerate(memory.writer.layers, start=1):
                out = {}
                for name, grid in layer.items():
                    level, key = int(name), f"{number}_{name}"
                    count = grid.shape[0]
                    rows = slice(4 * count, 8 * count) if answering else slice(0, 4 * count)
                    weight, bias = grid.conv.weight[rows], grid.conv.bias[rows]
                    h, c = held[f"hidden_{key}"], held[f"cell_{key}"]
                    x_in = concatenated(before, level)
                    gates = conv(x_in, weight[:, : len(x_in)], bias) + conv(h, weight[:, len(x_in) :])
                    w_ci, w_cf, w_co = (
                        torch.zeros(3, *h.shape) if grid.peepholes is None else grid.peepholes[int(answering)]
                    )
                    i = torch.sigmoid(gates[:count] + w_ci * c)
                    f = torch.sigmoid(gates[count : 2 * count] + w_cf * c)
                    c = f * c + i * torch.tanh(gates[3 * count :])
                    o = torch.sigmoid(gates[2 * count : 3 * count] + w_co * c)
                    h = o * torch.tanh(c)
                    held[f"hidden_{key}"], held[f"cell_{key}"] = h, c
                    out[level] = normalized(h, grid, f"writer {key}")
                for to, source in plan.residuals:
                    if to == number:
                        add(out, written[source - 1])
                written.append(out)
                before = out

            grids, pools = [], []
            for index, reader in enumerate(memory.readers):
                beside = written if plan.reader == "query" else []
                query = queries[list(queries)[index]][t, b] if queries else x
                before = entered(query, memory) if plan.reader == "query" else written[-1]
                passed: list[dict[int, Tensor]] = []
                for number, layer in enumerate(reader.layers, start=1):
                    out = {}
                    for name, grid in layer.items():
                        row = conv(concatenated(before, int(name)), grid.conv.weight, grid.conv.bias)
                        if number < len(reader.layers) or plan.activate_output:
                            row = normalized(torch.relu(row), grid, f"reader {index} {number} {name}")
                        out[int(name)] = row
                    for to, source in plan.reader_residuals:
                        if to == number:
                            add(out, passed[source - 1])
                    if number <= len(beside):
                        for level, grid in beside[number - 1].items():
                            out[level] = torch.cat([out[level], grid]) if level in out else grid
                    passed.append(out)
                    last, before = before, out
                pools += [last[level].flatten(1).mean(1) for level in sorted(last)]
                grids += list(before.values())
            read = torch.cat(pools) if plan.readout == "pool" else torch.cat(grids).flatten()
            linear = memory.linear
            outputs[-1].append(linear.weight @ read + linear.bias if isinstance(linear, torch.nn.Linear) else read)
            maps[-1].append(torch.cat(grids))
        finals.append(held)
    result = {"outputs": torch.stack([torch.stack(o) for o in outputs], 1)}
    if plan.rank == 2:
        result["grids"] = torch.stack([torch.stack(m) for m in maps], 1)
    kept = [name for name in finals[0] if name.startswith(("hidden", "cell"))]
    return result | {name: torch.stack([final[name] for final in finals]) for name in kept}


def everything(result: Unrolled) -> dict[str, Tensor]:
    return {"outputs": result.outputs, **result.state} | ({} if result.grids is None else {"grids": result.grids})


def assert_same_with_gradients(ways: list[dict[str, Tensor]], leaves: dict[str, Tensor]) -> None:
    names = set.intersection(*(set(way) for way in ways))
    weights = {name: torch.randn(ways[0][name].shape, dtype=torch.float64) for name in sorted(names)}
    gradients = []
    for way in ways:
        total = torch.stack([(weight * way[name]).sum() for name, weight in weights.items()]).sum()
        found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True)
        gradients.append(dict(zip(leaves, found, strict=True)))
    for parts in (ways, gradients):
        for name in sorted(names) if parts is ways else leaves:
            torch.testing.assert_close(
                parts[1][name], parts[0][name], rtol=1e-8, atol=1e-10, msg=lambda text, k=name: f"{k}: {text}"
            )
