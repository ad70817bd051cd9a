"""Parses space files (YAML) into a `Space`. docs/sweep.md explains every entry.

Errors are one line, `FILE: ENTRY is ..., expected ...`.
"""

from __future__ import annotations

import dataclasses
import re
import types
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from agents.common.arguments import Count, Whole, kinds_of, read
from agents.common.plain_yaml import read_yaml_file
from agents.environments import import_modules
from agents.run.config import known_entries
from agents.run.recipes import RECIPES
from agents.sweep.space import KWARGS, Parameter, Space

_ENTRIES: dict[str, Any] = {
    "name": str,
    "recipe": str | None,
    "fixed": dict,
    "space": dict,
    "seeds": list[Whole],
    "trials": Count,
    "objective": str,
    "direction": Literal["maximize", "minimize"],
    "sampler": str | dict,
    "pruner": str | dict,
    "reports": Count,
}
_RANGE: dict[str, Any] = {"low": int | float, "high": int | float, "log": bool, "step": int | float, "when": dict}
_CHOICES: dict[str, Any] = {"choices": list[bool | int | float | str | None], "when": dict}
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
    given = _read(file, "", data, _ENTRIES)
    space = Space(file, given.pop("name", file.stem), ())
    if not re.fullmatch(r"[\w.-]+", space.name):
        space.wrong(
            "name", f"is {space.name!r}, expected letters, digits, '_', '-' and '.': it is also a folder's name"
        )
    try:
        import_modules(given.get("fixed", {}).get("imports", []))  # they may register what is searched
    except ValueError as error:
        space.wrong("fixed", str(error))
    bodies = given.pop("space", {})
    if not bodies:
        space.wrong("space", "expected at least one NAME: {low: ..., high: ...} or NAME: {choices: [...]}")
    parameters: dict[str, Parameter] = {}
    for parameter, body in bodies.items():
        parameters[parameter] = _parameter(space, parameter, body, parameters)
    given["parameters"] = tuple(parameters.values())
    given["fixed"] = _fixed(space, given.get("fixed", {}), parameters)
    given["seeds"] = tuple(given.get("seeds", [0]))
    if not given["seeds"] or len(set(given["seeds"])) < len(given["seeds"]):
        space.wrong("seeds", f"is {[*given['seeds']]}, expected at least one, and each once")
    objective = given.get("objective", "return")
    if objective != "return" and "/" not in objective:
        known = "return, task/NAME or another column of progress.csv, as in docs/metrics.md"
        space.wrong("objective", f"is {objective}, expected {known}")
    if "direction" not in given and objective not in ("return", "rollout/ep_rew_mean"):
        space.wrong("direction", f"is missing, expected maximize or minimize for {objective}")
    for entry in {"sampler", "pruner"} & {*given}:
        if isinstance(given[entry], str):
            given[entry] = {"name": given[entry]}
        if not isinstance(given[entry].get("name"), str):
            space.wrong(entry, f"is {given[entry]}, expected a name, or {{name: ..., its options}}")
    return dataclasses.replace(space, **given)


def _read(file: Path, prefix: str, data: Mapping[str, Any], hints: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of `data` converted to their types.

    Raises:
        ValueError: one is unknown, or has another type.
    """
    for entry in data:
        if entry not in hints:
            raise ValueError(f"{file}: {prefix}{entry}: unknown; known are {', '.join(hints)}")
    return {entry: read(f"{file}: {prefix}{entry}", value, hints[entry]) for entry, value in data.items()}


def _parameter(space: Space, name: str, body: Any, earlier: Mapping[str, Parameter]) -> Parameter:
    entry, types_of = f"space.{name}", known_entries()
    part, dot, argument = name.partition(".")
    if name in KWARGS:
        space.wrong(entry, f"name one argument, as in {name}.NAME")
    if (part not in KWARGS or not argument) if dot else name not in types_of:
        searchable = [known for known in types_of if known not in (*_NOT_SEARCHED, *KWARGS)]
        known = ", ".join([*searchable, *(f"{kwargs}.NAME" for kwargs in KWARGS)])
        space.wrong(entry, f"unknown; known are {known}")
    if name in _NOT_SEARCHED:
        space.wrong(entry, f"cannot be searched: {_NOT_SEARCHED[name]}".removesuffix(": "))
    body = {"choices": body} if isinstance(body, list) else body
    if not isinstance(body, dict):
        space.wrong(entry, f"is {body}, expected {_SHAPES}; constants go under fixed")
    given = _read(space.file, f"{entry}.", body, _CHOICES if "choices" in body else _RANGE)
    when = _when(space, entry, given.get("when", {}), earlier)
    hint = Any if dot else types_of[name]
    if "choices" in given:
        choices = tuple(read(f"{space.file}: {entry}.choices", value, hint) for value in given["choices"])
        if not choices or len({(type(value), value) for value in choices}) < len(choices):
            space.wrong(f"{entry}.choices", f"is {given['choices']}, expected at least one, and each once")
        return Parameter(name, choices=choices, when=when)
    for key in ("low", "high"):
        if key not in given:
            space.wrong(entry, f"{key} is missing; expected {_SHAPES}")
    low, high, log, step = given["low"], given["high"], given.get("log", False), given.get("step")
    whole = all(isinstance(number, int) for number in (low, high, step or 1))
    kinds = {*kinds_of(hint)} - {types.NoneType, Any}
    if kinds and not {int, float} & kinds:
        space.wrong(entry, "is not a number; give choices")
    if kinds and float not in kinds and not whole:
        space.wrong(entry, f"is a whole number, but low, high and step are {low}, {high} and {step}")
    if low > high:
        space.wrong(entry, f"low is {low} and high is {high}, expected low <= high")
    if log and (low <= 0 or step is not None):
        space.wrong(entry, "log needs low above 0 and no step")
    if step is not None and not 0 < step <= max(high - low, step * (high == low)):
        space.wrong(f"{entry}.step", f"is {step}, expected a number above 0 and at most high - low")
    for key in ("low", "high"):
        read(f"{space.file}: {entry}.{key}", given[key], hint)
    return Parameter(name, float if float in kinds or not whole else int, low, high, log, step, when=when)


def _when(space: Space, entry: str, body: Mapping[str, Any], earlier: Mapping[str, Parameter]) -> dict[str, Any]:
    conditions = {}
    for name, values in body.items():
        if name not in earlier or not earlier[name].choices:
            space.wrong(f"{entry}.when.{name}", "expected an earlier parameter with choices")
        conditions[name] = tuple(values if isinstance(values, list) else [values])
        if unknown := [value for value in conditions[name] if value not in earlier[name].choices]:
            space.wrong(f"{entry}.when.{name}", f"{unknown[0]} is not one of its choices {list(earlier[name].choices)}")
    return conditions


def _fixed(space: Space, body: Mapping[str, Any], searched: Collection[str]) -> dict[str, Any]:
    for name in body:
        if name in _NOT_FIXED:
            space.wrong(f"fixed.{name}", f"cannot be set in a sweep: {_NOT_FIXED[name]}".removesuffix(": "))
    hints = {name: hint for name, hint in known_entries().items() if name not in _NOT_FIXED}
    fixed = _read(space.file, "fixed.", body, hints)
    for name in [*fixed, *(f"{part}.{argument}" for part in KWARGS for argument in fixed.get(part, {}))]:
        if name in searched:
            space.wrong(f"fixed.{name}", "is also in the space")
    return fixed
