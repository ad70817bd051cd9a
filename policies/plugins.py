"""Classes by name: the built-in ones, and what other packages offer as entry points. Memories and learners use it."""

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
        kind: what they are, in a word, for messages: "memory".
        plural: the same of many; the entry-point group is `engram.PLURAL`.
        base: what they extend.
    """

    def __init__(self, kind: str, plural: str, base: type[Base]) -> None:
        self.kind, self.base, self.group = kind, base, f"engram.{plural}"
        self.classes: dict[str, type[Base]] = {}
        """The registered ones."""

    def register(self, name: str) -> Callable[[Class], Class]:
        """Class decorator that makes a class known as `name`.

        Raises:
            ValueError: the name is taken.
            TypeError: the class does not extend the base.
        """

        def register(cls: Class) -> Class:
            if name in self.classes:
                raise ValueError(f"the {self.kind} name {name!r} is taken by {_where(self.classes[name])}")
            found: Any = cls
            if not issubclass(found, self.base):
                raise TypeError(f"{_where(found)} is registered as {name!r}, but is not a {self.base.__name__} class")
            self.classes[name] = found
            return cls

        return register

    def names(self) -> tuple[str, ...]:
        """The names of all, in alphabetical order."""
        return tuple(sorted({*self.classes, *self._offered()}))

    def built_in(self) -> tuple[str, ...]:
        """The names of this project's own, in alphabetical order, whatever else is installed."""
        ours = ("agents.", "policies.")
        return tuple(sorted(name for name, cls in self.classes.items() if cls.__module__.startswith(ours)))

    def find(self, name: str) -> type[Base]:
        """The class registered as `name`; an offered one is imported here, on first use.

        Where several claim the name, a registered class comes before entry points, and these in alphabetical order of
        what they point to; a warning names the owners.

        Raises:
            ValueError: nothing has this name, or the package that offers it cannot be imported.
            TypeError: the entry point of this name does not extend the base.
        """
        offered = self._offered().get(name, [])
        owners = [_where(self.classes[name])] if name in self.classes else []
        owners += [entry.value for entry in offered if entry.value not in owners]
        if len(owners) > 1:
            others = " and ".join(owners[1:])
            said = f"the {self.kind} {name!r} is {owners[0]}; {others} offers the same name: ignored"
            warnings.warn(said, stacklevel=3)
        if name in self.classes:
            return self.classes[name]
        if offered:
            return self._loaded(name, offered[0])
        close = difflib.get_close_matches(name, self.names(), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"no {self.kind} is called {name!r}; known: {', '.join(self.names())}{hint}")

    def _loaded(self, name: str, entry: EntryPoint) -> type[Base]:
        try:
            loaded = entry.load()
        except Exception as error:  # whatever a package of somebody else's does while it is imported
            raise ValueError(
                f"the {self.kind} {name!r} cannot be used: its entry point {entry.value} fails with "
                f"{type(error).__name__}: {' '.join(str(error).split())}"
            ) from error
        if not (isinstance(loaded, type) and issubclass(loaded, self.base)):
            raise TypeError(f"the entry point {entry.value} offers {name!r}, which is not a {self.base.__name__} class")
        return loaded

    def _offered(self) -> dict[str, list[EntryPoint]]:
        """What other packages offer, by name; nothing is imported.

        A package may register the class its entry point names as well: that is one class, not two.
        """
        offered: dict[str, list[EntryPoint]] = {}
        for entry in sorted(_entry_points(self.group), key=lambda entry: entry.value):
            offered.setdefault(entry.name, []).append(entry)
        return offered


class View(Mapping[str, type[Base]]):
    """A registry to look at: names in alphabetical order, classes imported when asked for."""

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
    """Read once; what they point to is imported only when used."""
    return tuple(entry_points(group=group))


def _where(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"
