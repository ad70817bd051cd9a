"""One moment of an episode for drawing: environment, observation, action and memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from agents.view.canvas import Array, Box
from envs.rendering import Frame
from policies.memories.contract import Panel


@dataclass(frozen=True)
class View:
    """One part of an observation."""

    name: str
    values: Array
    """`[H, W, 3]` uint8: RGB; `[H, W]`: a map; `[n]`: shown by its values."""
    low: float = 0.0
    """Lowest possible value; minus infinity if unknown."""
    high: float = 1.0
    centred: bool = False
    """Whether the agent is at the centre of this map."""
    labels: Sequence[str] = ()
    """Names of the values of a row."""
    word: str = ""
    """Shown in place of the values."""


@dataclass(frozen=True)
class Scene:
    """One moment of an episode: the agent has read the observation and not acted yet."""

    title: str
    subtitle: str = ""
    frame: Frame | None = None
    """Picture of the environment, including parts that the agent does not see; None: hidden, or not available."""
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
    names: Sequence[str] = ()
    """Names of `numbers`."""
    exclusive: bool = False
    """Whether exactly one action is taken."""
    traces: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Value, reward and return over this episode, drawn under the environment's picture."""
    value: float | None = None
    total: float = 0.0
    """Return so far."""
    reward: float = 0.0
    """Reward of the last step."""
    step: int = 0
    episode: int = 1
    panels: Mapping[str, Panel] = field(default_factory=dict)
    """The memory, after it has read the observation."""
    note: str = ""
    """Status beside the title: "paused", "episode over"."""
    help: str = ""
    """Description of the keys, at the bottom."""
    legend: bool = False
    """Show a legend instead of the cards."""
    enlarged: str = ""
    """Name of a card or panel that is shown alone."""
    played: bool = False
    """A person plays, so nothing about an agent is shown."""
    paint: Callable[[Box, float], Frame | None] | None = None
    """Draws the environment for an area and a number of pixels per unit; None: `frame` is scaled."""
