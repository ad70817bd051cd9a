"""The settings of a multigrid memory, and those of the papers' networks by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Residuals = tuple[tuple[int, int], ...]
"""Pairs (to, from) of layers, counted from 1."""


@dataclass(frozen=True)
class Plan:
    """All settings of a multigrid memory except its inputs; the fields are the arguments of `Multigrid`.

    Raises:
        ValueError: fields contradict each other.
    """

    rank: int
    base: int
    levels: tuple[int, ...]
    channels: tuple[int, ...]
    residuals: Residuals = ()
    reader: Literal["query", "none"] = "query"
    down_levels: tuple[int, ...] = (1,)
    down_channels: tuple[int, ...] = (16,)
    reader_residuals: Residuals = ()
    keep: Literal["finest", "coarsest"] = "coarsest"
    activate_output: bool = False
    readout: Literal["flatten", "pool"] = "flatten"
    input_levels: Literal["fit", "all"] = "fit"
    decoder: int | Literal["none", "silence"] = "none"
    peepholes: bool = True
    forget_bias: float = 1.0
    normalization: Literal["none", "batch", "sequence"] = "none"

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, allowed))}")
        if isinstance(self.decoder, str) and self.decoder not in ("none", "silence"):
            raise ValueError(f"decoder is {self.decoder!r}; it must be 'none', 'silence' or the number of a channel")
        for name in ("levels", "channels", "residuals", "down_levels", "down_channels", "reader_residuals"):
            if not isinstance(getattr(self, name), tuple):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be a list, such as [1, 2]")
        for levels, channels in (("levels", "channels"), ("down_levels", "down_channels")):
            counts, widths = getattr(self, levels), getattr(self, channels)
            if not counts or len(counts) != len(widths):
                raise ValueError(f"{levels} {counts} and {channels} {widths} must be of the same length, at least 1")
            if min(*counts, *widths, self.base) < 1:
                raise ValueError(f"{levels} {counts}, {channels} {widths} and base {self.base} must be at least 1")
        if max(self.down_levels) > self.levels[-1]:
            raise ValueError(
                f"down_levels is {self.down_levels}; expected at most {self.levels[-1]}, the levels of the last layer"
            )
        if self.down_levels[-1] != 1:
            raise ValueError(f"down_levels {self.down_levels} must end with 1: the output is one grid")
        lengths = {"residuals": len(self.levels), "reader_residuals": self.reader_layers}
        for name, length in lengths.items():
            pairs = getattr(self, name)
            if any(not 1 <= source < target <= length for target, source in pairs):
                raise ValueError(f"{name} {pairs} must be pairs (to, from), 1 <= from < to <= {length}")
            if len(dict(pairs)) < len(pairs):
                raise ValueError(f"{name} is {pairs}; expected at most one residual per target layer")

    @property
    def reader_layers(self) -> int:
        """Layers of one reader, up and down."""
        return len(self.down_levels) + (len(self.levels) if self.reader == "query" else 0)

    def side(self, level: int) -> int:
        """Side length of the grids of `level`."""
        return self.base << (level - 1)

    def size(self, level: int) -> tuple[int, ...]:
        """Spatial shape of the grids of `level`."""
        return (self.side(level),) * self.rank

    def entry(self, shape: Sequence[int]) -> int:
        """The coarsest level whose grids are at least of this spatial `shape`."""
        level = 1
        while self.side(level) < max(shape):
            level += 1
        return level

    @classmethod
    def of(cls, preset: str, **given: Any) -> Plan:
        """A preset, with its values replaced by the arguments that are not None.

        Raises:
            ValueError: there is no such preset, or the arguments contradict each other.
        """
        if preset not in PRESETS:
            raise ValueError(f"there is no preset {preset!r}; known: {', '.join(PRESETS)}")
        changes = {
            name: _tuples(value) if name in asdict(PRESETS[preset]) else value
            for name, value in given.items()
            if value is not None
        }
        return replace(PRESETS[preset], **changes)


CHOICES: dict[str, tuple[Any, ...]] = {
    "rank": (1, 2),
    "reader": ("query", "none"),
    "keep": ("finest", "coarsest"),
    "readout": ("flatten", "pool"),
    "input_levels": ("fit", "all"),
    "normalization": ("none", "batch", "sequence"),
}


def _tuples(value: Any) -> Any:
    """Converts lists from configuration files to tuples."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value


_UP_DOWN = Plan(  # common to the paper's experiments
    rank=2,
    base=3,
    levels=(2, 2, 3, 3, 4),
    channels=(4, 4, 4, 4, 8),
    residuals=((3, 1), (5, 3)),
    peepholes=False,
    readout="pool",
)

PRESETS = {
    # small enough to learn by reinforcement on a CPU
    "small": Plan(rank=2, base=3, levels=(1, 2, 2), channels=(8, 8, 8), activate_output=True),
    # the released mapping network
    "mapping-25": replace(
        _UP_DOWN,
        levels=(2, 2, 3, 3, 4, 4, 5),
        channels=(4, 4, 8, 8, 16, 16, 16),
        residuals=((3, 1), (5, 3), (7, 5)),
        down_levels=(4, 4, 3, 3, 2, 2, 1),
        down_channels=(16, 16, 16, 16, 16, 16, 1),
        reader_residuals=((3, 1), (5, 3), (11, 9), (13, 11)),
        keep="finest",
    ),
    # not published layer by layer; has the published 0.12 M parameters and 8 K cells
    "mapping-15": replace(
        _UP_DOWN,
        levels=(2, 2, 3, 4),
        channels=(4, 4, 8, 8),
        residuals=((3, 1),),
        down_levels=(3, 3, 2, 2, 1),
        down_channels=(16, 16, 16, 16, 1),
        reader_residuals=((3, 1), (8, 6)),
        keep="finest",
    ),
    # supplement B.2.1: five layers, sides 3 to 24, then down to 3; the channels are ours, for 8 K cells
    "sort": replace(
        _UP_DOWN,
        reader="none",
        down_levels=(3, 3, 2, 2, 1),
        down_channels=(16, 16, 16, 16, 1),
        reader_residuals=((4, 2),),
        decoder="silence",
    ),
    "recall": replace(
        _UP_DOWN,
        down_levels=(3, 3, 2, 2, 1),
        down_channels=(16, 16, 16, 16, 1),
        reader_residuals=((5, 3), (9, 7)),
    ),
    # the released MNIST recall network, up to its last, fully connected layer
    "mnist": replace(
        _UP_DOWN,
        levels=(3, 3, 3, 3, 3),
        channels=(4, 4, 8, 8, 16),
        residuals=((3, 1), (5, 3)),
        down_levels=(3, 3, 2, 2, 1),
        down_channels=(16, 16, 16, 16, 10),
        reader_residuals=((3, 1), (5, 3), (9, 7)),
        activate_output=True,
        readout="flatten",
        input_levels="all",
        normalization="batch",
    ),
    # supplement B.3.1: one-dimensional, sides 1 to 16, then down to 1; layers and channels are ours
    "babi": Plan(
        rank=1,
        base=1,
        levels=(1, 2, 3, 4, 5),
        channels=(64, 64, 64, 64, 64),
        reader="none",
        down_levels=(4, 3, 2, 1),
        down_channels=(64, 64, 64, 128),
        activate_output=True,
        normalization="sequence",
        peepholes=False,
    ),
}
