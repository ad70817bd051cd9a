"""Value, reward and return over an episode, as small curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agents.view.canvas import Box, Stage, brief
from envs.rendering import AGENT, FAINT, FLOOR, INK, LINE, RIGHT, WRONG

_LONGEST = 400  # steps shown


def draw_traces(stage: Stage, traces: Mapping[str, Sequence[float]], area: Box) -> None:
    """Draws the curves side by side, each with name, minimum and maximum."""
    wide = (area.width + 10) / len(traces)
    for index, (name, numbers) in enumerate(traces.items()):
        _trace(stage, name, list(numbers)[-_LONGEST:], Box(area.left + index * wide, area.top, wide - 10, area.height))


def _trace(stage: Stage, name: str, numbers: list[float], box: Box) -> None:
    stage.box(box.left, box.top, box.width, box.height, FLOOR, round=6)
    stage.box(box.left, box.top, box.width, box.height, LINE, round=6, line=1)
    low, high = min([0.0, *numbers]), max([0.0, *numbers])
    label = max(38.0, stage.measure(name, 10) + 4)
    stage.write(name, box.left + 6, box.top + box.height / 2, 10, FAINT, max_width=label)
    ends = 40.0 if box.width > 130 else 0.0
    plot = Box(box.left + 8 + label, box.top + 5, box.width - label - 14 - ends, box.height - 10)
    span = max(high - low, 1e-9)

    def height(value: float) -> float:
        share = (high - value) / span if high > low else 0.5
        return plot.top + plot.height * share

    stage.box(plot.left, height(0.0) - 0.5, plot.width, 1, LINE)
    step = plot.width / max(40, len(numbers))
    if name == "reward":
        for index, value in enumerate(numbers):
            if value:
                top, end = sorted((height(value), height(0.0)))
                colour = RIGHT if value > 0 else WRONG
                stage.box(plot.left + index * step, top, max(1.0, 0.8 * step), max(1.0, end - top), colour)
    else:
        points = [(plot.left + (index + 0.5) * step, height(value)) for index, value in enumerate(numbers)]
        stage.curve(points, AGENT if name == "value" else INK, 1.2)
    if ends and high > low:
        stage.write(brief(high, 2), box.left + box.width - 5, box.top + 8, 8, FAINT, "midright", ends)
        stage.write(brief(low, 2), box.left + box.width - 5, box.top + box.height - 8, 8, FAINT, "midright", ends)
