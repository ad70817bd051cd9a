"""Draws the memory card: as many panels as fit, each with labels and a colour scale."""

from __future__ import annotations

import math
from collections.abc import Mapping

from agents.view.canvas import Box, Stage, colours
from agents.view.cards import draw_scale
from envs.rendering import FAINT, LINE
from policies.memories.contract import Panel

_MAX_PANELS = 9
_THIN = 0.3  # a panel that covers less than this share of its area is stretched
_LEGIBLE = 112  # width that a panel needs for its title and the numbers of its scale


def draw_memory(stage: Stage, panels: Mapping[str, Panel], area: Box) -> None:
    if not panels:
        words = "this memory has no panels"
        stage.write(words, area.left + area.width / 2, area.top + area.height / 2, 12, FAINT, "center")
        return
    shown = list(panels.items())[:_MAX_PANELS]
    count = len(shown)
    shapes = [panel.image.shape for _, panel in shown]

    def covered(columns: int) -> float:
        """The smallest share of its cell that a panel covers, with this number of columns."""
        wide, tall = area.width / columns - 26, area.height / math.ceil(count / columns) - 76
        if min(wide, tall) <= 0:
            return 0.0
        fitting = (min(wide / shape[1], tall / shape[0]) ** 2 * shape[0] * shape[1] for shape in shapes)
        return min(max(area, _THIN * wide * tall) for area in fitting)

    def choice(columns: int) -> tuple[bool, float]:
        return covered(columns) > 0 and area.width / columns >= _LEGIBLE, covered(columns)

    columns = max(range(1, count + 1), key=choice)
    lines = math.ceil(count / columns)
    wide, tall = (area.width + 10) / columns, (area.height + 8) / lines
    lines_about = max(len(stage.wrapped(panel.about, 10, wide - 12)) for _, panel in shown)
    about_lines = min(lines_about, 2 if tall > 130 else 1 if tall > 96 else 0)
    for index, (name, panel) in enumerate(shown):
        cell = Box(area.left + index % columns * wide, area.top + index // columns * tall, wide - 10, tall - 8)
        draw_panel(stage, name, panel, cell, about_lines)
        stage.places[name] = cell
    if len(panels) > count:
        words = f"and {len(panels) - count} more"
        stage.write(words, area.left + area.width, area.top - 17, 11, FAINT, "midright")


def draw_panel(stage: Stage, name: str, panel: Panel, area: Box, about_lines: int = 1) -> None:
    """Draws a panel with its title, description (in `about_lines` lines), labels and scale."""
    image, limits = colours(panel.image.detach().float().cpu().numpy(), panel.limits)
    inner = area.inset(16, 20 + 13 * about_lines, 1, 34)
    rows, columns = image.shape[:2]

    def shape(box: Box) -> tuple[bool, float]:
        """Whether it is stretched (with square cells it would be too thin to see), and its height."""
        side = min(box.width / columns, box.height / rows)
        thin = side * side * rows * columns < _THIN * box.width * box.height
        return thin, box.height if thin else side * rows

    across, down = panel.x_label, panel.y_label
    below = bool(down) and stage.measure(down, 10) > shape(inner)[1]
    if below:  # a low picture has no area for it beside it
        inner, down = inner.inset(0, 0, 0, 12), f"↓ {down}"
    place = stage.picture(image, inner, stretch=shape(inner)[0])
    stage.box(place.left - 1, place.top - 1, place.width + 2, place.height + 2, LINE, line=1)
    right = area.left + area.width  # a title wider than the picture starts further left
    left = max(area.left, min(place.left, right - stage.measure(name, 12)))
    stage.write(name, left, area.top + 8, 12, max_width=right - left)
    lines = stage.wrapped(panel.about, 10, area.width - 2)
    lines = [*lines[: about_lines - 1], " ".join(lines[about_lines - 1 :])] if about_lines else []
    for index, words in enumerate(lines):
        start = max(area.left, min(left, right - stage.measure(words, 10)))
        stage.write(words, start, area.top + 23 + 12 * index, 10, FAINT, max_width=right - start + 2)
    if limits is not None:
        draw_scale(stage, limits, place.left + place.width / 2, place.top + place.height + 25 + 12 * below)
    left, wide = area.left + 2, area.width - 4
    for line, words in enumerate((across, down) if below else (across,)):
        half = stage.measure(words, 10) / 2
        middle = min(max(place.left + place.width / 2, left + half), left + max(half, wide - half))
        stage.write(words, middle, place.top + place.height + 9 + 12 * line, 10, FAINT, "center", wide)
    if not below:
        x, y = place.left - 9, place.top + place.height / 2
        stage.write(down, x, y, 10, FAINT, "center", place.height + 1, turned=True)
