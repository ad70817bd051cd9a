"""Registries of classes by name: built-in ones, and entry points of other packages. Used for memories and learners."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

Base = TypeVar("Base")
Class = TypeVar("Class", bound=type[Any])


class Registry(Generic[Base]):
    """One kind of classes.

    Args:
        kind: name of the kind for messages, such as "memory".
        plural: its plural; the entry-point group is `engram.PLURAL`.
        base: the base class.
    """

    def __init__(self, kind: str, plural: str, base: type[Base]) -> None:
        self.kind, self.base, self.group = kind, base, f"engram.{plural}"
        self.classes: dict[str, type[Base]] = {}
        """Registered classes by name."""

    def register(self, name: str) -> Callable[[Class], Class]:
        """Class decorator that registers a class as `name`; the same class may be defined again, as in a notebook.

        Raises:
            ValueError: another class has the name.
            TypeError: the class does not extend the base.
        """

        def register(cls: Class) -> Class:
            if name in self.classes and qualified_name(self.classes[name]) != qualified_name(cls):
                raise ValueError(f"the {self.kind} name {name!r} is taken by {qualified_name(self.classes[name])}")
            found: Any = cls
            if not issubclass(found, self.base):
                raise TypeError(
                    f"{qualified_name(found)} is registered as {name!r}, but is not a {self.base.__name__} class"
                )
            self.classes[name] = found
            return cls

        return register

    def names(self) -> tuple[str, ...]:
        """All names, in alphabetical order."""
        return tuple(sorted({*self.classes, *self._offered()}))

    def built_in(self) -> tuple[str, ...]:
        """The names of this project's classes, in alphabetical order, without those of other packages."""
        ours = ("agents.", "policies.")
        return tuple(sorted(name for name, cls in self.classes.items() if cls.__module__.startswith(ours)))

    def find(self, name: str) -> type[Base]:
        """The class of `name`; an entry point is imported on first use.

        If several claim the name, registered classes come first, then entry points in alphabetical order of their
        targets; a warning names the owners.

        Raises:
            ValueError: the name is unknown, or the package that provides it cannot be imported.
            TypeError: the entry point of this name does not extend the base.
        """
        offered = self._offered().get(name, [])
        owners = [qualified_name(self.classes[name])] if name in self.classes else []
        owners += [entry.value for entry in offered if entry.value not in owners]
        if len(owners) > 1:
            others = " and ".join(owners[1:])
            message = f"the {self.kind} {name!r} is {owners[0]}; {others} offers the same name: ignored"
            warnings.warn(message, stacklevel=3)
        if name in self.classes:
            return self.classes[name]
        if offered:
            return self._loaded(name, offered[0])
        close = difflib.get_close_matches(name, self.names(), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        own = f"a {self.kind} of your own: import its module first (train.py --imports)"
        raise ValueError(f"no {self.kind} is called {name!r}; known: {', '.join(self.names())}{hint}; {own}")

    def _loaded(self, name: str, entry: EntryPoint) -> type[Base]:
        try:
            loaded = entry.load()
        except Exception as error:  # importing a third-party package may raise anything
            raise ValueError(
                f"the {self.kind} {name!r} cannot be used: its entry point {entry.value} fails with "
                f"{type(error).__name__}: {' '.join(str(error).split())}"
            ) from error
        if not (isinstance(loaded, type) and issubclass(loaded, self.base)):
            raise TypeError(f"the entry point {entry.value} offers {name!r}, which is not a {self.base.__name__} class")
        return loaded

    def _offered(self) -> dict[str, list[EntryPoint]]:
        """Entry points of other packages by name; nothing is imported.

        A package may register the class its entry point names as well: that is one class, not two.
        """
        offered: dict[str, list[EntryPoint]] = {}
        for entry in sorted(_entry_points(self.group), key=lambda entry: entry.value):
            offered.setdefault(entry.name, []).append(entry)
        return offered


class View(Mapping[str, type[Base]]):
    """A read-only mapping view of a registry, in alphabetical order; classes are imported on access."""

    def __init__(self, registry: Registry[Base]) -> None:
        self._registry = registry

    def __getitem__(self, name: str) -> type[Base]:
        if name not in self:
            raise KeyError(name)
        return self._registry.find(name)

    def __contains__(self, name: object) -> bool:
        return name in self._registry.names()

    def __iter__(self) -> Iterator[str]:
        return iter(self._registry.names())

    def __len__(self) -> int:
        return len(self._registry.names())


@cache
def _entry_points(group: str) -> tuple[EntryPoint, ...]:
    """Reads the entry points once; their targets are imported only when used."""
    return tuple(entry_points(group=group))


def qualified_name(cls: type) -> str:
    """A class as `module:Class`."""
    return f"{cls.__module__}:{cls.__qualname__}"
