"""Draws one moment of an agent: environment, observation, decision and memory.

`draw` turns a `Scene` into one RGB frame, for the window and for videos. It needs no display.
"""

from __future__ import annotations

from agents.view.canvas import HEADING, Box, Stage, brief, colour_of
from agents.view.cards import draw_actions, draw_views
from agents.view.layout import TRACES, arrange
from agents.view.legend import draw_legend
from agents.view.memory import draw_memory, draw_panel
from agents.view.moment import Scene as Scene
from agents.view.moment import View as View
from agents.view.traces import draw_traces
from envs.rendering import AGENT, FAINT, FLOOR, INK, LINE, PAPER, RIGHT, WRONG, Frame

WIDTH, HEIGHT = 1120, 624
_MARGIN, _HEADER = 16, 60  # units; the header's height is without the margins above and below it
_LEAST = 0.72  # smallest scale of text


def scale_for(width: int, height: int) -> float:
    """Pixels per unit in a picture of this size: the standard layout fits, and text stays legible."""
    if height > width:  # the cards are stacked
        return max(_LEAST, min(width / 640, height / 1000))
    return max(_LEAST, min(width / WIDTH, height / HEIGHT))


def draw(scene: Scene, width: int = WIDTH, height: int = HEIGHT, places: dict[str, Box] | None = None) -> Frame:
    """The picture of a scene, `[height, width, 3]`, drawn at this size.

    Args:
        scene: what to draw.
        width: pixels.
        height: pixels.
        places: filled with the rectangle of each card and panel by name, in pixels, smaller ones last.
    """
    stage = Stage(width, height, scale_for(width, height))
    _header(stage, scene)
    boxes = layout(stage, scene)
    if scene.legend:
        draw_legend(stage, _content_area(stage, scene), scene.panels)
    elif scene.enlarged in boxes:
        _cards(stage, scene, {scene.enlarged: _content_area(stage, scene)})
    elif scene.enlarged in scene.panels:
        area = stage.card("Memory", _content_area(stage, scene))
        draw_panel(stage, scene.enlarged, scene.panels[scene.enlarged], area)
    else:
        _cards(stage, scene, boxes)
    if scene.help:
        stage.write(scene.help, _MARGIN, stage.height - 15, 11, FAINT, max_width=stage.width - 2 * _MARGIN)
    if places is not None:
        places |= {name: box.scaled(stage.scale) for name, box in stage.places.items()}
    return stage.frame()


def _cards(stage: Stage, scene: Scene, boxes: dict[str, Box]) -> None:
    stage.places |= boxes
    if "frame" in boxes and scene.frame is not None:
        _environment(stage, scene, boxes["frame"])
    if "views" in boxes:
        draw_views(stage, scene.views, stage.card("Observation", boxes["views"]))
    heading = "Actions" if scene.played or scene.probabilities is None else "Action probabilities"
    if "actions" in boxes:
        draw_actions(stage, scene, stage.card(heading, boxes["actions"]))
    if "memory" in boxes:
        draw_memory(stage, scene.panels, stage.card("Memory", boxes["memory"]))


def _content_area(stage: Stage, scene: Scene) -> Box:
    """The area without margins, header and the line of keys."""
    top, foot = _MARGIN + _HEADER, 28 if scene.help else _MARGIN
    return Box(_MARGIN, top, stage.width - 2 * _MARGIN, stage.height - top - foot)


def layout(stage: Stage, scene: Scene) -> dict[str, Box]:
    """The rectangle of each card."""
    aspect = None if scene.frame is None else scene.frame.shape[1] / scene.frame.shape[0]
    maps = sum(view.values.ndim > 1 for view in scene.views)
    area, panels = _content_area(stage, scene), min(9, len(scene.panels))
    return arrange(area, aspect, len(scene.views) - maps, maps, panels, scene.played)


def _environment(stage: Stage, scene: Scene, box: Box) -> None:
    frame = scene.frame
    assert frame is not None
    whole = box.inset(14, 34, 14, 14)
    traced = {name: numbers for name, numbers in scene.traces.items() if len(numbers) > 1 or name != "value"}
    foot = TRACES if traced and whole.height > 3 * TRACES else 0
    area = whole.inset(0, 0, 0, foot)
    painted = None if scene.paint is None else scene.paint(area, stage.scale)
    frame = frame if painted is None else painted
    corners = frame[[0, 0, -1, -1], [0, -1, 0, -1]]
    plain = bool((corners == corners[0]).all())  # a uniform background is extended to the card
    ground = colour_of(corners[0]) if plain else FLOOR
    if max(abs(a - b) for a, b in zip(ground, PAPER, strict=True)) < 5:
        ground = PAPER  # equal up to rounding by the scaling
    long, short = "Environment — shown to you, not to the agent", "Environment (hidden from the agent)"
    stage.card(long if stage.measure(long, HEADING) <= box.width - 28 else short, box, ground)
    if painted is None:
        stage.picture(frame, _middle(frame, area), smooth=True)
    else:
        stage.paste(painted, area)
    if foot:
        draw_traces(stage, traced, Box(whole.left, whole.top + whole.height - foot + 10, whole.width, foot - 10))


def _header(stage: Stage, scene: Scene) -> None:
    tile, count = 84 if stage.width > 900 else 70, 4 if scene.played else 5
    text_width = stage.width - 2 * _MARGIN - count * (tile + 8) - 8
    note = stage.measure(scene.note, 12) + 34 if scene.note else 0
    width = stage.write(scene.title, _MARGIN, _MARGIN + 12, 20, max_width=text_width - note)
    stage.write(scene.subtitle, _MARGIN, _MARGIN + 36, 12, FAINT, max_width=text_width)
    if scene.note:
        left = _MARGIN + width + 14
        stage.box(left, _MARGIN + 2, stage.measure(scene.note, 12) + 20, 21, AGENT, round=10)
        stage.write(scene.note, left + 10, _MARGIN + 12, 12, FLOOR)
    tiles = [("episode", f"{scene.episode}"), ("step", f"{scene.step}"), ("reward", brief(scene.reward, 3))]
    tiles.append(("return", brief(scene.total, 3)))
    if not scene.played:
        tiles.append(("value", "–" if scene.value is None else brief(scene.value, 3)))
    for index, (name, words) in enumerate(reversed(tiles)):
        right = stage.width - _MARGIN - index * (tile + 8)
        stage.box(right - tile, _MARGIN, tile, 44, FLOOR, round=8)
        stage.box(right - tile, _MARGIN, tile, 44, LINE, round=8, line=1)
        stage.write(name, right - tile + 10, _MARGIN + 12, 11, FAINT)
        colour = INK
        if name == "reward" and scene.reward:
            colour = RIGHT if scene.reward > 0 else WRONG
        stage.write(words, right - tile + 10, _MARGIN + 30, 16, colour, max_width=tile - 14)


def _middle(frame: Frame, area: Box) -> Box:
    """The part of `area` that `frame` covers when it is as large as fits."""
    scale = min(area.width / frame.shape[1], area.height / frame.shape[0])
    slack = (area.height - scale * frame.shape[0]) / 2
    return area.inset(0, slack, 0, slack)
