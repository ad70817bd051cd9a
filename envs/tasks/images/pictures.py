"""Pictures of the image tasks: rows of small images with answers under them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from envs.rendering import AGENT, FLOOR, INK, LINE, RIGHT, WRONG, Canvas, Frame, _mix

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
    """Named rows of cells, one below another."""

    columns: int
    """Cells of each row in the end; where a row has fewer, the rest are empty tiles."""
    rows: Sequence[tuple[str, Sequence[Cell]]]


def grey(image: Tensor) -> Picture:
    """An image `[H, W]` of 0 (paper) to 255 (ink) as RGB `[H, W, 3]`."""
    share = image.cpu().numpy().astype(np.float64)[..., None] / 255
    colours: Picture = np.rint(share * np.array(INK) + (1 - share) * np.array(FLOOR)).astype(np.uint8)
    return colours


def compared(said: Tensor, right: Tensor) -> Picture:
    """An answer `[H, W]` of 0 and 1 as RGB; ink that should not be is red, ink that is missing a light red."""
    a, b = (image.cpu().numpy().astype(bool)[..., None] for image in (said, right))
    colours = np.where(a, np.where(b, RIGHT, WRONG), np.where(b, _mix(WRONG, FLOOR, 0.6), FLOOR))
    return colours.astype(np.uint8)


def album_frame(sections: Sequence[Section], caption: str) -> Frame:
    """Sections one below another, each broken into lines of at most twelve columns, and a caption underneath."""
    heights = [[_LOW if _is_low(name, cells) else _TILE for name, cells in section.rows] for section in sections]
    blocks = [sum(height + _GAP for height in rows) + _GAP for rows in heights]
    lines = [math.ceil(section.columns / _PER_LINE) for section in sections]
    widest = max(min(section.columns, _PER_LINE) for section in sections)
    canvas = Canvas(
        max(_NAMES + widest * (_TILE + _GAP) + 2 * _MARGIN, 240),
        sum(count * block for count, block in zip(lines, blocks, strict=True)) + 3 * _MARGIN,
    )
    left = _MARGIN + _NAMES
    pictures: list[tuple[int, int, Picture]] = []

    top = _MARGIN
    for section, rows, block, count in zip(sections, heights, blocks, lines, strict=True):
        for first in range(0, count * _PER_LINE, _PER_LINE):
            y = top
            for (name, cells), height in zip(section.rows, rows, strict=True):
                canvas.text(name, left - 10, y + height / 2, 17, anchor="midright")
                for column in range(first, min(first + _PER_LINE, section.columns)):
                    x = left + (column - first) * (_TILE + _GAP)
                    cell = cells[column] if column < len(cells) else None
                    if isinstance(cell, np.ndarray):
                        pictures.append((x, y, cell))
                    else:
                        _draw(canvas, x, y, height, cell)
                y += height + _GAP
            top += block
    canvas.caption(caption, _MARGIN, canvas.height - 1.4 * _MARGIN)
    frame = canvas.frame()
    for x, y, picture in pictures:
        frame[y : y + _TILE, x : x + _TILE] = _framed(picture)
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
        canvas.box(x, y, _TILE, height, _mix(colour, FLOOR, 0.85), round=4)
        canvas.box(x, y, _TILE, height, colour, round=4, line=1.5)
        canvas.text(cell.name, x + _TILE / 2, y + height / 2 + 1, 22, colour, "center")


def _framed(picture: Picture) -> Picture:
    """A tile: the picture, every pixel as many as fit, with a thin border."""
    zoom = max(1, (_TILE - 2) // max(picture.shape[:2]))
    rows, columns = (
        np.arange(_TILE - 2) * side // (_TILE - 2) if zoom * side < _TILE - 8 else None for side in picture.shape[:2]
    )
    tile = np.full((_TILE, _TILE, 3), FLOOR, np.uint8)
    tile[[0, -1]] = tile[:, [0, -1]] = LINE
    if rows is not None and columns is not None:
        tile[1:-1, 1:-1] = picture[rows[:, None], columns]
    else:
        large = picture.repeat(zoom, 0).repeat(zoom, 1)[: _TILE - 2, : _TILE - 2]
        y, x = ((_TILE - side) // 2 for side in large.shape[:2])
        tile[y : y + large.shape[0], x : x + large.shape[1]] = large
    return tile
