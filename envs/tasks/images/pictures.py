"""Pictures of the image tasks: rows of small images with answers under them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from envs.rendering import AGENT, FLOOR, INK, LINE, RIGHT, WRONG, Canvas, Frame, available_size, blend

_MARGIN, _NAMES, _TILE, _GAP, _LOW = 16, 96, 56, 6, 26  # pixels; tiles without an image are low
_PER_LINE = 12

Picture = np.ndarray[Any, np.dtype[np.uint8]]


class Verdict(NamedTuple):
    """A class: the right one, or an answer and whether it is right."""

    name: str
    right: bool | None = None


class Level(NamedTuple):
    """A number in -1..1."""

    value: float


Cell = Picture | Verdict | Level | None


class Section(NamedTuple):
    """Named rows of cells, stacked."""

    columns: int
    """Number of columns; missing cells of a row are drawn as empty tiles."""
    rows: Sequence[tuple[str, Sequence[Cell]]]


def grey(image: Tensor) -> Picture:
    """An image `[H, W]` of 0 (paper) to 255 (ink) as RGB `[H, W, 3]`."""
    share = image.cpu().numpy().astype(np.float64)[..., None] / 255
    colours: Picture = np.rint(share * np.array(INK) + (1 - share) * np.array(FLOOR)).astype(np.uint8)
    return colours


def compared(given: Tensor, right: Tensor) -> Picture:
    """An answer `[H, W]` of 0 and 1 as RGB; extra ink is red, missing ink light red."""
    a, b = (image.cpu().numpy().astype(bool)[..., None] for image in (given, right))
    colours = np.where(a, np.where(b, RIGHT, WRONG), np.where(b, blend(WRONG, FLOOR, 0.6), FLOOR))
    return colours.astype(np.uint8)


def album_frame(sections: Sequence[Section], caption: str) -> Frame:
    """Stacked sections, each broken into lines of at most twelve columns, or as many as fit, and a
    caption underneath."""
    heights = [[_LOW if _is_low(name, cells) else _TILE for name, cells in section.rows] for section in sections]
    blocks = [sum(height + _GAP for height in rows) + _GAP for rows in heights]
    most = max(section.columns for section in sections)

    def size(per_line: int) -> tuple[float, float]:
        lines = [math.ceil(section.columns / per_line) for section in sections]
        wide = max(_NAMES + min(most, per_line) * (_TILE + _GAP) + 2 * _MARGIN, 240)
        return wide, sum(count * block for count, block in zip(lines, blocks, strict=True)) + 3 * _MARGIN

    per_line, available = _PER_LINE, available_size()
    if available is not None:
        per_line = max(
            range(1, most + 1), key=lambda n: min(available.width / size(n)[0], available.height / size(n)[1])
        )
    lines = [math.ceil(section.columns / per_line) for section in sections]
    canvas = Canvas(*size(per_line))
    left = _MARGIN + _NAMES
    pictures: list[tuple[int, int, Picture]] = []

    top = _MARGIN
    for section, rows, block, count in zip(sections, heights, blocks, lines, strict=True):
        for first in range(0, count * per_line, per_line):
            y = top
            for (name, cells), height in zip(section.rows, rows, strict=True):
                canvas.text(name, left - 10, y + height / 2, 17, anchor="midright")
                shown = [*cells, *[None] * (section.columns - len(cells))][first : first + per_line]
                for x, cell in zip(itertools.count(left, _TILE + _GAP), shown, strict=False):
                    if isinstance(cell, np.ndarray):
                        pictures.append((x, y, cell))
                    else:
                        _draw(canvas, x, y, height, cell)
                y += height + _GAP
            top += block
    canvas.caption(caption, _MARGIN, canvas.height - 1.4 * _MARGIN)
    frame, scale = canvas.frame(), canvas.pixels[0] / canvas.width
    side = round(_TILE * scale)
    for x, y, picture in pictures:
        across, down = round(x * scale), round(y * scale)
        frame[down : down + side, across : across + side] = _framed(picture, side)
    return frame


def _is_low(name: str, cells: Sequence[Cell]) -> bool:
    return name in ("target", "answer", "priority") and not any(isinstance(cell, np.ndarray) for cell in cells)


def _draw(canvas: Canvas, x: float, y: float, height: float, cell: Verdict | Level | None) -> None:
    if cell is None:
        canvas.box(x, y, _TILE, height, LINE, round=4, line=1)
    elif isinstance(cell, Level):
        canvas.box(x, y + height / 2 - 0.5, _TILE, 1, LINE)
        reach = (height / 2 - 1) * abs(cell.value)
        canvas.box(x + 8, y + height / 2 - (reach if cell.value > 0 else 0), _TILE - 16, max(reach, 1), AGENT)
    else:
        colour = INK if cell.right is None else RIGHT if cell.right else WRONG
        canvas.box(x, y, _TILE, height, blend(colour, FLOOR, 0.85), round=4)
        canvas.box(x, y, _TILE, height, colour, round=4, line=1.5)
        canvas.text(cell.name, x + _TILE / 2, y + height / 2 + 1, 22, colour, "center")


def _framed(picture: Picture, side: int) -> Picture:
    """A tile of `side` pixels: the picture scaled by the largest integer that fits, with a thin border."""
    inner = side - 2
    zoom = max(1, inner // max(picture.shape[:2]))
    rows, columns = (
        np.arange(inner) * length // inner if zoom * length < 0.89 * inner else None for length in picture.shape[:2]
    )
    tile = np.full((side, side, 3), FLOOR, np.uint8)
    tile[[0, -1]] = tile[:, [0, -1]] = LINE
    if rows is not None and columns is not None:
        tile[1:-1, 1:-1] = picture[rows[:, None], columns]
    else:
        large = picture.repeat(zoom, 0).repeat(zoom, 1)[:inner, :inner]
        y, x = ((side - length) // 2 for length in large.shape[:2])
        tile[y : y + large.shape[0], x : x + large.shape[1]] = large
    return tile
