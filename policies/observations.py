"""Converts observations of any Gymnasium space to flat float tensors in a fixed order.

- `Layout`: converts an environment's observations (nested `Dict` and `Tuple`, text, images with channels last) to a
  `Box`, `Discrete`, `MultiDiscrete`, `MultiBinary` or a flat `Dict` of them, the spaces of agents.
- `arrays_of`, `tensors_of`: the same for the input of `predict`.
- `preparation`: a function that converts these to floats, as Stable-Baselines3's `preprocess_obs`.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from torch import Tensor
from torch.nn import functional as F

from policies.text import WIDTH, is_text, text_features, text_rows

Array = np.ndarray[Any, np.dtype[Any]]
Obs = Tensor | dict[str, Tensor]

MAX_SYMBOL_SIDE = 16
"""Images with at most this many pixels per side are read as grids of symbols."""
AGENT_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
MAX_CHOICES = 1 << 20
"""Maximum number of values of a `Discrete` or `MultiDiscrete` space, which networks see one-hot."""


class Layout:
    """The mapping from an environment's observation to a flat one.

    Entries of nested `Dict`s and `Tuple`s get dotted names (`hand.left`, `0`). Images get channels first. Text becomes
    numbers (`policies.text`). Empty entries are left out, with a warning.

    Args:
        space: of one environment's observation.

    Raises:
        ValueError: an entry has no fixed size, two entries have the same name, or no entry is left.
    """

    space: spaces.Space[Any]
    """The flat space, in the order of the environment's."""

    def __init__(self, space: spaces.Space[Any]) -> None:
        entries: list[tuple[str, tuple[Any, ...], spaces.Space[Any]]] = []
        empty: list[str] = []
        self.texts: set[str] = set()
        for path, entry in _leaves(space, ()):
            name = _name(path)
            if _is_text_space(entry):
                self.texts.add(name)
                entry = spaces.Box(-np.inf, np.inf, (WIDTH,), np.float32)
            if not isinstance(entry, AGENT_SPACES):
                raise ValueError(
                    f"{_place(name)} is {short(entry)}, which has no fixed size; expected Box, Discrete, "
                    "MultiDiscrete, MultiBinary, or a Dict or Tuple of them: leave it out with "
                    "gymnasium.wrappers.FilterObservation or rewrite it with gymnasium.wrappers.TransformObservation"
                )
            if too_many_choices(entry):
                raise ValueError(
                    f"{_place(name)} is {short(entry)}, whose one-hot encoding has more than {MAX_CHOICES:,} numbers: "
                    "rewrite it with gymnasium.wrappers.TransformObservation, for example as its digits in a "
                    "MultiDiscrete"
                )
            if isinstance(entry, spaces.Box) and 0 in entry.shape:
                empty.append(f"{_place(name)} ({type(entry).__name__})")
            else:
                entries.append((name, path, entry))
        names = [name for name, _, _ in entries]
        if duplicates := {name for name in names if names.count(name) > 1}:
            name = duplicates.pop()
            raise ValueError(f"two entries of the observation are called {name!r} when flattened: rename one")
        if not entries:
            raise ValueError(f"the observation space {short(space)} is empty; expected at least one number")
        warn_once(*(f"{entry} is left out: no encoder reads it" for entry in empty))
        self.paths = {name: path for name, path, _ in entries}
        self.transposed = {name for name, _, entry in entries if has_channels_last(entry)}
        flat = [(name, _channels_first(entry) if name in self.transposed else entry) for name, _, entry in entries]
        self.is_dict = isinstance(space, (spaces.Dict, spaces.Tuple))
        self.space = spaces.Dict(flat) if self.is_dict else flat[0][1]

    def read(self, obs: Any) -> Array | dict[str, Array]:
        """The arrays `[N, ...]` of a batch; no copies."""
        if not self.is_dict:
            return self._array("", obs)
        return {name: self._array(name, _at(obs, path)) for name, path in self.paths.items()}

    def _array(self, name: str, value: Any) -> Array:
        if name in self.texts:
            return text_rows(value)
        array = np.asarray(value)
        return np.moveaxis(array, -1, 1) if name in self.transposed else array


def arrays_of(observation: Any, space: spaces.Space[Any]) -> tuple[Array | dict[str, Array], bool]:
    """The input of `predict` as a batch, and whether it already was a batch.

    Args:
        observation: of one environment or several; nested or flat; a `Dict`'s entries in any order, possibly with extra
            ones; images with channels first or last.
        space: the agent's.

    Raises:
        ValueError: an entry is missing or of another shape.
    """
    if not isinstance(space, spaces.Dict):
        return _batch(observation, space, "")
    if not isinstance(observation, (Mapping, tuple)):
        kind = type(observation).__name__
        raise ValueError(f"the observation is of {kind}, expected a dictionary with the entries {', '.join(space)}")
    if isinstance(observation, Mapping) and all(name in observation for name in space):
        values: Mapping[Any, Any] = observation
    else:
        values = {_name(path): value for path, value in _nodes(observation, ())}
    if missing := [name for name in space if name not in values]:
        _check_not_a_result(observation)
        raise ValueError(f"{_place(missing[0])} is missing: expected {', '.join(space)}; found {', '.join(values)}")
    batches = {name: _batch(values[name], entry, name) for name, entry in space.items()}
    if len({vectorized for _, vectorized in batches.values()}) > 1:
        raise ValueError("some entries of the observation are of one environment, others of several")
    return {name: array for name, (array, _) in batches.items()}, all(many for _, many in batches.values())


def tensors_of(observation: Any, space: spaces.Space[Any], device: torch.device) -> tuple[Obs, bool]:
    """`arrays_of` on a device.

    Raises:
        ValueError: as `arrays_of`.
    """
    arrays, vectorized = arrays_of(observation, space)
    if isinstance(arrays, dict):
        return {name: torch.as_tensor(array, device=device) for name, array in arrays.items()}, vectorized
    return torch.as_tensor(arrays, device=device), vectorized


def entries_of(space: spaces.Space[Any]) -> dict[str, spaces.Space[Any]]:
    """The entries of a flat `Dict` by name; any other space is its only entry, with the name ""."""
    return dict(space.spaces) if isinstance(space, spaces.Dict) else {"": space}


def obs_entries(obs: Obs) -> dict[str, Tensor]:
    """The entries of a batch of observations, named as by `entries_of`."""
    return obs if isinstance(obs, dict) else {"": obs}


def batch_size_of(obs: Obs) -> int:
    """Number of observations in a batch."""
    return len(next(iter(obs_entries(obs).values())))


def any_observation(space: spaces.Space[Any], batch: int, device: torch.device | None = None) -> Obs:
    """A valid observation of a flat space, `[batch, ...]`: 0, or the valid value nearest to it."""

    def nearest(space: spaces.Space[Any]) -> Tensor:
        value: Any = np.zeros(space.shape or (), space.dtype)
        if isinstance(space, spaces.Box):
            value = np.clip(value, space.low, space.high)
        elif isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
            value = value + space.start
        return torch.as_tensor(value, device=device).expand(batch, *value.shape)

    if isinstance(space, spaces.Dict):
        return {name: nearest(entry) for name, entry in space.spaces.items()}
    return nearest(space)


def preparation(space: spaces.Space[Any], normalize_images: bool, keep_symbols: bool) -> Callable[[Any], Any]:
    """A function from observations `[B, ...]` to floats: choices one-hot, images divided by 255, single numbers as
    `[B, 1]`. It can be copied and pickled.

    Args:
        space: of one observation, flat.
        normalize_images: divide images by 255.
        keep_symbols: do not divide small images, because the encoder reads their values as symbols.
    """
    if isinstance(space, spaces.Dict):
        return _Entries({name: preparation(entry, normalize_images, keep_symbols) for name, entry in space.items()})
    if isinstance(space, spaces.Discrete):
        return _OneHot([int(space.n)], [int(space.start)])
    if isinstance(space, spaces.MultiDiscrete):
        return _OneHot(space.nvec.ravel().tolist(), space.start.ravel().tolist())
    divide = normalize_images and is_image_space(space) and not (keep_symbols and is_symbols(space))
    return _picture if divide else _number if space.shape == () else Tensor.float


class _Entries:
    """The entries of a `Dict`, in the order of the space."""

    def __init__(self, preparations: dict[str, Callable[[Tensor], Tensor]]) -> None:
        self.preparations = preparations

    def __call__(self, obs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: prepare(obs[name]) for name, prepare in self.preparations.items()}


class _OneHot:
    """Choices as concatenated one-hot vectors."""

    def __init__(self, counts: list[int], first: list[int]) -> None:
        self.counts, self.first = counts, first

    def __call__(self, obs: Tensor) -> Tensor:
        parts = obs.reshape(obs.shape[0], -1).long().unbind(1)
        hot = [
            F.one_hot(part - first if first else part, count)
            for part, count, first in zip(parts, self.counts, self.first, strict=True)
        ]
        return (hot[0] if len(hot) == 1 else torch.cat(hot, 1)).float()


def _picture(obs: Tensor) -> Tensor:
    return obs.float() / 255.0


def _number(obs: Tensor) -> Tensor:
    return obs.float().unsqueeze(1)


def is_symbols(space: spaces.Space[Any]) -> bool:
    """Whether an image is small enough for its values to be read as symbols, as in MiniGrid (0..10)."""
    return is_image_space(space) and max(space.shape[1:]) <= MAX_SYMBOL_SIDE  # type: ignore[index]


def has_channels_last(space: spaces.Space[Any]) -> bool:
    """Whether an image is `[H, W, C]`.

    A size of 1, 3 or 4 is taken as the channels; otherwise the size that differs from two equal ones; otherwise the
    smallest.
    """
    if not is_image_space(space):
        return False
    first, second, last = space.shape  # type: ignore[misc]
    if first == second == last:
        return False  # both readings have the same shape
    if (last in (1, 3, 4)) != (first in (1, 3, 4)):
        return last in (1, 3, 4)
    if (first == second) != (second == last):
        return bool(first == second)
    return bool(last < first)


def _channels_first(space: spaces.Space[Any]) -> spaces.Box:
    height, width, channels = space.shape  # type: ignore[misc]
    return spaces.Box(0, 255, (channels, height, width), np.uint8)


def width_of(space: spaces.Space[Any]) -> int:
    """Number of values of a prepared observation, or of one entry."""
    if isinstance(space, spaces.MultiDiscrete):
        return int(space.nvec.sum())
    return int(spaces.utils.flatdim(space))


def too_many_choices(space: spaces.Space[Any]) -> bool:
    """Whether a space has more than `MAX_CHOICES` discrete choices."""
    return isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)) and width_of(space) > MAX_CHOICES


def _leaves(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """The leaves of a nested space, with their key paths."""
    if isinstance(value, (Mapping, spaces.Dict)):
        for key in value:
            yield from _leaves(value[key], (*path, key))
    elif isinstance(value, (tuple, spaces.Tuple)):
        for index, entry in enumerate(value):
            yield from _leaves(entry, (*path, index))
    else:
        yield path, value


def _nodes(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """The leaves of an observation with their key paths; tuples too, since text of several environments is a tuple."""
    if not isinstance(value, Mapping) and (path or not isinstance(value, tuple)):
        yield path, value
    if isinstance(value, (Mapping, tuple)):
        for key in value if isinstance(value, Mapping) else range(len(value)):
            yield from _nodes(value[key], (*path, key))


def _name(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))


def _at(obs: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        obs = obs[key]
    return obs


def _place(name: str) -> str:
    return f"the observation's entry {name!r}" if name else "the observation"


def short(space: spaces.Space[Any]) -> str:
    """A space as one line of text."""
    words = " ".join(str(space).split())
    return words if len(words) <= 100 else f"{words[:99]}…"


_warned: set[str] = set()


def warn_once(*lines: str) -> None:
    for line in lines:
        if line not in _warned:
            _warned.add(line)
            warnings.warn(line, stacklevel=3)


def _is_text_space(space: spaces.Space[Any]) -> bool:
    if isinstance(space, spaces.Text):
        return True
    if type(space).__module__.startswith("gymnasium."):
        return False
    try:  # MiniGrid's missions have their own space class
        return isinstance(copy.deepcopy(space).sample(), str)
    except Exception:  # third-party code: if it raises, it is not text
        return False


def _in_range(array: Array, name: str, space: spaces.Space[Any], least: Any, most: Any) -> None:
    """Checks that numbers are integers in `least` ... `most`; the error of one-hot encoding would not name the entry.

    Raises:
        ValueError: a value is outside, fractional or not a number.
    """
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{_place(name)} is of {array.dtype}, expected numbers")
    wrong = (array < least) | (array > most) | (array != np.floor(array))
    if wrong.any():
        raise ValueError(f"{_place(name)} contains {array[wrong].flat[0]}, which is not in {short(space)}")


def _check_not_a_result(value: Any) -> None:
    if isinstance(value, tuple) and len(value) in (2, 5) and isinstance(value[-1], Mapping):
        raise ValueError(
            "the observation is a tuple that ends with a dictionary, as reset and step return it; expected its first "
            "part: observation, info = env.reset()"
        )


def _batch(value: Any, space: spaces.Space[Any], name: str) -> tuple[Array, bool]:
    _check_not_a_result(value)
    if space.shape == (WIDTH,) and is_text(value):
        value = text_features(value) if isinstance(value, str) else text_rows(np.ravel(value))
    array, shape = np.asarray(value), space.shape or ()
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise ValueError(f"{_place(name)} contains NaN")
    if isinstance(space, spaces.Discrete):
        _in_range(array, name, space, space.start, space.start + space.n - 1)
    elif isinstance(space, spaces.MultiDiscrete) and array.shape[-len(shape) :] == shape:
        _in_range(array, name, space, space.start, space.start + space.nvec - 1)
    if array.shape == shape:
        return array[None], False
    if array.shape[1:] == shape:
        return array, True
    if is_image_space(space) and array.ndim in (3, 4):
        channels_first = np.moveaxis(array, -1, -3)
        if channels_first.shape[-3:] == shape:
            return channels_first.reshape(-1, *shape), array.ndim == 4
    kind = f"{shape} or a text" if shape == (WIDTH,) else f"{shape}"
    raise ValueError(f"{_place(name)} has shape {array.shape}; expected {kind}, or several of them")
