"""Static buffers for the tensors carried from one iteration to the next.

A CUDA graph reads and writes the tensors that existed when it was captured, whatever Python attributes refer to later.
So every carried tensor gets a buffer. An iteration starts with the attributes referring to the buffers and creates new
tensors as usual. At its end these are copied into the buffers, and the attributes refer to the buffers again.
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
    """A tensor is carried across iterations but was not tracked."""


class Buffers:
    """Buffers of the carried tensors.

    Args:
        owners: yields a name, an object, and its attributes that may hold carried tensors, or lists, tuples and
            dictionaries of them.
    """

    def __init__(self, owners: Owners) -> None:
        self.owners = owners
        self.carried: set[Path] = set()
        """Places at which an iteration replaced a tensor."""
        self.buffers: dict[Path, Tensor] = {}
        """The buffer of each place."""
        self._fixed: dict[Path, Tensor] = {}
        self._before: dict[Path, Tensor] = {}

    def find(self) -> dict[Path, Tensor]:
        """Every current tensor by its place: name, attribute, then keys."""
        found: dict[Path, Tensor] = {}
        for word, owner, names in self.owners():
            for name in names:
                found.update(_leaves(getattr(owner, name), (word, name)))
        return found

    def watch(self, before: Mapping[Path, Tensor]) -> bool:
        """Notes the places whose tensors were replaced since `before`; returns whether any is new."""
        known = len(self.carried)
        self.carried |= {path for path, value in self.find().items() if value is not before.get(path)}
        return len(self.carried) > known

    @torch.no_grad()
    def enter(self) -> None:
        """Before an iteration: copies carried tensors into the buffers and makes the attributes refer to them.

        Raises:
            MovedError: a carried tensor is missing or has another shape, or an untracked one was replaced.
        """
        found = self.find()
        if moved := {path for path, value in self._fixed.items() if found.get(path) is not value} - self.carried:
            self.carried |= moved & set(found)
            self._fixed = {}
            raise MovedError(f"{', '.join(sorted(map(_name, moved)))} moved to another address")
        for path in self.carried:
            value, buffer = found.get(path), self.buffers.get(path)
            if value is None or (buffer is not None and (buffer.shape, buffer.dtype) != (value.shape, value.dtype)):
                raise MovedError(f"{_name(path)} is gone, or has another shape")
            if buffer is None:
                self.buffers[path] = value.detach().clone()
            elif buffer is not value:
                buffer.copy_(value)
        self.set_attributes(self.buffers)
        self._before = self.find()
        self._fixed = {path: value for path, value in self._before.items() if path not in self.buffers}

    @torch.no_grad()
    def leave(self) -> None:
        """After an iteration: copies its results into the buffers and makes the attributes refer to them.

        Raises:
            MovedError: a tensor without a buffer was replaced.
        """
        found = self.find()
        if new := {path for path, value in found.items() if value is not self._before.get(path)} - set(self.buffers):
            self.carried |= new
            raise MovedError(f"{', '.join(sorted(map(_name, new)))} changed for the first time")
        left = {path: found[path] for path in self.buffers if found[path] is not self.buffers[path]}
        buffers = {_memory(held) for held in self.buffers.values()}
        # what shares its memory with a buffer is saved before any buffer is written
        left = {path: value.clone() if _memory(value) in buffers else value for path, value in left.items()}
        for path, value in left.items():
            self.buffers[path].copy_(value)
        self.set_attributes(self.buffers)

    def set_attributes(self, tensors: Mapping[Path, Tensor]) -> None:
        """Makes the attributes refer to `tensors`."""
        for word, owner, names in self.owners():
            for name in names:
                value = getattr(owner, name)
                put = _replaced(value, (word, name), tensors)
                if put is not value:
                    setattr(owner, name, put)


def scalars(owner: Any, exclude: Iterable[str] = ()) -> dict[str, Any]:
    """The numbers, flags and strings among an object's attributes. Python branches on them, and a graph does not see
    them."""
    return {name: value for name, value in vars(owner).items() if type(value) in SCALARS and name not in exclude}


def identity_of(value: Any) -> Any:
    """Identifies a tensor by its address; the graph sees changes of its content."""
    if isinstance(value, tuple):
        return tuple(map(identity_of, value))
    return ("at", value.data_ptr()) if isinstance(value, Tensor) else value


def hidden_tensors(owner: object) -> str | None:
    """The name of an attribute that holds tensors where `Buffers` does not look, or None."""
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
    """`value` with its tensors replaced by those in `tensors`; `value` itself if nothing changes."""
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
