"""Type and range checks for values from flags, recipes, `config.yaml`, sweep files, checkpoints and constructors.

A type is a plain annotation, with a `Range` if not every number is valid: `Annotated[float, Range(0, 1)]`.
`read` converts a value to the type (`1e6` to an integer, `"1e-3"` to a float) or says what was expected.
"""

from __future__ import annotations

import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal

from policies.memories import memory_class


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`. With `above`, `low` itself is excluded."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    def holds(self, number: float) -> bool:
        """Whether `number` is in the range."""
        return self.low <= number <= self.high and not (self.above and number == self.low)

    def __str__(self) -> str:
        if self.above:
            return f"above {self.low:g}"
        return f"of at least {self.low:g}" if self.high == math.inf else f"from {self.low:g} to {self.high:.10g}"


Count = Annotated[int, Range(1)]
Whole = Annotated[int, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
NotNegative = Annotated[float, Range(0)]
Positive = Annotated[float, Range(0, above=True)]
Rate = Annotated[float, Range(0, 10)]
Seed = Annotated[int, Range(0, 2**32 - 1)]

POLICY: Mapping[str, Any] = {"memory": str, "memory_kwargs": dict[str, Any], "bptt_segment": Whole | None}
"""Policy arguments that a run's configuration may set."""

_NUMBER = re.compile(r"[+-]?(\d[\d_]*\.?\d*|\.\d+)([eE][+-]?\d+)?")
_WORDS = {**dict.fromkeys(("true", "yes", "on"), True), **dict.fromkeys(("false", "no", "off"), False)}
_SIZES = re.compile(r"(.*_)?(size|units|layers|heads|slots|capacity|channels|features)|num_.*|hops|passes|reads")
_WRONG: Any = object()


def read(name: str, value: Any, hint: Any) -> Any:
    """`value`, converted to the type `hint`.

    Raises:
        ValueError: it has another type or is out of range; the message has the form "NAME is VALUE, expected ...".
    """
    fitted = _fit(value, hint)
    if fitted is _WRONG:
        raise ValueError(f"{name} is {format_value(value)}, expected {describe_type(hint)}")
    return fitted


def read_typed(name: str, value: Any, hint: Any) -> Any:
    """As `read`, for a value from Python or JSON: a string is never converted to a number.

    Raises:
        ValueError: see `read`.
    """
    if isinstance(value, str) and str not in kinds_of(hint):
        raise ValueError(f"{name} is {value!r}, expected {describe_type(hint)}")
    return read(name, value, hint)


def check(hints: Mapping[str, Any], /, **values: Any) -> None:
    """Checks values by name against the types in `hints`.

    Raises:
        ValueError: a value has the wrong type or is out of its range.
    """
    for name, value in values.items():
        if name in hints:
            read_typed(name, value, hints[name])


def check_policy(policy_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Policy arguments, with those of the memory converted to their types and checked.

    Raises:
        ValueError: a value has the wrong type or is out of its range.
    """
    if not isinstance(policy_kwargs, (Mapping, types.NoneType)):
        raise ValueError(
            f"policy_kwargs is {format_value(policy_kwargs)}, expected a dictionary such as {{'memory': 'gru'}}"
        )
    checked = dict(policy_kwargs or {})
    _check_layers(checked.get("net_arch"))
    for name in ("activation_fn", "optimizer_class", "features_extractor_class"):
        if isinstance(checked.get(name), str):
            raise ValueError(f"{name} is {format_value(checked[name])}, expected a class such as torch.nn.ReLU")
    check(POLICY, **checked)
    if isinstance(checked.get("memory"), str) and checked.get("memory_kwargs"):
        kind, given = memory_class(checked["memory"]), checked["memory_kwargs"]
        checked["memory_kwargs"] = read_arguments(kind, given, "memory_kwargs", ("input_size", "queries"), sizes=True)
    return checked


def _check_layers(net_arch: Any) -> None:
    each = net_arch if isinstance(net_arch, Mapping) else {"pi": [] if net_arch is None else net_arch}
    wrong = [name for name in each if name not in ("pi", "vf")]
    wrong += [name for name, layers in each.items() if not isinstance(layers, (list, tuple))]
    widths = [] if wrong else [width for layers in each.values() for width in layers]
    if wrong or any(isinstance(width, str) or _fit(width, Count) is _WRONG for width in widths):
        raise ValueError(
            f"net_arch is {format_value(net_arch)}, expected a list of layer widths such as [64, 64], or such lists as "
            "pi and vf"
        )


def read_arguments(
    function: Callable[..., Any], given: Mapping[str, Any], name: str, excluded: Sequence[str] = (), sizes: bool = False
) -> dict[str, Any]:
    """Keyword arguments converted to the annotations of the callable that takes them. Annotations that are not
    understood are not checked.

    Args:
        function: a class or function.
        given: arguments by name. Unknown names are passed on; the callable refuses them.
        name: prefix of an argument's name in messages.
        excluded: arguments that are set elsewhere and must not appear here.
        sizes: require integers to be at least 0, and sizes and counts (recognised by name) at least 1.

    Raises:
        ValueError: an argument has the wrong type.
    """
    annotated = function.__init__ if isinstance(function, type) else function  # type: ignore[misc]
    try:
        hints = typing.get_type_hints(annotated, include_extras=True)
        known = inspect.signature(function).parameters
    except (NameError, TypeError, ValueError):  # annotations may use names that exist for type checkers only
        hints, known = {}, types.MappingProxyType({})
    fitted = dict(given)
    for argument, value in given.items():
        if argument in excluded:
            raise ValueError(f"{name}.{argument} cannot be given here: it has its own option")
        if argument not in known or argument not in hints:
            continue
        hint = hints[argument]
        if sizes and not {bool, float} & {*kinds_of(hint)}:
            hint = _at_least(hint, 1 if _SIZES.fullmatch(argument) else 0)
        fitted[argument] = read(f"{name}.{argument}", value, hint)
    return fitted


def kinds_of(hint: Any) -> tuple[Any, ...]:
    """The types that `hint` allows, without metadata."""
    if typing.get_origin(hint) is Annotated:
        return kinds_of(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(kind for part in typing.get_args(hint) for kind in kinds_of(part))
    return (hint,)


def format_value(value: Any) -> str:
    """A value as written in a YAML file, on one line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."


def format_setting(value: Any) -> str:
    """A value of a configuration for tables and messages: as in YAML, numbers shortened."""
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if isinstance(value, (str, Path)) else format_value(value)


def describe_type(hint: Any) -> str:
    """Describes the values of a type in words."""
    if typing.get_origin(hint) is Annotated:
        kind, *marks = typing.get_args(hint)
        return " ".join([describe_type(kind), *(str(mark) for mark in marks if isinstance(mark, Range))])
    if typing.get_origin(hint) is Literal:
        *first, last = map(str, typing.get_args(hint))
        return f"{', '.join(first)} or {last}" if first else last
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(describe_type(part) for part in typing.get_args(hint))
    kind = typing.get_origin(hint) or hint
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    words |= {types.NoneType: "null", dict: "NAME: VALUE entries"}
    if kind in words:
        return words[kind]
    if isinstance(kind, type) and issubclass(kind, (Sequence, list, tuple)):
        inner = [part for part in typing.get_args(hint) if part is not ...]
        if not inner:
            return "a list"
        kind, *marks = typing.get_args(inner[0]) if typing.get_origin(inner[0]) is Annotated else inner[:1]
        each = "".join(f", each {mark}" for mark in marks if isinstance(mark, Range))
        return f"a list of {describe_type(kind).removeprefix('a ')}s{each}"
    return getattr(kind, "__name__", str(kind))


def _fit(value: Any, hint: Any) -> Any:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        fitted = _fit(value, parts[0])
        numeric = isinstance(fitted, Real) and not isinstance(fitted, bool)
        if numeric and not all(mark.holds(fitted) for mark in parts[1:] if isinstance(mark, Range)):
            return _WRONG
        return fitted
    if origin in (typing.Union, types.UnionType):
        fits = [_fit(value, part) for part in parts]
        right = [fitted for fitted in fits if fitted is not _WRONG]
        same = [fitted for fitted in right if type(fitted) is type(value)]  # 3 of int | str stays 3
        return (same or right or [_WRONG])[0]
    if origin is Literal:
        return value if any(value == part and type(value) is type(part) for part in parts) else _WRONG
    if hint is types.NoneType:
        return value if value is None else _WRONG
    return _FITS.get(origin or hint, lambda value, parts: value)(value, parts)


def _bool(value: Any, parts: Any) -> Any:
    return value if isinstance(value, bool) else _WORDS.get(value.lower(), _WRONG) if isinstance(value, str) else _WRONG


def _number(value: Any, parts: Any) -> Any:
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value) if re.search(r"[.eE]", value) else int(value[:400])
    if isinstance(value, bool) or not isinstance(value, Real):
        return _WRONG
    try:
        return float(value) if math.isfinite(value) else _WRONG
    except OverflowError:
        return _WRONG


def _int(value: Any, parts: Any) -> Any:
    if isinstance(value, bool):
        return _WRONG
    whole: Any = value
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d[\d_]{0,30}", value):
        whole = int(value)
    elif not isinstance(value, Integral):
        whole = _number(value, parts)
        if whole is _WRONG or whole != int(whole):
            return _WRONG
    return int(whole) if abs(int(whole)) < 2**63 else _WRONG  # the range of int64


def _str(value: Any, parts: Any) -> Any:
    return value if isinstance(value, str) else _WRONG


def _path(value: Any, parts: Any) -> Any:
    return Path(value) if isinstance(value, (str, Path)) and str(value) and "\0" not in str(value) else _WRONG


def _mapping(value: Any, parts: Any) -> Any:
    if value is None:  # `env_kwargs:` with nothing after it
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        return _WRONG
    fitted = {key: _fit(entry, parts[1]) if parts else entry for key, entry in value.items()}
    return _WRONG if any(entry is _WRONG for entry in fitted.values()) else fitted


def _sequence(value: Any, parts: Any) -> Any:
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        return _WRONG
    fixed = parts and ... not in parts and len(parts) > 1
    if fixed and len(parts) != len(value):
        return _WRONG
    kinds = parts if fixed else [parts[0] if parts else Any] * len(value)
    fitted = [_fit(entry, kind) for entry, kind in zip(value, kinds, strict=True)]
    return _WRONG if any(entry is _WRONG for entry in fitted) else tuple(fitted) if isinstance(value, tuple) else fitted


_FITS: dict[Any, Callable[[Any, Any], Any]] = {
    **{bool: _bool, int: _int, float: _number, str: _str, Path: _path},
    **{dict: _mapping, list: _sequence, tuple: _sequence, Sequence: _sequence},
}


def _at_least(hint: Any, low: int) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.Union[tuple(_at_least(part, low) for part in typing.get_args(hint))]  # noqa: UP007
    if typing.get_origin(hint) is Sequence and typing.get_args(hint) == (int,):
        return Sequence[Annotated[int, Range(low)]]
    return Annotated[int, Range(low)] if hint is int else hint
