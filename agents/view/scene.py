"""Draws one moment of an agent: environment, observation, decision and memory.

`draw` turns a `Scene` into one RGB frame. The window shows these frames and a video holds them; no display is needed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from agents.view.canvas import Array, Box, Stage, colour_of, colours, number, shade
from envs.rendering import AGENT, FAINT, FLOOR, INK, LINE, PAPER, RIGHT, WRONG, Colour, Frame
from policies.memories.contract import Panel

WIDTH, HEIGHT = 1120, 624
_MARGIN, _GAP, _HEADER = 16, 12, 60  # pixels; the header's height is without the margins above and below it
_PALE: Colour = (214, 229, 241)  # the agent's blue, thinned
_MAX_PANELS = 9
_THIN = 0.3  # share of its room below which a panel is stretched
_LEGIBLE = 125  # pixels that a panel wants for its title and the two numbers of its scale


@dataclass(frozen=True)
class View:
    """One part of an observation, or of an action that has no probabilities."""

    name: str
    values: Array
    """`[H, W, 3]` uint8: RGB; `[H, W]`: a map; `[n]`: shown by its values."""
    low: float = 0.0
    """Lowest possible value; minus infinity if unknown."""
    high: float = 1.0
    centred: bool = False
    """The agent is in the middle of this map."""


@dataclass(frozen=True)
class Scene:
    """One moment of an episode: the environment, and the agent that has read the observation but not yet acted."""

    title: str
    subtitle: str = ""
    frame: Frame | None = None
    """Picture of the environment, including what the agent does not see; None: hidden, or the environment draws
    nothing."""
    views: Sequence[View] = ()
    """The observation."""
    actions: Sequence[str] = ()
    """Action names for `probabilities`."""
    probabilities: Array | None = None
    """`[n]`, or `[H, W]` for an action that is a binary map; None: the action space has no probabilities."""
    taken: Collection[int] = ()
    """Indices of the actions that the agent will take; empty if the episode is over."""
    numbers: Array | None = None
    """The next action, `[n]`, if it is continuous."""
    bounds: tuple[float, float] = (-1.0, 1.0)
    """Bounds of `numbers`."""
    value: float | None = None
    total: float = 0.0
    """Return so far."""
    reward: float = 0.0
    """Of the last step."""
    step: int = 0
    episode: int = 1
    panels: Mapping[str, Panel] = field(default_factory=dict)
    """The memory, after it has read the observation."""
    note: str = ""
    """Status beside the title: "paused", "episode over"."""
    played: bool = False
    """A person plays: nothing of the agent is shown."""


def draw(scene: Scene) -> Frame:
    """The picture of a scene, `[HEIGHT, WIDTH, 3]`."""
    stage = Stage(WIDTH, HEIGHT)
    _header(stage, scene)
    boxes = _layout(scene)
    if scene.frame is not None:
        corners = scene.frame[[0, 0, -1, -1], [0, -1, 0, -1]]
        plain = bool((corners == corners[0]).all())  # such a background runs on over the card
        ground = colour_of(corners[0]) if plain else FLOOR
        room = stage.card("Environment — shown to you, not to the agent", boxes["frame"], ground)
        stage.picture(scene.frame, _middle(scene.frame, room), smooth=True)
    _views(stage, scene.views, stage.card("Observation", boxes["views"]))
    heading = "Actions" if scene.played or scene.probabilities is None else "Action probabilities"
    _actions(stage, scene, stage.card(heading, boxes["actions"]))
    if not scene.played:
        _memory(stage, scene.panels, stage.card("Memory", boxes["memory"]))
    return stage.frame()


def _layout(scene: Scene) -> dict[str, Box]:
    """The rectangle of each card."""
    left, top = _MARGIN, _MARGIN + _HEADER
    width, height = WIDTH - 2 * _MARGIN, HEIGHT - top - _MARGIN
    if scene.played:
        wide = 640
        return {
            "views": Box(left, top, wide, height),
            "actions": Box(left + wide + _GAP, top, width - wide - _GAP, height),
        }
    aspect = 1.0 if scene.frame is None else scene.frame.shape[1] / scene.frame.shape[0]
    if aspect > 1.6:  # a broad picture goes on top, the rest beneath
        tall = min(230.0, max(150.0, (width - 28) / aspect + 48))
        low, rest = top + tall + _GAP, height - tall - _GAP
        side, half = 300, (rest - _GAP) / 2
        if any(view.values.ndim > 1 for view in scene.views):  # maps need their height
            sees, acts = 290, 230
            used = sees + acts + 2 * _GAP
            return {
                "frame": Box(left, top, width, tall),
                "views": Box(left, low, sees, rest),
                "actions": Box(left + sees + _GAP, low, acts, rest),
                "memory": Box(left + used, low, width - used, rest),
            }
        upper = min(half, 48.0 + 44.0 * max(1, len(scene.views)))
        return {
            "frame": Box(left, top, width, tall),
            "views": Box(left, low, side, upper),
            "actions": Box(left, low + upper + _GAP, side, rest - upper - _GAP),
            "memory": Box(left + side + _GAP, low, width - side - _GAP, rest),
        }
    shown, middle = 432, 258
    right = left + shown + _GAP
    boxes = {"memory": Box(right + middle + _GAP, top, width - shown - middle - 2 * _GAP, height)}
    if scene.frame is None:
        return boxes | {"views": Box(left, top, shown, height), "actions": Box(right, top, middle, height)}
    upper = 316
    return boxes | {
        "frame": Box(left, top, shown, height),
        "views": Box(right, top, middle, upper),
        "actions": Box(right, top + upper + _GAP, middle, height - upper - _GAP),
    }


def _header(stage: Stage, scene: Scene) -> None:
    width = stage.write(scene.title, _MARGIN, _MARGIN + 12, 20, room=430)
    stage.write(scene.subtitle, _MARGIN, _MARGIN + 36, 12, FAINT, room=600)
    if scene.note:
        left = _MARGIN + width + 14
        stage.box(left, _MARGIN + 2, stage.measure(scene.note, 12) + 20, 21, AGENT, round=10)
        stage.write(scene.note, left + 10, _MARGIN + 12, 12, FLOOR)
    tiles = [("episode", f"{scene.episode}"), ("step", f"{scene.step}"), ("reward", number(round(scene.reward, 3)))]
    tiles.append(("return", number(round(scene.total, 3))))
    if not scene.played:
        tiles.append(("value", "–" if scene.value is None else number(round(scene.value, 3))))
    for index, (name, words) in enumerate(reversed(tiles)):
        right = WIDTH - _MARGIN - index * 92
        stage.box(right - 84, _MARGIN, 84, 44, FLOOR, round=8)
        stage.box(right - 84, _MARGIN, 84, 44, LINE, round=8, line=1)
        stage.write(name, right - 74, _MARGIN + 12, 11, FAINT)
        colour = INK
        if name == "reward" and scene.reward:
            colour = RIGHT if scene.reward > 0 else WRONG
        stage.write(words, right - 74, _MARGIN + 30, 16, colour, room=70)


def _middle(frame: Frame, room: Box) -> Box:
    """The part of `room` that `frame` covers at its largest size."""
    scale = min(room.width / frame.shape[1], room.height / frame.shape[0])
    slack = (room.height - scale * frame.shape[0]) / 2
    return room.inset(0, slack, 0, slack)


def _views(stage: Stage, views: Sequence[View], room: Box) -> None:
    """Gives rows of numbers the height they need, and maps the rest."""
    maps = [view for view in views if view.values.ndim > 1]
    rows = [view for view in views if view.values.ndim == 1]
    most = (30.0 if maps else 44.0) * (1.6 if room.width > 500 else 1)
    pitch = min(most, room.height / max(1, len(rows) + 4 * bool(maps)))
    top = room.top if not maps else room.top + room.height - pitch * len(rows)
    if maps:
        columns = math.ceil(math.sqrt(len(maps)))
        wide, tall = room.width / columns, (top - room.top - 8 * bool(rows)) / math.ceil(len(maps) / columns)
        for index, view in enumerate(maps):
            cell = Box(room.left + index % columns * wide, room.top + index // columns * tall, wide, tall)
            _map(stage, view, cell.inset(0, 0, 8 * (columns > 1), 6))
    label = min(max(92.0, 0.2 * room.width), 0.38 * room.width)
    for index, view in enumerate(rows):
        y = top + (index + 0.5) * pitch
        stage.write(view.name, room.left, y, 14 if room.width > 500 else 12, room=label - 8)
        box = Box(room.left + label, y - 0.36 * pitch, room.width - label, 0.72 * pitch)
        (_gauge if view.values.size == 1 else _cells)(stage, view, box)


def _map(stage: Stage, view: View, room: Box) -> None:
    title = 18
    stage.write(view.name, room.left, room.top + 7, 12, room=room.width)
    image = view.values if view.values.ndim == 3 else shade(view.values, view.low, view.high)
    place = stage.picture(image, room.inset(1, title + 1, 1, 1))
    rows, columns = view.values.shape[:2]
    if max(rows, columns) <= 12:  # few cells: draw lines between them
        for line in range(1, rows):
            stage.box(place.left, place.top + line * place.height / rows - 0.5, place.width, 1, LINE)
        for line in range(1, columns):
            stage.box(place.left + line * place.width / columns - 0.5, place.top, 1, place.height, LINE)
    stage.box(place.left - 1, place.top - 1, place.width + 2, place.height + 2, FAINT, line=1)
    if view.centred:
        stage.agent(place.left + place.width / 2, place.top + place.height / 2, place.width / 10)


def _gauge(stage: Stage, view: View, room: Box) -> None:
    """A number on a scale from its lowest to its highest value; if unknown, squashed around 0."""
    value = float(view.values.flat[0])
    low, high = view.low, view.high
    share, zero = (value - low) / max(high - low, 1e-9), -low / max(high - low, 1e-9)
    if not math.isfinite(high - low):
        share, zero = 0.5 + 0.5 * value / (1 + abs(value)), 0.5
    share, zero = (min(1.0, max(0.0, part)) if math.isfinite(part) else 0.0 for part in (share, zero))
    track = room.inset(0, room.height / 2 - 4, 56, room.height / 2 - 4)
    stage.box(track.left, track.top, track.width, track.height, LINE, round=4)
    if abs(share - zero) * track.width >= 1:
        start, end = sorted((share, zero))
        stage.box(track.left + start * track.width, track.top, (end - start) * track.width, 8, AGENT, round=4)
    if 0 < zero < 1:
        stage.box(track.left + zero * track.width - 0.5, track.top - 3, 1, track.height + 6, FAINT)
    stage.write(number(value), room.left + room.width, room.top + room.height / 2, 12, anchor="midright")


def _cells(stage: Stage, view: View, room: Box) -> None:
    """A few numbers side by side, each a box that darkens from the lowest to the highest value."""
    count = view.values.size
    side = min(room.height, (room.width + 4) / count - 4)
    shades = shade(view.values[None], view.low, view.high)[0]
    for index, colour in enumerate(shades):
        left, top = room.left + index * (side + 4), room.top + (room.height - side) / 2
        stage.box(left, top, side, side, colour_of(colour), round=4)
        stage.box(left, top, side, side, FAINT, round=4, line=1)


def _actions(stage: Stage, scene: Scene, room: Box) -> None:
    probabilities = scene.probabilities
    if probabilities is not None and probabilities.ndim == 2:
        place = stage.picture(colours(probabilities, (0.0, 1.0))[0], room.inset(0, 0, 0, 20))
        _scale(stage, (0.0, 1.0), place.left + place.width / 2, place.top + place.height + 12)
        return
    if not scene.actions:  # numbers, not choices
        if scene.numbers is not None:
            shown = scene.numbers[: int(room.height // 14), None]
            _views(stage, [View(f"number {i}", entry, *scene.bounds) for i, entry in enumerate(shown)], room)
        return
    count = len(scene.actions)
    pitch = min(40.0, room.height / count)
    if probabilities is not None and (count > 16 or pitch < 12):
        _columns(stage, probabilities, scene, room)
        return
    size = 13 if pitch >= 20 else 11
    label = min(104.0, 0.4 * room.width)
    for index, name in enumerate(scene.actions):
        y, here = room.top + (index + 0.5) * pitch, index in scene.taken
        if probabilities is None:
            stage.box(room.left, y - 0.4 * pitch, room.width, 0.8 * pitch, _PALE if here else PAPER, round=6)
            stage.write(name, room.left + 10, y, size, room=room.width - 20)
            continue
        share = float(np.clip(np.nan_to_num(probabilities[index]), 0, 1))
        stage.write(name, room.left, y, size, INK if here or not scene.taken else FAINT, room=label - 8)
        track = Box(room.left + label, y - 0.3 * pitch, room.width - label - 52, 0.6 * pitch)
        stage.box(track.left, track.top, track.width, track.height, PAPER, round=4)
        if share * track.width >= 1:
            stage.box(track.left, track.top, share * track.width, track.height, AGENT if here else _PALE, round=4)
        stage.write(f"{100 * share:.0f} %", room.left + room.width, y, size, anchor="midright")


def _columns(stage: Stage, probabilities: Array, scene: Scene, room: Box) -> None:
    """Many actions: one thin column each, under it the name of a single one taken."""
    wide, foot = room.width / len(probabilities), room.top + room.height - 20
    for index, share in enumerate(np.clip(np.nan_to_num(probabilities), 0, 1)):
        here = index in scene.taken
        tall = max(1.0, float(share) * (room.height - 20))
        stage.box(room.left + index * wide, foot - tall, max(1.0, 0.8 * wide), tall, AGENT if here else _PALE)
        if here and len(scene.taken) == 1:
            stage.write(scene.actions[index], room.left + (index + 0.4) * wide, foot + 10, 11, anchor="center")


def _memory(stage: Stage, panels: Mapping[str, Panel], room: Box) -> None:
    if not panels:
        words = "this memory has no panels"
        stage.write(words, room.left + room.width / 2, room.top + room.height / 2, 12, FAINT, "center")
        return
    shown = list(panels.items())[:_MAX_PANELS]
    count = len(shown)
    shapes = [panel.image.shape for _, panel in shown]

    def covered(columns: int) -> float:
        """Share of its cell that the worst-fitting panel uses with this number of columns."""
        wide, tall = room.width / columns - 26, room.height / math.ceil(count / columns) - 62
        if min(wide, tall) <= 0:
            return 0.0
        fitting = (min(wide / shape[1], tall / shape[0]) ** 2 * shape[0] * shape[1] for shape in shapes)
        return min(max(area, _THIN * wide * tall) for area in fitting)

    def choice(columns: int) -> tuple[bool, float]:
        return covered(columns) > 0 and room.width / columns >= _LEGIBLE, covered(columns)

    columns = max(range(1, count + 1), key=choice)
    lines = math.ceil(count / columns)
    wide, tall = (room.width + 10) / columns, (room.height + 8) / lines
    for index, (name, panel) in enumerate(shown):
        cell = Box(room.left + index % columns * wide, room.top + index // columns * tall, wide - 10, tall - 8)
        _panel(stage, name, panel, cell)
    if len(panels) > count:
        words = f"and {len(panels) - count} more"
        stage.write(words, room.left + room.width, room.top - 17, 11, FAINT, "midright")


def _panel(stage: Stage, name: str, panel: Panel, room: Box) -> None:
    image, limits = colours(panel.image.detach().float().cpu().numpy(), panel.limits)
    inner = room.inset(16, 20, 1, 34)
    rows, columns = image.shape[:2]
    side = min(inner.width / columns, inner.height / rows)
    thin = side * side * rows * columns < _THIN * inner.width * inner.height  # a hair line if its cells stayed square
    place = stage.picture(image, inner, stretch=thin)
    stage.box(place.left - 1, place.top - 1, place.width + 2, place.height + 2, LINE, line=1)
    right = room.left + room.width  # a title that is wider than its picture begins further left
    left = max(room.left, min(place.left, right - stage.measure(name, 12)))
    stage.write(name, left, room.top + 8, 12, room=right - left)
    if limits is not None:
        _scale(stage, limits, place.left + place.width / 2, place.top + place.height + 25)
    stage.write(panel.x_label, place.left + place.width / 2, place.top + place.height + 9, 10, FAINT, "center")
    stage.write(
        panel.y_label, place.left - 9, place.top + place.height / 2, 10, FAINT, "center", place.height, turned=True
    )


def _scale(stage: Stage, limits: tuple[float, float], x: float, y: float) -> None:
    """The colour map around `(x, y)`, between the values at its ends."""
    ramp, _ = colours(np.linspace(*limits, 32)[None], limits)
    bar = stage.picture(ramp, Box(x - 20, y - 3, 40, 6), stretch=True)
    stage.box(bar.left - 1, bar.top - 1, bar.width + 2, bar.height + 2, LINE, line=1)
    stage.write(number(limits[0]), bar.left - 6, y, 10, FAINT, "midright")
    stage.write(number(limits[1]), bar.left + bar.width + 6, y, 10, FAINT)
