"""The canvas on which an agent is drawn: text, cards, and images from arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pygame as pygame

from envs.rendering import FAINT, FLOOR, INK, LINE, Canvas, Colour, Frame, font

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels of the frame."""

    left: float
    top: float
    width: float
    height: float

    def inset(self, left: float, top: float, right: float, bottom: float) -> Box:
        """The same without a margin on each side."""
        return Box(self.left + left, self.top + top, self.width - left - right, self.height - top - bottom)

    def scaled(self, scale: float) -> Box:
        """The same in other units."""
        return Box(self.left * scale, self.top * scale, self.width * scale, self.height * scale)

    def holds(self, x: float, y: float) -> bool:
        """Whether a point lies in it."""
        return 0 <= x - self.left < self.width and 0 <= y - self.top < self.height


HEADING = 12
"""Font size of a card's heading."""


class Stage(Canvas):
    """Adds text in a proportional font, images from arrays and cards to the environments' canvas.

    Args:
        width: pixels of the frame.
        height: likewise.
        scale: pixels per unit.
    """

    def __init__(self, width: int, height: int, scale: float = 1.0) -> None:
        self.width, self.height, self.scale = width / scale, height / scale, scale
        self.places: dict[str, Box] = {}
        """The rectangle of each card and panel, in units, for clicks."""
        self._pasted: list[tuple[int, int, Frame]] = []
        self._prepare((width, height), scale)

    def paste(self, frame: Frame, area: Box) -> Box:
        """Puts a frame into the middle of `area`, pixel by pixel; returns its rectangle."""
        tall, wide = (side / self.scale for side in frame.shape[:2])
        left = round((area.left + (area.width - wide) / 2) * self.scale)
        top = round((area.top + (area.height - tall) / 2) * self.scale)
        self._pasted.append((left, top, frame))
        return Box(left / self.scale, top / self.scale, wide, tall)

    def frame(self) -> Frame:
        """The finished frame, `[height, width, 3]`."""
        drawn = super().frame()
        for left, top, frame in self._pasted:
            across, down = max(0, left), max(0, top)
            part = drawn[down : down + frame.shape[0], across : across + frame.shape[1]]
            part[:] = frame[: part.shape[0], : part.shape[1]]
        return drawn

    def write(
        self,
        text: str,
        x: float,
        y: float,
        size: int = 12,
        colour: Colour = INK,
        anchor: str = "midleft",
        max_width: float = math.inf,
        turned: bool = False,
    ) -> float:
        """Draws one line of text, shortened to `max_width`; returns its width."""
        face, fine = _face(round(size * self._fine)), self._fine
        while len(text) > 1 and face.size(text)[0] > max_width * fine:
            text = text.rstrip("…")[:-1].rstrip() + "…"
        drawn = face.render(text, True, colour)
        drawn = pygame.transform.rotate(drawn, 90) if turned else drawn
        self._sheet.blit(drawn, drawn.get_rect(**{anchor: (round(x * fine), round(y * fine))}))
        return float(face.size(text)[0]) / fine

    def measure(self, text: str, size: int) -> float:
        """Width of a line of text."""
        return float(_face(round(size * self._fine)).size(text)[0]) / self._fine

    def wrapped(self, text: str, size: int, width: float) -> list[str]:
        """Text wrapped to lines of this width."""
        lines: list[str] = []
        for word in text.split():
            longer = f"{lines[-1]} {word}" if lines else word
            if lines and self.measure(longer, size) <= width:
                lines[-1] = longer
            else:
                lines.append(word)
        return lines

    def picture(self, image: Array, box: Box, stretch: bool = False, smooth: bool = False) -> Box:
        """Draws an RGB array `[H, W, 3]` at the top centre of `box`; returns its rectangle.

        Its cells stay square and sharp, unless they may `stretch` or be drawn `smooth`.
        """
        rows, columns = image.shape[:2]
        fine = self._fine
        across, down = box.width * fine / columns, box.height * fine / rows
        if not stretch:
            across = down = min(across, down)
        if min(across, down) >= 2 * fine and not smooth:  # whole pixels per cell, so that all cells have the same size
            dots = self._dots
            across, down = (math.floor(side / dots) * dots for side in (across, down))
        size = max(1, round(across * columns)), max(1, round(down * rows))
        surface = pygame.surfarray.make_surface(np.ascontiguousarray(image.swapaxes(0, 1)))
        smooth = smooth or min(across, down) < 1
        scale = pygame.transform.smoothscale if smooth else pygame.transform.scale
        left = round((box.left + (box.width - size[0] / fine) / 2) * self.scale) * self._dots
        top = round(box.top * self.scale) * self._dots
        self._sheet.blit(scale(surface, size), (left, top))
        return Box(left / fine, top / fine, size[0] / fine, size[1] / fine)

    def card(self, heading: str, box: Box, colour: Colour = FLOOR) -> Box:
        """Draws a card with a heading; returns the free area."""
        self.box(box.left, box.top, box.width, box.height, colour, round=10)
        self.box(box.left, box.top, box.width, box.height, LINE, round=10, line=1)
        brightness = sum(colour) / 3
        ink = FAINT if brightness > 235 else INK if brightness > 120 else FLOOR  # legible on any background
        self.write(heading, box.left + 14, box.top + 17, HEADING, ink, max_width=box.width - 28)
        return box.inset(14, 34, 14, 14)


def colours(values: Array, limits: tuple[float, float] | None) -> tuple[Array, tuple[float, float] | None]:
    """Applies a colour map to numbers `[H, W]`: returns RGB `[H, W, 3]` uint8, and the values at both ends of the map.

    If the ends have different signs the map goes from blue over white to red, else it is viridis; without `limits`
    white means 0. From 0 on, colours follow the square root. RGB in 0..1 is not mapped. NaN and infinity are black.
    """
    if values.ndim == 3:
        return (255 * np.clip(np.nan_to_num(values), 0, 1)).astype(np.uint8), None
    values = values.astype(np.float64)
    finite = values[np.isfinite(values)]
    if limits is None:
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        if low < 0 < high:  # signed: white means 0
            low, high = -max(-low, high), max(-low, high)
        limits = (low, high)
    low, high = limits
    name = "RdBu_r" if low < 0 < high else "viridis"
    share = np.where(np.isfinite(values), (values - low) / max(high - low, 1e-12), np.nan)
    if low == 0:  # the square root makes small weights visible
        share = np.sqrt(np.clip(share, 0, None))
    return np.asarray(matplotlib.colormaps[name](share, bytes=True))[..., :3], limits


def shade(values: Array, low: float, high: float) -> Array:
    """Numbers `[H, W]` as greys from white (`low`) to ink (`high`), RGB uint8; infinite bounds are replaced by the
    extremes."""
    if not math.isfinite(high - low):
        low, high = float(np.min(values)), float(np.max(values))
    share = np.clip((np.nan_to_num(values.astype(np.float64)) - low) / max(high - low, 1e-12), 0, 1)[..., None]
    return (np.array(FLOOR) * (1 - share) + np.array(INK) * share).astype(np.uint8)


def colour_of(values: Array) -> Colour:
    """Converts three numbers to a colour."""
    red, green, blue = (int(value) for value in values)
    return red, green, blue


def number(value: float) -> str:
    """Formats a number briefly, with a minus sign."""
    if not math.isfinite(value):
        return str(value)
    text = f"{value:.0f}" if 1000 <= abs(value) < 1e6 or value == round(value) else f"{value:.3g}"
    if len(text) > 7:
        text = f"{value:.1e}"
    text = text.replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    return text.replace("-", "−") if float(text) else "0"


def brief(value: float, decimals: int) -> str:
    """Formats a number with at most so many decimals; smaller ones as 7e−4, except rounding errors."""
    if 1e-6 <= abs(value) < 10**-decimals:
        return f"{value:.0e}".replace("e-0", "e-").replace("-", "−")
    return number(round(value, decimals))


def _face(size: int) -> pygame.font.Font:
    return font(size, str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"))
