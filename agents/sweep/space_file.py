"""Parses space files (YAML) into a `Space`. docs/sweep.md explains every entry.

Errors are one line, `FILE: ENTRY: what is wrong`.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from agents import LEARNERS
from agents.common.arguments import kinds_of, read
from agents.common.plain_yaml import read_yaml_file
from agents.run.config import RECIPES, known_entries
from agents.sweep.space import KWARGS, Parameter, Space

_ENTRIES = (
    *("name", "recipe", "fixed", "space", "seeds", "trials"),
    *("objective", "direction", "sampler", "pruner", "reports"),
)
_SHAPES = "{low, high, log, step} or {choices}, either with {when}"
_NOT_FIXED = {"seed": "set seeds: [0, 1, 2]", "recipe": "name it beside fixed", "resume": "", "run_dir": ""}
_NOT_SEARCHED = {
    **_NOT_FIXED,
    "total_timesteps": "pruning compares trials after equal steps; put it under fixed",
    "eval_episodes": "put it under fixed",
    **dict.fromkeys(("device", "threads", "data_dir", "checkpoint_every", "panels_every", "baseline", "progress"), ""),
}


def find_space(name: str) -> Path:
    """The file of a space given by path, or by its name in recipes/sweeps/.

    Raises:
        ValueError: it does not exist; the message lists the known names.
    """
    for candidate in (Path(name), RECIPES / "sweeps" / f"{name}.yaml"):
        if candidate.is_file():
            return candidate
    known = ", ".join(sorted(file.stem for file in (RECIPES / "sweeps").glob("*.yaml")))
    raise ValueError(f"no space {name!r}; in {RECIPES / 'sweeps'} there are: {known}")


def load_space(name: str) -> Space:
    """A space file by path or name.

    Raises:
        ValueError: it is missing or not YAML, or an entry is unknown or wrong.
    """
    file = find_space(name)
    data = read_yaml_file(file, "space")
    if not isinstance(data, dict):
        raise ValueError(f"{file} is not a space: expected entries such as 'space: ...'")
    space = Space(file, str(data.get("name", file.stem)), ())
    for entry in data:
        if entry not in _ENTRIES:
            space.wrong(str(entry), f"unknown; known are {', '.join(_ENTRIES)}")
    if not re.fullmatch(r"[\w.-]+", space.name):
        space.wrong(
            "name", f"is {space.name!r}, expected letters, digits, '_', '-' and '.', because it is also a folder's name"
        )
    if not isinstance(data.get("space"), dict) or not data["space"]:
        space.wrong("space", "expected at least one NAME: {low: ..., high: ...} or NAME: {choices: [...]}")
    read: dict[str, Any] = {"parameters": ()}
    for parameter, body in data["space"].items():
        read["parameters"] += (_parameter(space, str(parameter), body, {p.name: p for p in read["parameters"]}),)
    read["fixed"] = _fixed(space, data.get("fixed", {}), {p.name for p in read["parameters"]})
    if data.get("recipe") is not None:
        read["recipe"] = str(data["recipe"])
    seeds = data.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        space.wrong("seeds", f"is {seeds}, expected a list of whole numbers such as [0, 1, 2]")
    if len(set(seeds)) < len(seeds):
        space.wrong("seeds", f"is {seeds}, expected each once")
    read["seeds"] = tuple(seeds)
    for entry in ("trials", "reports"):
        if entry in data and (type(data[entry]) is not int or data[entry] < 1):
            space.wrong(entry, f"is {data[entry]}, expected a whole number of at least 1")
    read |= {entry: data[entry] for entry in ("trials", "reports") if entry in data}
    read |= _objective(space, data)
    for entry in ("sampler", "pruner"):
        if entry in data:
            body = {"name": data[entry]} if not isinstance(data[entry], dict) else data[entry]
            if not isinstance(body.get("name"), str):
                space.wrong(entry, f"is {data[entry]}, expected a name, or {{name: ..., its options}}")
            read[entry] = body
    return dataclasses.replace(space, **read)


def _parameter(space: Space, name: str, body: Any, earlier: Mapping[str, Parameter]) -> Parameter:
    entry = f"space.{name}"
    part, dot, argument = name.partition(".")
    if (dot and (part not in KWARGS or not argument)) or (not dot and name not in known_entries()):
        searchable = [field for field in known_entries() if field not in (*_NOT_SEARCHED, *KWARGS)]
        known = ", ".join([*searchable, *(f"{kwargs}.NAME" for kwargs in KWARGS)])
        space.wrong(entry, f"unknown; known are {known}")
    if not dot and name in KWARGS:
        space.wrong(entry, f"name one argument, as in {name}.NAME")
    if name in _NOT_SEARCHED:
        space.wrong(entry, "cannot be searched" + f": {_NOT_SEARCHED[name]}" * bool(_NOT_SEARCHED[name]))
    body = {"choices": body} if isinstance(body, list) else body
    if not isinstance(body, dict):
        space.wrong(entry, f"is {body}, expected {_SHAPES}; constants go under fixed")
    for key in body:
        if key not in ("low", "high", "log", "step", "choices", "when"):
            space.wrong(f"{entry}.{key}", f"unknown; expected {_SHAPES}")
    when = _when(space, entry, body.get("when", {}), earlier)
    if "choices" in body:
        if extra := sorted(set(body) - {"choices", "when"}):
            space.wrong(entry, f"has choices, so {extra[0]} has no effect")
        return Parameter(name, choices=_choices(space, name, body["choices"]), when=when)
    for key in ("low", "high"):
        if key not in body:
            space.wrong(entry, f"{key} is missing; expected {_SHAPES}")
    for key in ("low", "high", "step"):
        if key in body and (isinstance(body[key], bool) or not isinstance(body[key], int | float)):
            space.wrong(f"{entry}.{key}", f"is {body[key]!r}, expected a number")
    low, high, log, step = body["low"], body["high"], body.get("log", False), body.get("step")
    whole = all(isinstance(number, int) for number in (low, high, *([] if step is None else [step])))
    kinds = [] if dot else [kind for kind in kinds_of(known_entries()[name]) if kind is not types.NoneType]
    if kinds and not {int, float} & set(kinds):
        space.wrong(entry, "is not a number; give choices")
    if kinds and float not in kinds and not whole:
        space.wrong(entry, f"is a whole number, but low, high and step are {low}, {high} and {step}")
    if not isinstance(log, bool):
        space.wrong(f"{entry}.log", f"is {log!r}, expected true or false")
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        space.wrong(entry, f"low is {low} and high is {high}, expected low <= high")
    if log and (low <= 0 or step is not None):
        space.wrong(entry, "log needs low above 0 and no step")
    if step is not None and not 0 < step <= max(high - low, step * (high == low)):
        space.wrong(f"{entry}.step", f"is {step}, expected a number above 0 and at most high - low")
    for key in ("low", "high") if not dot else ():
        _typed(space, f"{entry}.{key}", name, body[key])
    return Parameter(name, float if float in kinds or not whole else int, low, high, log, step, when=when)


def _when(space: Space, entry: str, body: Any, earlier: Mapping[str, Parameter]) -> dict[str, tuple[Any, ...]]:
    if not isinstance(body, dict):
        space.wrong(f"{entry}.when", f"is {body}, expected {{NAME: value or [values]}}")
    read = {}
    for name, values in body.items():
        if name not in earlier or not earlier[name].choices:
            space.wrong(f"{entry}.when.{name}", "expected an earlier parameter with choices")
        read[name] = tuple(values if isinstance(values, list) else [values])
        if unknown := [value for value in read[name] if value not in earlier[name].choices]:
            space.wrong(f"{entry}.when.{name}", f"{unknown[0]} is not one of its choices {list(earlier[name].choices)}")
    return read


def _choices(space: Space, name: str, values: Any) -> tuple[Any, ...]:
    if not isinstance(values, list) or not values:
        space.wrong(f"space.{name}.choices", f"is {values}, expected a list")
    for value in values:
        if value is not None and not isinstance(value, bool | int | float | str):
            space.wrong(f"space.{name}.choices", f"{value} is not a number, text, true, false or null")
    if "." not in name:
        values = [_typed(space, f"space.{name}.choices", name, value) for value in values]
    if len({(type(value), value) for value in values}) < len(values):
        space.wrong(f"space.{name}.choices", f"is {values}, expected each once")
    known = {"algo": tuple(LEARNERS)}.get(name)
    if known and (unknown := [value for value in values if value not in known]):
        space.wrong(f"space.{name}.choices", f"{unknown[0]} is unknown; known are {', '.join(known)}")
    return tuple(values)


def _fixed(space: Space, body: Any, searched: Collection[str]) -> dict[str, Any]:
    if not isinstance(body, dict):
        space.wrong("fixed", f"is {body}, expected entries as in a recipe")
    read = {}
    for name, value in body.items():
        entry = f"fixed.{name}"
        if name not in known_entries():
            space.wrong(entry, f"unknown; known are {', '.join(f for f in known_entries() if f not in _NOT_FIXED)}")
        if name in _NOT_FIXED:
            space.wrong(entry, "cannot be set in a sweep" + f": {_NOT_FIXED[name]}" * bool(_NOT_FIXED[name]))
        if name in KWARGS and not isinstance(value, dict):
            space.wrong(entry, f"is {value}, expected {{NAME: value}}")
        names = [f"{name}.{argument}" for argument in value] if name in KWARGS else [name]
        if both := [one for one in names if one in searched]:
            space.wrong(f"fixed.{both[0]}", "is also in the space")
        read[name] = value if name in KWARGS else _typed(space, entry, name, value)
    return read


def _objective(space: Space, data: Mapping[str, Any]) -> dict[str, str]:
    objective, direction = data.get("objective", "return"), data.get("direction")
    if objective != "return" and (not isinstance(objective, str) or "/" not in objective):
        known = "return, task/NAME or another column of progress.csv, as in docs/metrics.md"
        space.wrong("objective", f"is {objective}, expected {known}")
    if direction is None and objective in ("return", "rollout/ep_rew_mean"):
        direction = "maximize"
    if direction not in ("maximize", "minimize"):
        found = "missing" if direction is None else f"{direction}"
        space.wrong("direction", f"is {found}, expected maximize or minimize for {objective}")
    return {"objective": objective, "direction": direction}


def _typed(space: Space, entry: str, name: str, value: Any) -> Any:
    """The value of an entry of `Config`, converted to its type and checked."""
    try:
        return read(entry, value, known_entries()[name])
    except ValueError as error:
        raise ValueError(f"{space.file}: {error}") from error
