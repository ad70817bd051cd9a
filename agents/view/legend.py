"""Draws the legend: what the cards, the colours and the memory's panels mean."""

from __future__ import annotations

from collections.abc import Mapping

from agents.view.canvas import Box, Stage
from envs.rendering import FAINT, INK
from policies.memories.contract import Panel

_GENERAL = (
    ("Environment", "the full state; the agent sees only the observation"),
    ("Observation", "what the agent is given at this step; dark: high, light: low"),
    ("Action probabilities", "of its next action; strong blue: the action it takes"),
    ("value", "the reward that the agent still expects, discounted"),
    ("return", "the reward of this episode so far"),
    ("blue, white, red", "negative, zero, positive"),
    ("violet to yellow", "0 to the value at the right; √: colours follow the square root, so that small ones show"),
    ("ends of a scale", "they only widen within an episode: a colour keeps its meaning"),
    ('"step" below a panel', "one column per step, the newest at the right"),
)


def draw_legend(stage: Stage, box: Box, panels: Mapping[str, Panel]) -> None:
    """Draws two lists: one about the window, one about this memory's panels."""
    area = stage.card("Legend — H or a click closes it", box)
    rows = [
        *_GENERAL,
        *((name, panel.about or "see the memory's page in docs/memories") for name, panel in panels.items()),
    ]
    pitch = min(26.0, area.height / len(rows))
    size = 13 if pitch >= 18 else 11
    first = max(stage.measure(name, size) for name, _ in rows) + 20
    first = min(first, 0.4 * area.width)
    for index, (name, words) in enumerate(rows):
        y = area.top + (index + 0.5) * pitch
        stage.write(name, area.left, y, size, INK, max_width=first - 12)
        stage.write(words, area.left + first, y, size, FAINT, max_width=area.width - first)
