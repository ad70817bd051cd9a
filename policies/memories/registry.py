"""Memories by name: the built-in ones, and what other packages offer as entry points of group `engram.memories`."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from policies.memories.base import Memory

GROUP = "engram.memories"

MemoryClass = TypeVar("MemoryClass", bound=type[Memory])

_classes: dict[str, type[Memory]] = {}


def register_memory(name: str) -> Callable[[MemoryClass], MemoryClass]:
    """Class decorator that makes a memory known as `name`, as in `@register_memory("lstm")`.

    Raises:
        ValueError: the name is taken.
    """

    def register(cls: MemoryClass) -> MemoryClass:
        if name in _classes:
            raise ValueError(f"the memory name {name!r} is taken by {_where(_classes[name])}")
        _classes[name] = cls
        return cls

    return register


def registered() -> tuple[str, ...]:
    """The names of all memories, in alphabetical order."""
    return tuple(sorted({*_classes, *_offered()}))


def memory_class(name: str) -> type[Memory]:
    """The class registered as `name`; an offered one is imported here, on first use.

    Raises:
        ValueError: no memory has this name.
        TypeError: the entry point of this name is not a `Memory`.
    """
    offered = _offered()
    if name in _classes:
        return _classes[name]
    if name in offered:
        loaded = offered[name].load()
        if not (isinstance(loaded, type) and issubclass(loaded, Memory)):
            raise TypeError(f"the entry point {offered[name].value} offers {name!r}, which is not a Memory class")
        return loaded
    close = difflib.get_close_matches(name, registered(), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"no memory is called {name!r}; known: {', '.join(registered())}{hint}")


def make_memory(name: str, *, input_size: int | tuple[int, ...], **kwargs: Any) -> Memory:
    """Build a memory by name.

    >>> import torch
    >>> from policies.memories import make_memory, registered
    >>> "lstm" in registered()
    True
    >>> memory = make_memory("lstm", input_size=5, hidden_size=8)
    >>> step = memory(torch.zeros(2, 5), memory.initial_state(2))
    >>> step.output.shape, sorted(step.state)
    (torch.Size([2, 8]), ['cell', 'hidden'])
    >>> make_memory("lstn", input_size=5)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: no memory is called 'lstn'; known: ...; did you mean 'lstm'?

    Args:
        name: one of `registered()`.
        input_size: F, the width of one input vector, or the shape `(C, L)` or `(C, H, W)` of one input grid.
        kwargs: the memory's own arguments; see its class.
    """
    cls = memory_class(name)
    signature = inspect.signature(cls)
    try:
        signature.bind(input_size, **kwargs)
    except TypeError as error:
        raise TypeError(f"memory {name!r}: {error}; it takes {_arguments(signature)}") from None
    return cls(input_size, **kwargs)  # type: ignore[call-arg]


def _arguments(signature: inspect.Signature) -> str:
    """Argument names with their defaults, on one line."""
    return ", ".join(
        name if parameter.default is parameter.empty else f"{name}={parameter.default!r}"
        for name, parameter in signature.parameters.items()
    )


def _offered() -> dict[str, EntryPoint]:
    """Memories of other packages by name; refused where a name is taken.

    A package may register the class its entry point names as well: that is one memory, not two.
    """
    offered: dict[str, EntryPoint] = {}
    for entry in _entry_points():
        holder = offered[entry.name].value if entry.name in offered else None
        if entry.name in _classes and _where(_classes[entry.name]) != entry.value:
            holder = _where(_classes[entry.name])
        if holder is not None:
            raise ValueError(f"the memory name {entry.name!r} of entry point {entry.value} is taken by {holder}")
        offered[entry.name] = entry
    return offered


@cache
def _entry_points() -> tuple[EntryPoint, ...]:
    """Read once; what they point to is imported only when used."""
    return tuple(entry_points(group=GROUP))


def _where(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"
