"""Converts observations of any space to views: images, maps, rows of boxes, gauges or words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from agents.view.moment import View

_BOXES = 12
"""Maximum number of boxes for a `Discrete` observation; with more choices the number is shown."""


def views_of(
    name: str, values: np.ndarray[Any, Any], space: spaces.Space[Any], labels: Sequence[str] = ()
) -> list[View]:
    """The parts of one observation.

    Args:
        name: title of the view.
        values: of one environment.
        space: of the values.
        labels: names of the numbers, of the planes of `[C, H, W]`, or of the values of a `Discrete`.
    """
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        counts = np.atleast_1d(space.n if isinstance(space, spaces.Discrete) else space.nvec).ravel()
        digits = np.ravel(values - space.start)
        return [
            _choice(name if len(counts) == 1 else f"{name} {index}", int(digit), int(n), labels)
            for index, (n, digit) in enumerate(zip(counts, digits, strict=True))
        ]
    low, high = 0.0, 1.0
    if isinstance(space, spaces.Box):
        low, high = float(np.min(space.low)), float(np.max(space.high))
    if values.dtype == np.uint8 and values.ndim == 3:
        image = values if values.shape[-1] in (1, 3) else values.transpose(1, 2, 0)
        return [View(name, np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image[..., -3:])]
    if values.ndim == 3:  # [C, H, W]
        return _planes(name, values, space, labels if len(labels) == len(values) else ())
    if values.ndim == 2:
        return [View(name, values, low, high)]
    if len(labels) != values.size:
        labels = ()
    if values.size > 1 and (low, high) == (0.0, 1.0) and (labels or values.size <= 24):
        return [View(name, values, low, high, labels=labels)]
    if values.size > 24:  # folded into the most nearly square block that fits
        width = int(np.ceil(np.sqrt(values.size)))
        block = np.full(width * -(-values.size // width), low if np.isfinite(low) else values.min())
        block[: values.size] = values
        return [View(name, block.reshape(-1, width), low, high)]
    if not isinstance(space, spaces.Box):
        return [View(name, values.ravel(), low, high)]
    names = labels or ([name] if values.size == 1 else [f"{name} {index}" for index in range(values.size)])
    return [
        View(part, values.ravel()[index : index + 1], float(least), float(most))
        for index, (part, least, most) in enumerate(zip(names, space.low.ravel(), space.high.ravel(), strict=True))
    ]


def _choice(name: str, digit: int, count: int, labels: Sequence[str]) -> View:
    """One of several choices: as its name, a lit box, or a number if there are many."""
    if len(labels) == count:
        return View(name, np.zeros(1), word=labels[digit])
    if count > _BOXES:
        return View(name, np.zeros(1), word=f"{digit}  (of 0 to {count - 1})")
    return View(name, np.eye(count)[digit], labels=[str(index) for index in range(count)])


def _planes(name: str, values: np.ndarray[Any, Any], space: spaces.Space[Any], labels: Sequence[str]) -> list[View]:
    """Maps. A named plane with equal entries is shown as one number; a plane named "" is not shown."""
    views = []
    for index, plane in enumerate(values):
        low, high = 0.0, 1.0
        if isinstance(space, spaces.Box):
            low, high = float(np.min(space.low[index])), float(np.max(space.high[index]))
        if not labels:
            views.append(View(f"{name} {index}" if len(values) > 1 else name, plane, low, high))
        elif labels[index]:
            title = f"{name}: {labels[index]}"
            is_number = bool((plane == plane.flat[0]).all()) and (low, high) != (0, 1)
            views.append(View(title, plane.ravel()[:1] if is_number else plane, low, high))
    return views
