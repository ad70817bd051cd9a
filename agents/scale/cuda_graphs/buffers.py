"""Static buffers: what goes from one iteration to the next, always in the same tensors.

A graph reads and writes the tensors that were there when it was captured, whatever Python's names point to by then. So
everything that an iteration leaves for the next gets a buffer of its own. The iteration begins with the names pointing
to the buffers and makes new tensors, as it always does; at its end they are copied into the buffers, and the names
point there again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

Path = tuple[Any, ...]
Owners = Callable[[], Iterable[tuple[str, Any, Iterable[str]]]]
SCALARS = (int, float, bool, str, type(None))


class MovedError(RuntimeError):
    """Something is carried from one iteration to the next that was not seen to be."""


class Buffers:
    """Buffers of what is carried.

    Args:
        owners: gives a word, an object and those of its attributes that may hold what is carried: tensors, or lists,
            tuples and dictionaries of them.
    """

    def __init__(self, owners: Owners) -> None:
        self.owners = owners
        self.carried: set[Path] = set()
        """Where tensors were seen to take another's place in an iteration."""
        self.held: dict[Path, Tensor] = {}
        """The buffer of each."""
        self._fixed: dict[Path, Tensor] = {}
        self._before: dict[Path, Tensor] = {}

    def find(self) -> dict[Path, Tensor]:
        """Every tensor there is now, by its place: word, attribute, then keys."""
        found: dict[Path, Tensor] = {}
        for word, owner, names in self.owners():
            for name in names:
                found.update(_leaves(getattr(owner, name), (word, name)))
        return found

    def watch(self, before: Mapping[Path, Tensor]) -> bool:
        """Note what has taken another's place since `before` was found; whether that is news."""
        known = len(self.carried)
        self.carried |= {path for path, value in self.find().items() if value is not before.get(path)}
        return len(self.carried) > known

    @torch.no_grad()
    def enter(self) -> None:
        """Before an iteration: what is carried into the buffers, and the names to them.

        Raises:
            MovedError: something that is carried is gone, or has another shape; or what never was, has moved.
        """
        found = self.find()
        if moved := {path for path, value in self._fixed.items() if found.get(path) is not value} - self.carried:
            self.carried |= moved & set(found)
            self._fixed = {}
            raise MovedError(f"{', '.join(sorted(map(_name, moved)))} was put elsewhere")
        for path in self.carried:
            value, held = found.get(path), self.held.get(path)
            if value is None or (held is not None and (held.shape, held.dtype) != (value.shape, value.dtype)):
                raise MovedError(f"{_name(path)} is gone, or has another shape")
            if held is None:
                self.held[path] = value.detach().clone()
            elif held is not value:
                held.copy_(value)
        self.put(self.held)
        self._before = self.find()
        self._fixed = {path: value for path, value in self._before.items() if path not in self.held}

    @torch.no_grad()
    def leave(self) -> None:
        """After an iteration: what it left into the buffers, and the names to them.

        Raises:
            MovedError: something took another's place that has no buffer.
        """
        found = self.find()
        if new := {path for path, value in found.items() if value is not self._before.get(path)} - set(self.held):
            self.carried |= new
            raise MovedError(f"{', '.join(sorted(map(_name, new)))} changed for the first time")
        left = {path: found[path] for path in self.held if found[path] is not self.held[path]}
        buffers = {_memory(held) for held in self.held.values()}
        # what shares its memory with a buffer is saved before any buffer is written
        left = {path: value.clone() if _memory(value) in buffers else value for path, value in left.items()}
        for path, value in left.items():
            self.held[path].copy_(value)
        self.put(self.held)

    def put(self, tensors: Mapping[Path, Tensor]) -> None:
        """Let the names point to `tensors`."""
        for word, owner, names in self.owners():
            for name in names:
                value = getattr(owner, name)
                put = _replaced(value, (word, name), tensors)
                if put is not value:
                    setattr(owner, name, put)


def scalars(owner: Any, but: Iterable[str] = ()) -> dict[str, Any]:
    """The numbers, flags and words among an object's attributes: what Python decides by, and a graph does not see."""
    return {name: value for name, value in vars(owner).items() if type(value) in SCALARS and name not in but}


def places(value: Any) -> Any:
    """A tensor by where it is: what it holds may change, and the graph will see it."""
    if isinstance(value, tuple):
        return tuple(map(places, value))
    return ("at", value.data_ptr()) if isinstance(value, Tensor) else value


def hidden_tensors(owner: object) -> str | None:
    """The name of an attribute that holds tensors where `Buffers` does not look, if there is one."""
    for name, value in vars(owner).items():
        if isinstance(value, (Tensor, *SCALARS, dict, list, tuple)):
            continue
        inside = list(value) if isinstance(value, Iterable) and not hasattr(value, "__dict__") else None
        if any(True for _ in _leaves(getattr(value, "__dict__", inside), ())):
            return name
    return None


def _leaves(value: Any, path: Path) -> Iterator[tuple[Path, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, (dict, list, tuple)):
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(entry, (*path, key))


def _replaced(value: Any, path: Path, tensors: Mapping[Path, Tensor]) -> Any:
    """`value` with what `tensors` has for its places; itself where that changes nothing."""
    if isinstance(value, Tensor):
        return tensors.get(path, value)
    if not isinstance(value, (dict, list, tuple)):
        return value
    entries = dict(value) if isinstance(value, dict) else dict(enumerate(value))
    put = {key: _replaced(entry, (*path, key), tensors) for key, entry in entries.items()}
    if all(put[key] is entry for key, entry in entries.items()):
        return value
    if isinstance(value, dict):
        return put
    return type(value)(*put.values()) if hasattr(value, "_fields") else type(value)(put.values())


def _memory(value: Tensor) -> int:
    return value.untyped_storage().data_ptr()


def _name(path: Path) -> str:
    return ".".join(map(str, path))
