"""Pictures of Mapping: the world, the explored part, the question, and the given and right marks."""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from envs.rendering import AGENT, FLOOR, INK, LINE, PAPER, RIGHT, WRONG, Canvas, Colour, Frame, available_size

Array = np.ndarray[Any, np.dtype[Any]]

_SIDE, _MARGIN, _TITLE, _FOOT = 264, 16, 26, 28  # units: side of a map, space around it, lines above and below it
_MISSED: Colour = (232, 160, 40)


class Drawn(Protocol):
    """The attributes of `envs.mapping.environment.Mapping` that are drawn."""

    size: int
    map_size: int
    queries: tuple[int, ...]
    walls: Tensor
    seen: Tensor
    path: Tensor
    cell: Tensor
    asked: Tensor
    marks: Tensor | None
    wanted: Tensor | None

    @property
    def horizon(self) -> int | None: ...


def mapping_frame(env: Drawn, index: int, step: int) -> Frame:
    """Draws environment `index` of the batch, `step` steps after its reset."""
    size = env.size
    walls = env.walls[index].cpu().numpy()
    seen = env.seen[index].view(size, size).cpu().numpy()
    path = env.path[index, : step + 1].cpu().numpy()
    agent = env.cell[index].tolist()

    def extent(columns: int) -> tuple[float, float]:
        rows = math.ceil(3 / columns)
        return columns * (_SIDE + _MARGIN) + _MARGIN, rows * (_TITLE + _SIDE + _FOOT) + 1.5 * _MARGIN

    columns, available = 3, available_size()
    if available is not None:
        columns = max((3, 2, 1), key=lambda n: min(available.width / extent(n)[0], available.height / extent(n)[1]))
    canvas = Canvas(*extent(columns))
    places = [
        (
            _MARGIN + number % columns * (_SIDE + _MARGIN),
            _MARGIN + number // columns * (_TITLE + _SIDE + _FOOT) + _TITLE,
        )
        for number in range(3)
    ]
    for (left, top), title in zip(places, ("world", "explored so far", "marks of the last step"), strict=True):
        canvas.text(title, left, top - _TITLE + 10, 19)

    cell = _SIDE / size
    for (left, top), known in ((places[0], np.ones_like(seen)), (places[1], seen)):
        colours = np.where(known[..., None], np.where(walls[..., None], INK, FLOOR), (214, 218, 224))
        _cells(canvas, left, top, colours)
    left, top = places[0]
    for place in path[-24:]:
        canvas.disc(left + (place % size + 0.5) * cell, top + (place // size + 0.5) * cell, 0.16 * cell, AGENT)
    for left, top in places[:2]:
        _window(canvas, left, top, cell, agent, 3, AGENT)
        canvas.agent(left + (agent[1] + 0.5) * cell, top + (agent[0] + 0.5) * cell, 0.36 * cell)
    for width, place in zip(env.queries, env.asked[index].tolist(), strict=True):
        if place >= 0:
            _window(canvas, *places[1], cell, divmod(place, size), width, _MISSED)
    _marks(canvas, *places[2], env, index)
    (first, top), (second, middle), (third, low) = ((left, top + _SIDE + 14) for left, top in places)
    canvas.text(f"step {step} / {env.horizon}", first, top, 18)
    canvas.text("agent", first + 150, top, 18, AGENT)
    canvas.text("query", second, middle, 18, _MISSED)
    for words, left, colour in (("right", 0, RIGHT), ("wrong", 60, WRONG), ("missed", 124, _MISSED)):
        canvas.text(words, third + left, low, 18, colour)
    return canvas.frame()


def _marks(canvas: Canvas, left: float, top: float, env: Drawn, index: int) -> None:
    """Marks on their own map, all questions together."""
    side = env.map_size
    colours = np.full((side, side, 3), FLOOR)
    if env.marks is not None and env.wanted is not None:
        marked = env.marks[index].amax(0).cpu().numpy() > 0
        wanted = env.wanted[index].amax(0).cpu().numpy() > 0
        for colour, where in ((RIGHT, marked & wanted), (WRONG, marked & ~wanted), (_MISSED, wanted & ~marked)):
            colours[where] = colour
    _cells(canvas, left, top, colours)
    cell, start = _SIDE / side, side // 2
    canvas.box(left + start * cell, top + start * cell, cell, cell, INK, line=1.5)


def _cells(canvas: Canvas, left: float, top: float, colours: Array) -> None:
    """A square map of coloured cells, `[S, S, 3]`, with a border."""
    cell = _SIDE / len(colours)
    canvas.box(left, top, _SIDE, _SIDE, PAPER)
    for row, column in np.ndindex(colours.shape[:2]):
        red, green, blue = (int(part) for part in colours[row, column])
        canvas.box(left + column * cell, top + row * cell, cell + 0.3, cell + 0.3, (red, green, blue))
    for line in range(1, len(colours)):
        canvas.box(left + line * cell, top, 0.5, _SIDE, LINE)
        canvas.box(left, top + line * cell, _SIDE, 0.5, LINE)
    canvas.box(left - 1, top - 1, _SIDE + 2, _SIDE + 2, LINE, line=1)


def _window(canvas: Canvas, left: float, top: float, cell: float, middle: Any, width: int, colour: Colour) -> None:
    """A frame around `width` x `width` cells."""
    row, column = middle
    corner = (left + (column - width // 2) * cell, top + (row - width // 2) * cell)
    canvas.box(*corner, width * cell, width * cell, colour, round=3, line=2.5)
