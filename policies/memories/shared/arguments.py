"""Checks a memory's arguments, with uniform messages."""

from __future__ import annotations

from typing import Any


def at_least(least: int, **values: float | None) -> None:
    """Checks that values are at least `least`; None is skipped.

    Raises:
        ValueError: a value is below `least`.
    """
    for name, value in values.items():
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}")


def one_of(name: str, value: Any, *choices: Any) -> None:
    """Checks that an argument has one of the allowed values.

    Raises:
        ValueError: it has another value.
    """
    if value not in choices:
        *others, last = (repr(choice) for choice in choices)
        raise ValueError(f"{name} is {value!r}; it must be {', '.join(others)} or {last}")
