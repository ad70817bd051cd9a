"""Checks of a memory's arguments, with one form of message."""

from __future__ import annotations

from typing import Any


def at_least(least: int, **sizes: int | None) -> None:
    """Raises:
    ValueError: one of `sizes` is below `least`; None is not looked at.
    """
    for name, size in sizes.items():
        if size is not None and size < least:
            raise ValueError(f"{name} is {size}; it must be at least {least}")


def one_of(name: str, value: Any, *choices: Any) -> None:
    """Raises:
    ValueError: `value` is none of `choices`.
    """
    if value not in choices:
        *others, last = (repr(choice) for choice in choices)
        raise ValueError(f"{name} is {value!r}; it must be {', '.join(others)} or {last}")
