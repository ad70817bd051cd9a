"""Rendering: a palette, an off-screen canvas, and a window.

Frames are drawn at several times their size and scaled down, which smooths every edge. Their sides are multiples of 16,
as video encoders require; within `drawing_for` they are as large as fits instead. Only `Window` needs a display.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pygame

Frame = np.ndarray[Any, np.dtype[np.uint8]]
Colour = tuple[int, int, int]

PAPER: Colour = (247, 245, 240)
FLOOR: Colour = (255, 255, 255)
LINE: Colour = (228, 224, 214)
INK: Colour = (47, 59, 76)
FAINT: Colour = (150, 155, 165)
AGENT: Colour = (43, 123, 186)
GOAL: Colour = (236, 164, 52)
RIGHT: Colour = (58, 157, 110)
WRONG: Colour = (204, 82, 61)
HUES: tuple[Colour, ...] = (
    (43, 123, 186),
    (236, 164, 52),
    (58, 157, 110),
    (176, 86, 150),
    (204, 82, 61),
    (72, 172, 186),
    (130, 110, 190),
    (140, 150, 60),
)

_FINE = 3  # drawn pixels per pixel of the frame
_LEGIBLE = 0.8  # share of its own size at which a picture can still be read


class Available(NamedTuple):
    """The size that is available for a picture, in a canvas's units, and the pixels per unit."""

    width: float
    height: float
    scale: float


_available: ContextVar[Available | None] = ContextVar("available", default=None)


@contextmanager
def drawing_for(width: float, height: float, scale: float = 1.0) -> Iterator[None]:
    """Context manager: a `Canvas` becomes a frame as large as fits in `width` × `height` units of `scale` pixels."""
    token = _available.set(Available(width, height, scale))
    try:
        yield
    finally:
        _available.reset(token)


def available_size() -> Available | None:
    """The size set by `drawing_for`; None outside it: a picture has its default size."""
    return _available.get()


def fold(
    length: int, cell: float, line: float, around: tuple[float, float], default: tuple[int, int]
) -> tuple[int, int]:
    """Folds a row of `length` cells into lines: returns cells per line, and the number of lines shown (the latest ones,
    if all lines would be too small to read).

    Args:
        length: number of cells.
        cell: width of one, in units.
        line: height of a line.
        around: width and height of everything except the cells.
        default: the result outside `drawing_for`.
    """
    given = _available.get()
    if given is None:
        return default

    def share(columns: int) -> float:
        lines = math.ceil(length / columns)
        return min(given.width / (around[0] + columns * cell), given.height / (around[1] + lines * line))

    columns = max(range(1, length + 1), key=share)
    if share(columns) >= _LEGIBLE:
        return columns, math.ceil(length / columns)
    columns = min(length, max(1, int((given.width / _LEGIBLE - around[0]) / cell)))
    return columns, min(math.ceil(length / columns), max(1, int((given.height / _LEGIBLE - around[1]) / line)))


class Canvas:
    """An off-screen canvas, in pixels of the finished frame (units, within `drawing_for`); coordinates may be
    fractions.

    Args:
        width, height: size of the frame; rounded up to multiples of 16.
    """

    def __init__(self, width: float, height: float) -> None:
        self.width: float
        self.height: float
        self.width, self.height = (math.ceil(side / 16) * 16 for side in (width, height))
        given = _available.get()
        scale = 1.0
        if given is not None:
            scale = given.scale * min(given.width / self.width, given.height / self.height)
        self._prepare((round(self.width * scale), round(self.height * scale)), 1.0 if given is None else given.scale)

    def _prepare(self, pixels: tuple[int, int], scale: float) -> None:
        """An empty canvas of this size in pixels."""
        self.pixels = (max(1, pixels[0]), max(1, pixels[1]))
        # Dots per pixel, equal for all pictures of a window: scaling rounds colours down.
        self._dots = _FINE if scale <= 1.5 else 2
        self._fine = self._dots * self.pixels[0] / self.width  # dots per unit
        self._sheet = pygame.Surface((self.pixels[0] * self._dots, self.pixels[1] * self._dots), 0, 32)
        self._sheet.fill(PAPER)

    def _dot(self, units: float) -> int:
        return round(units * self._fine)

    def box(
        self,
        left: float,
        top: float,
        width: float,
        height: float,
        colour: Colour,
        *,
        round: float = 0,
        line: float = 0,
        opacity: float = 1,
    ) -> None:
        """A rectangle with rounded corners: filled, or an outline `line` pixels thick."""
        if opacity < 1:  # blending needs a separate layer
            layer = pygame.Surface((self._dot(width), self._dot(height)), pygame.SRCALPHA, 32)
            pygame.draw.rect(
                layer, (*colour, int(255 * opacity)), layer.get_rect(), self._dot(line), border_radius=self._dot(round)
            )
            self._sheet.blit(layer, (self._dot(left), self._dot(top)))
            return
        rect = pygame.Rect(self._dot(left), self._dot(top), self._dot(width), self._dot(height))
        pygame.draw.rect(self._sheet, colour, rect, self._dot(line), border_radius=self._dot(round))

    def disc(self, x: float, y: float, radius: float, colour: Colour) -> None:
        """A filled circle around `(x, y)`."""
        pygame.draw.circle(self._sheet, colour, (self._dot(x), self._dot(y)), self._dot(radius))

    def polygon(self, points: Sequence[tuple[float, float]], colour: Colour) -> None:
        """A filled polygon."""
        pygame.draw.polygon(self._sheet, colour, [(self._dot(x), self._dot(y)) for x, y in points])

    def curve(self, points: Sequence[tuple[float, float]], colour: Colour, width: float) -> None:
        """A line through points."""
        if len(points) > 1:
            dots = [(self._dot(x), self._dot(y)) for x, y in points]
            pygame.draw.lines(self._sheet, colour, False, dots, max(1, self._dot(width)))

    def star(self, x: float, y: float, radius: float, colour: Colour) -> None:
        """A five-pointed star around `(x, y)`."""
        turns = [(radius if corner % 2 == 0 else 0.45 * radius, math.pi * corner / 5) for corner in range(10)]
        self.polygon([(x + r * math.sin(a), y - r * math.cos(a)) for r, a in turns], colour)

    def agent(self, x: float, y: float, radius: float) -> None:
        """The agent: a disc with a light rim."""
        self.disc(x, y, radius, FLOOR)
        self.disc(x, y, 0.84 * radius, AGENT)

    def text(self, words: str, x: float, y: float, size: int, colour: Colour = INK, anchor: str = "midleft") -> None:
        """One line of text, its `anchor` (a name of `pygame.Rect`) at `(x, y)`."""
        drawn = font(round(size * self._fine)).render(words, True, colour)
        self._sheet.blit(drawn, drawn.get_rect(**{anchor: (self._dot(x), self._dot(y))}))

    def caption(self, words: str, margin: float, y: float, reward: float | None = None) -> None:
        """A caption: text at the left, and a non-zero reward at the right. It stays legible in a reduced picture."""
        given = _available.get()
        size = 18 if given is None else min(40, max(18, round(14 * given.scale * self._dots / self._fine)))
        self.text(words, margin, y, size)
        if reward:
            self.text(f"{reward:+.4g}", self.width - margin, y, size, RIGHT if reward > 0 else WRONG, "midright")

    def frame(self) -> Frame:
        """The finished frame, `[height, width, 3]`."""
        small = pygame.transform.smoothscale(self._sheet, self.pixels)
        return np.ascontiguousarray(pygame.surfarray.array3d(small).swapaxes(0, 1))


def maze_frame(
    walls: np.ndarray[Any, np.dtype[np.bool_]],
    agent: Sequence[int],
    goal: Sequence[int],
    trail: Sequence[Sequence[int]] = (),
    caption: str = "",
    reward: float = 0.0,
) -> Frame:
    """A maze from above: walls, the agent's trail (oldest first), its view, and the goal it cannot see.

    Args:
        walls: `[rows, columns]`.
        agent: row and column.
        goal: row and column.
        trail: rows and columns.
        caption: a line underneath.
        reward: reward of the last step.
    """
    cell, margin = 32, 16
    rows, columns = walls.shape
    canvas = Canvas(columns * cell + 2 * margin, rows * cell + 4 * margin)

    def corner(place: Sequence[int]) -> tuple[float, float]:
        return margin + int(place[1]) * cell, margin + int(place[0]) * cell

    canvas.box(margin, margin, columns * cell, rows * cell, INK, round=8)
    for row, column in np.argwhere(~walls):
        left, top = corner((row, column))
        canvas.box(left, top, cell, cell, FLOOR)
    for line in range(2, rows - 1):  # a faint grid, over floor only
        for column in range(1, columns - 1):
            if not (walls[line - 1, column] or walls[line, column]):
                canvas.box(margin + column * cell, margin + line * cell - 0.5, cell, 1, LINE)
            if not (walls[column, line - 1] or walls[column, line]):
                canvas.box(margin + line * cell - 0.5, margin + column * cell, 1, cell, LINE)
    for age, place in enumerate(reversed(trail), start=1):
        left, top = corner(place)
        canvas.disc(left + cell / 2, top + cell / 2, 5, blend(AGENT, FLOOR, 0.35 + 0.55 * age / len(trail)))
    left, top = corner(goal)
    canvas.star(left + cell / 2, top + cell / 2 + 0.5, 12, GOAL)
    left, top = corner(agent)
    canvas.box(left - cell, top - cell, 3 * cell, 3 * cell, AGENT, round=6, opacity=0.13)
    canvas.box(left - cell, top - cell, 3 * cell, 3 * cell, AGENT, round=6, line=2)
    canvas.agent(left + cell / 2, top + cell / 2, 9)
    canvas.caption(caption, margin, canvas.height - 1.5 * margin, reward)
    return canvas.frame()


def strip_frame(shown: Sequence[int | None], answers: Sequence[int | None], length: int, caption: str = "") -> Frame:
    """A row of symbols, the first one framed, with the answer to each below.

    Args:
        shown: the symbols so far; None if no longer known.
        answers: likewise, one for every step taken.
        length: steps of an episode: future steps stay empty.
        caption: a line underneath.
    """
    tile, gap, margin = 40, 8, 16
    pitch, tall = tile + gap, 2 * tile + 2 * gap
    default = min(length, 16), math.ceil(length / 16)
    per_row, rows = fold(length, pitch, tall, (2 * margin - gap, 3 * margin), default)
    columns, first = per_row, max(0, (min(len(shown), length) - 1) // per_row - rows + 1) * per_row
    canvas = Canvas(max(columns * pitch - gap + 2 * margin, 240), rows * tall + 3 * margin)
    inset = (canvas.width - columns * pitch + gap) / 2
    for step in range(first, min(length, first + rows * per_row)):
        left, top = inset + step % per_row * pitch, margin + (step - first) // per_row * tall
        symbol = shown[step] if step < len(shown) else None
        if symbol is None:
            canvas.box(left, top, tile, tile, LINE, round=8, line=2)
        else:
            canvas.box(left, top, tile, tile, HUES[symbol % len(HUES)], round=8)
            canvas.text(_letter(symbol), left + tile / 2, top + tile / 2 + 1, 26, FLOOR, "center")
        answer = answers[step] if step < len(answers) else None
        if answer is not None:
            verdict = RIGHT if answer == shown[0] else WRONG
            canvas.box(left + 6, top + tile + 5, tile - 12, tile - 12, blend(verdict, PAPER, 0.8), round=6)
            canvas.box(left + 6, top + tile + 5, tile - 12, tile - 12, verdict, round=6, line=2)
            canvas.text(_letter(answer), left + tile / 2, top + 1.5 * tile, 18, verdict, "center")
    if not first:
        canvas.box(inset - 4, margin - 4, tile + 8, tile + 8, INK, round=11, line=2.5)
    canvas.caption(caption, inset, canvas.height - 1.4 * margin)
    return canvas.frame()


def corridor_frame(length: int, place: tuple[int, int], goal: int, caption: str = "", reward: float = 0.0) -> Frame:
    """A T-maze from the side of its stem: the sign over the start, the agent, and the goal in one arm.

    Args:
        length: the junction's column; the start is column 0.
        place: row (-1 northern arm, 0 corridor, 1 southern arm) and column of the agent.
        goal: row of the goal, -1 or 1.
        caption: a line underneath.
        reward: reward of the last step.
    """
    margin = 16
    cell = max(12, min(48, 960 // (length + 1)))
    canvas = Canvas(max((length + 1) * cell + 2 * margin, 240), 3 * cell + 4 * margin)
    inset = (canvas.width - (length + 1) * cell) / 2
    cells = [(0, column) for column in range(length + 1)] + [(-1, length), (1, length)]
    canvas.box(inset - 4, margin + cell - 4, (length + 1) * cell + 8, cell + 8, INK, round=10)
    canvas.box(inset + length * cell - 4, margin - 4, cell + 8, 3 * cell + 8, INK, round=10)

    def centre(row: int, column: int) -> tuple[float, float]:
        return inset + (column + 0.5) * cell, margin + (row + 1.5) * cell

    for row, column in cells:
        x, y = centre(row, column)
        canvas.box(x - cell / 2 + 1, y - cell / 2 + 1, cell - 2, cell - 2, FLOOR, round=6)
    x, y = centre(goal, length)
    if place == (goal, length):
        canvas.box(x - cell / 2 + 1, y - cell / 2 + 1, cell - 2, cell - 2, GOAL, round=6)
    else:
        canvas.star(x, y, 0.36 * cell, GOAL)

    x, y = centre(0, 0)  # the sign: lit while the agent can read it
    lit = place == (0, 0)
    y += goal * cell
    tip, wing = 0.26 * cell * goal, 0.22 * cell
    canvas.box(x - 0.36 * cell, y - 0.36 * cell, 0.72 * cell, 0.72 * cell, GOAL if lit else LINE, round=8)
    arrow = [(x, y + tip), (x + wing, y), (x + wing / 2.6, y), (x + wing / 2.6, y - tip), (x - wing / 2.6, y - tip)]
    canvas.polygon([*arrow, (x - wing / 2.6, y), (x - wing, y)], FLOOR if lit else FAINT)

    canvas.agent(*centre(*place), 0.32 * cell)
    canvas.caption(caption, inset, canvas.height - 1.4 * margin, reward)
    return canvas.frame()


class Window:
    """A desktop window that shows frames.

    Args:
        title: title of the window.
        fps: maximum frames per second; `show` waits.
    """

    def __init__(self, title: str, fps: float) -> None:
        self.title, self.fps = title, fps
        self._clock = pygame.time.Clock()
        self._screen: pygame.Surface | None = None

    def show(self, frame: Frame) -> None:
        """Shows one frame `[H, W, 3]`; the first frame sets the window's size."""
        if self._screen is None:
            pygame.display.init()
            self._screen = pygame.display.set_mode((frame.shape[1], frame.shape[0]))
            pygame.display.set_caption(self.title)
        pygame.surfarray.blit_array(self._screen, frame.swapaxes(0, 1))
        pygame.event.pump()  # keeps the window responsive
        pygame.display.flip()
        self._clock.tick(self.fps)

    def close(self) -> None:
        """Closes the window, if it is open."""
        if self._screen is not None:
            pygame.display.quit()
            self._screen = None


def blend(colour: Colour, other: Colour, share: float) -> Colour:
    """`colour` with `share` of `other` in it."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(colour, other, strict=True))
    return red, green, blue


def _letter(symbol: int) -> str:
    return chr(ord("A") + symbol) if symbol < 26 else str(symbol)


def font(size: int, file: str | None = None) -> pygame.font.Font:
    """A font from a file, or pygame's default font.

    `pygame.quit`, which Gymnasium environments call when closed, frees all fonts; using one afterwards crashes the
    process. After it, fonts are therefore loaded again.
    """
    if not pygame.font.get_init():
        _load_font.cache_clear()
        pygame.font.init()
    return _load_font(size, file)


@lru_cache(maxsize=48)
def _load_font(size: int, file: str | None) -> pygame.font.Font:
    pygame.register_quit(_load_font.cache_clear)  # pygame may have been quit and initialised again
    return pygame.font.Font(file, size)
