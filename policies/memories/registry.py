"""Memories by name: the built-in ones, and what other packages offer as entry points of group `engram.memories`."""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Callable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from policies.memories.contract import Memory

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


def built_in() -> tuple[str, ...]:
    """The names of this project's own memories, in alphabetical order, whatever else is installed."""
    return tuple(sorted(name for name, cls in _classes.items() if cls.__module__.startswith("policies.")))


def memory_class(name: str) -> type[Memory]:
    """The class registered as `name`; an offered one is imported here, on first use.

    Where several claim the name, a registered class comes before entry points, and these in alphabetical order of what
    they point to; a warning names the owners.

    Raises:
        ValueError: no memory has this name, or the package that offers it cannot be imported.
        TypeError: the entry point of this name is not a `Memory`.
    """
    offered = _offered().get(name, [])
    owners = [_where(_classes[name])] if name in _classes else []
    owners += [entry.value for entry in offered if entry.value not in owners]
    if len(owners) > 1:
        others = " and ".join(owners[1:])
        warnings.warn(f"the memory {name!r} is {owners[0]}; {others} offers the same name: ignored", stacklevel=2)
    if name in _classes:
        return _classes[name]
    if offered:
        return _loaded(name, offered[0])
    close = difflib.get_close_matches(name, registered(), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"no memory is called {name!r}; known: {', '.join(registered())}{hint}")


def _loaded(name: str, entry: EntryPoint) -> type[Memory]:
    try:
        loaded = entry.load()
    except Exception as error:  # whatever a package of somebody else's does while it is imported
        raise ValueError(
            f"the memory {name!r} cannot be used: its entry point {entry.value} fails with "
            f"{type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    if not (isinstance(loaded, type) and issubclass(loaded, Memory)):
        raise TypeError(f"the entry point {entry.value} offers {name!r}, which is not a Memory class")
    return loaded


def make_memory(name: str, *, input_size: int | tuple[int, ...], fast: bool = True, **kwargs: Any) -> Memory:
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
        fast: use the memory's fast form, where it has one; False: its equations alone.
        kwargs: the memory's own arguments; see its class.
    """
    cls = memory_class(name)
    signature = inspect.signature(cls)
    try:
        signature.bind(input_size, **kwargs)
    except TypeError as error:
        raise TypeError(f"memory {name!r}: {error}; it takes {_arguments(signature)}") from None
    memory = cls(input_size, **kwargs)  # type: ignore[call-arg]
    memory.use_fast_form(fast)
    return memory


def _arguments(signature: inspect.Signature) -> str:
    """Argument names with their defaults, on one line."""
    return ", ".join(
        name if parameter.default is parameter.empty else f"{name}={parameter.default!r}"
        for name, parameter in signature.parameters.items()
    )


def _offered() -> dict[str, list[EntryPoint]]:
    """Memories of other packages by name; nothing is imported.

    A package may register the class its entry point names as well: that is one memory, not two.
    """
    offered: dict[str, list[EntryPoint]] = {}
    for entry in sorted(_entry_points(), key=lambda entry: entry.value):
        offered.setdefault(entry.name, []).append(entry)
    return offered


@cache
def _entry_points() -> tuple[EntryPoint, ...]:
    """Read once; what they point to is imported only when used."""
    return tuple(entry_points(group=GROUP))


def _where(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"
