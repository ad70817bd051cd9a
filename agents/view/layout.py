"""Places the cards of a picture; chooses the layout by the area left for environment and memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from agents.view.canvas import Box

GAP = 12
HEAD, PAD = 34, 14  # space above and around a card's contents, in units
TRACES = 46
"""Height below the environment's picture, in units, for the traces."""

Boxes = dict[str, Box]


def arrange(area: Box, aspect: float | None, rows: int, maps: int, panels: int, played: bool) -> Boxes:
    """The rectangle of each visible card: "frame", "views", "actions", "memory".

    Args:
        area: the window without header and margins.
        aspect: width / height of the environment's picture; None: there is none.
        rows: lines of numbers in the observation.
        maps: number of its maps and images.
        panels: number of the memory's panels.
        played: whether a person plays, who sees observation and actions, and the environment after the episode.
    """
    wide, tall = area.width, area.height
    upright = tall > 1.1 * wide
    if played:
        if aspect is None:
            first, second = _split(area, 0.58, down=upright)
            return {"views": first, "actions": second}
        frame, rest = _split(area, 0.6, down=upright or aspect > 2.5)
        first, second = _split(rest, 0.5, down=not upright and aspect <= 2.5)
        return {"frame": frame, "views": first, "actions": second}
    if aspect is None:
        if upright:
            upper, memory = _split(area, 0.45, down=True)
            views, actions = _split(upper, 0.6)
        else:
            views, rest = _split(area, 0.4)
            actions, memory = _split(rest, 0.4)
        return {"views": views, "actions": actions, "memory": memory}
    candidates = [boxes for boxes in _candidates(area, rows, maps) if _fits(boxes, rows, maps)]
    if not candidates:  # a tiny window
        upper, lower = _split(area, 0.6, down=True)
        picture, memory = _split(upper, 0.55)
        return _boxes(picture, _split(lower, 0.5), memory)
    return max(candidates, key=lambda boxes: _rating(boxes, aspect, panels))


def _candidates(area: Box, rows: int, maps: int) -> Iterator[Boxes]:
    most = 48 + 44 * rows + 220 * bool(maps)

    def piled(box: Box) -> tuple[Box, Box]:
        """Observation above actions, each with the height it can use."""
        share = min(0.62, max(0.3, min(most, box.height - 130) / box.height))
        return _split(box, share, down=True)

    for percent in range(25, 80, 3):
        left, right = _split(area, percent / 100)
        for frame, rest in ((left, right), _split(area, percent / 100, down=True)):
            for share in (0.35, 0.42, 0.5):
                side, memory = _split(rest, share)
                yield _boxes(frame, piled(side), memory)
                yield _boxes(frame, _split(side, 0.55), memory)
                upper, memory = _split(rest, share, down=True)
                yield _boxes(frame, _split(upper, 0.5), memory)
        for share in (0.35, 0.42, 0.5, 0.58, 0.65, 0.72):  # the environment above observation and actions
            frame, beneath = _split(left, share, down=True)
            yield _boxes(frame, _split(beneath, 0.5), right)


def _boxes(frame: Box, sides: tuple[Box, Box], memory: Box) -> Boxes:
    return {"frame": frame, "views": sides[0], "actions": sides[1], "memory": memory}


def _fits(boxes: Boxes, rows: int, maps: int) -> bool:
    """Whether every card has at least the space it needs."""
    views, actions, memory = boxes["views"], boxes["actions"], boxes["memory"]
    return (
        views.height >= min(HEAD + PAD + 26 * rows + 130 * bool(maps), 200)
        and actions.height >= 96
        and min(views.width, actions.width, memory.width, memory.height) >= 200
    )


def _rating(boxes: Boxes, aspect: float, panels: int) -> float:
    """Rates a layout by the area of the environment's picture, then of the memory, then of the rest."""
    area, memory = inside(boxes["frame"]), boxes["memory"]
    height = min(area.height - TRACES, area.width / aspect)
    picture = max(1.0, height * height * aspect)
    each = max(  # the space of one panel, relative to what it needs
        (
            min(memory.width / columns / 130, memory.height / math.ceil(panels / columns) / 150)
            for columns in range(1, panels + 1)
        ),
        default=1.0,
    )
    square = min(memory.width, memory.height) / max(memory.width, memory.height)
    rest = sum(0.12 * math.log(boxes[name].width * boxes[name].height) for name in ("views", "actions"))
    crowded = 0.35 * min(0.0, math.log(each))
    return math.log(picture) + 0.7 * math.log(memory.width * memory.height) + 0.1 * square + rest + crowded


def inside(card: Box) -> Box:
    """The part of a card below its heading."""
    return card.inset(PAD, HEAD, PAD, PAD)


def _split(box: Box, share: float, down: bool = False) -> tuple[Box, Box]:
    """Two boxes side by side, or stacked with `down`, with a gap between them."""
    whole = box.height if down else box.width
    first = round((whole - GAP) * share)
    if down:
        return replace(box, height=first), replace(box, top=box.top + first + GAP, height=whole - first - GAP)
    return replace(box, width=first), replace(box, left=box.left + first + GAP, width=whole - first - GAP)
