"""The cards of observation and actions: maps, images, gauges, rows of boxes, bars of probabilities."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from agents.view.canvas import Array, Box, Stage, colour_of, colours, number, shade
from agents.view.moment import Scene, View
from envs.rendering import AGENT, FAINT, FLOOR, INK, LINE, PAPER, Colour

_TITLE = 18  # height of a map's name, in units
_PALE: Colour = (214, 229, 241)  # the agent's blue, lightened


def draw_views(stage: Stage, views: Sequence[View], area: Box) -> None:
    """Draws the views: rows of numbers at the height they need, maps in the remaining area."""
    maps = [view for view in views if view.values.ndim > 1]
    rows = [view for view in views if view.values.ndim == 1]
    most = (30.0 if maps else 44.0) * (1.6 if area.width > 500 else 1)
    pitch = min(most, area.height / max(1, len(rows) + 6 * bool(maps)))
    top = area.top if not maps else area.top + area.height - pitch * len(rows)
    if maps:
        high = top - area.top - 8 * bool(rows)
        title = max(stage.measure(view.name, 12) for view in maps)

        def choice(count: int) -> tuple[bool, float]:
            """Whether the names fit, and the side of the square maps."""
            across, down = area.width / count - 8, high / math.ceil(len(maps) / count) - _TITLE - 6
            return across >= title and down > 20, min(across, down)

        columns = max(range(1, len(maps) + 1), key=choice)
        wide, tall = area.width / columns, high / math.ceil(len(maps) / columns)
        for index, view in enumerate(maps):
            cell = Box(area.left + index % columns * wide, area.top + index // columns * tall, wide, tall)
            _map(stage, view, cell.inset(0, 0, 8 * (columns > 1), 6))
    size = 14 if area.width > 500 else 12
    label = min(max([40.0, *(stage.measure(view.name, size) + 12 for view in rows)]), 0.5 * area.width)
    for index, view in enumerate(rows):
        y = top + (index + 0.5) * pitch
        stage.write(view.name, area.left, y, size, max_width=label - 8)
        box = Box(area.left + label, y - 0.36 * pitch, area.width - label, 0.72 * pitch)
        if view.word:
            large = next((each for each in (16, 14) if stage.measure(view.word, each) <= box.width), 12)
            stage.write(view.word, box.left, y, large, AGENT, max_width=box.width)
        else:
            (_gauge if view.values.size == 1 else _cells)(stage, view, box)


def _map(stage: Stage, view: View, area: Box) -> None:
    stage.write(view.name, area.left, area.top + 7, 12, max_width=area.width)
    image = view.values if view.values.ndim == 3 else shade(view.values, view.low, view.high)
    place = stage.picture(image, area.inset(1, _TITLE + 1, 1, 1))
    rows, columns = view.values.shape[:2]
    if max(rows, columns) <= 12:  # few cells: draw lines between them
        for line in range(1, rows):
            stage.box(place.left, place.top + line * place.height / rows - 0.5, place.width, 1, LINE)
        for line in range(1, columns):
            stage.box(place.left + line * place.width / columns - 0.5, place.top, 1, place.height, LINE)
    stage.box(place.left - 1, place.top - 1, place.width + 2, place.height + 2, FAINT, line=1)
    if view.centred:
        stage.agent(place.left + place.width / 2, place.top + place.height / 2, place.width / 10)


def _gauge(stage: Stage, view: View, area: Box) -> None:
    """A number on a scale from its lowest to its highest value; without bounds, by x / (1 + |x|) around 0."""
    value = float(view.values.flat[0])
    low, high = view.low, view.high
    share, zero = (value - low) / max(high - low, 1e-9), -low / max(high - low, 1e-9)
    if not math.isfinite(high - low):
        share, zero = 0.5 + 0.5 * value / (1 + abs(value)), 0.5
    share, zero = (float(np.clip(part, 0.0, 1.0)) if math.isfinite(part) else 0.0 for part in (share, zero))
    track = area.inset(0, area.height / 2 - 4, 56, area.height / 2 - 4)
    stage.box(track.left, track.top, track.width, track.height, LINE, round=4)
    if abs(share - zero) * track.width >= 1:
        start, end = sorted((share, zero))
        stage.box(track.left + start * track.width, track.top, (end - start) * track.width, 8, AGENT, round=4)
    if 0 < zero < 1:
        stage.box(track.left + zero * track.width - 0.5, track.top - 3, 1, track.height + 6, FAINT)
    stage.write(number(value), area.left + area.width, area.top + area.height / 2, 12, anchor="midright")


def _cells(stage: Stage, view: View, area: Box) -> None:
    """A few numbers side by side: boxes, darker for higher values."""
    count = view.values.size
    side = min(area.height, (area.width + 4) / count - 4)
    if side < 9 and len(view.labels) == count:  # too small to distinguish: name the one that is lit
        lit = np.flatnonzero(view.values > (view.low + view.high) / 2)
        names = " ".join(view.labels[int(index)] for index in lit) or "–"
        stage.write(names, area.left, area.top + area.height / 2, 16, AGENT, max_width=area.width)
        return
    shades = shade(view.values[None], view.low, view.high)[0]
    dark = shades.mean(1) < 140
    for index, colour in enumerate(shades):
        left, top = area.left + index * (side + 4), area.top + (area.height - side) / 2
        stage.box(left, top, side, side, colour_of(colour), round=4)
        stage.box(left, top, side, side, FAINT, round=4, line=1)
        if len(view.labels) == count:
            size = round(min(13, 0.62 * side))
            ink = FLOOR if dark[index] else FAINT
            stage.write(view.labels[index], left + side / 2, top + side / 2, size, ink, "center")


def draw_actions(stage: Stage, scene: Scene, area: Box) -> None:
    probabilities = scene.probabilities
    if probabilities is not None and probabilities.ndim == 2:
        place = stage.picture(shade(probabilities, 0.0, 1.0), area.inset(1, 1, 1, 21))
        stage.box(place.left - 1, place.top - 1, place.width + 2, place.height + 2, FAINT, line=1)
        words = "white 0, black 1: probability of a mark"
        stage.write(words, area.left + area.width / 2, place.top + place.height + 12, 10, FAINT, "center", area.width)
        return
    if not scene.actions:  # numbers, not choices
        if scene.numbers is not None:
            shown = scene.numbers[: int(area.height // 14), None]
            names = scene.names or tuple(f"number {index}" for index in range(len(scene.numbers)))
            entries = zip(names, shown, strict=False)
            draw_views(stage, [View(name, entry, *scene.bounds) for name, entry in entries], area)
        return
    count = len(scene.actions)
    pitch = min(40.0, area.height / count)
    if probabilities is not None and (count > 16 or pitch < 12):
        (_best if scene.exclusive else _columns)(stage, probabilities, scene, area)
        return
    size = 13 if pitch >= 20 else 11
    label = min(max(40.0, *(stage.measure(name, size) + 12 for name in scene.actions)), 0.5 * area.width)
    for index, name in enumerate(scene.actions):
        y, here = area.top + (index + 0.5) * pitch, index in scene.taken
        if probabilities is None:
            stage.box(area.left, y - 0.4 * pitch, area.width, 0.8 * pitch, _PALE if here else PAPER, round=6)
            stage.write(name, area.left + 10, y, size, max_width=area.width - 20)
            continue
        share = float(np.clip(np.nan_to_num(probabilities[index]), 0, 1))
        stage.write(name, area.left, y, size, INK if here or not scene.taken else FAINT, max_width=label - 8)
        track = Box(area.left + label, y - 0.3 * pitch, area.width - label - 52, 0.6 * pitch)
        stage.box(track.left, track.top, track.width, track.height, PAPER, round=4)
        if share * track.width >= 1:
            stage.box(track.left, track.top, share * track.width, track.height, AGENT if here else _PALE, round=4)
        stage.write(f"{100 * share:.0f} %", area.left + area.width, y, size, anchor="midright")


def _best(stage: Stage, probabilities: Array, scene: Scene, area: Box) -> None:
    """Many choices: the five most probable, and the total probability of the others."""
    most = max(1, min(5, int(area.height / 16) - 1))
    best = [int(index) for index in np.argsort(-np.nan_to_num(probabilities), kind="stable")[:most]]
    best += [index for index in scene.taken if index not in best]
    shares = [float(probabilities[index]) for index in best]
    names = [scene.actions[index] for index in best] + [f"{len(probabilities) - len(best)} others"]
    taken = [place for place, index in enumerate(best) if index in scene.taken]
    rest = max(0.0, float(np.nansum(probabilities)) - sum(shares))
    few = dataclasses.replace(scene, actions=names, probabilities=np.array([*shares, rest]), taken=taken)
    draw_actions(stage, few, area)


def _columns(stage: Stage, probabilities: Array, scene: Scene, area: Box) -> None:
    """Many actions: one thin column each, and below the name of the action if only one is taken."""
    wide, foot = area.width / len(probabilities), area.top + area.height - 20
    for index, share in enumerate(np.clip(np.nan_to_num(probabilities), 0, 1)):
        here = index in scene.taken
        tall = max(1.0, float(share) * (area.height - 20))
        stage.box(area.left + index * wide, foot - tall, max(1.0, 0.8 * wide), tall, AGENT if here else _PALE)
        if here and len(scene.taken) == 1:
            stage.write(scene.actions[index], area.left + (index + 0.4) * wide, foot + 10, 11, anchor="center")


def draw_scale(stage: Stage, limits: tuple[float, float], x: float, y: float) -> None:
    """The colour map, centred at `(x, y)`, between its two limits."""
    ramp, _ = colours(np.linspace(*limits, 32)[None], limits)
    bar = stage.picture(ramp, Box(x - 20, y - 3, 40, 6), stretch=True)
    stage.box(bar.left - 1, bar.top - 1, bar.width + 2, bar.height + 2, LINE, line=1)
    stage.write(number(limits[0]), bar.left - 6, y, 10, FAINT, "midright")
    root = " √" if limits[0] == 0 else ""
    stage.write(number(limits[1]) + root, bar.left + bar.width + 6, y, 10, FAINT)
