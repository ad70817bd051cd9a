"""One moment of an episode, as it is drawn: the environment, what the agent sees, does and remembers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from agents.view.canvas import Array, Box
from envs.rendering import Frame
from policies.memories.contract import Panel


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
    labels: Sequence[str] = ()
    """Names of the values of a row."""
    word: str = ""
    """Shown in place of the values."""


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
    names: Sequence[str] = ()
    """Of `numbers`."""
    exclusive: bool = False
    """Just one action is taken."""
    traces: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Of value, reward and return in this episode, drawn under the environment's picture."""
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
    help: str = ""
    """The keys, at the foot."""
    legend: bool = False
    """What is what is shown in place of the cards."""
    enlarged: str = ""
    """A card or panel that is shown alone."""
    played: bool = False
    """A person plays: nothing of the agent is shown."""
    paint: Callable[[Box, float], Frame | None] | None = None
    """Draws it for a room and a number of pixels per unit; None: `frame` is scaled."""
