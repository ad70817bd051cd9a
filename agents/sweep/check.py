"""Validates a space: arguments of memories and environments, effects, objectives."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

from agents import learner_class
from agents.environments import HostEnv
from agents.hyperparameters import hints_of
from agents.run.config import Config, known_entries, run_entries
from agents.sweep.space import Parameter, Space
from policies.memories import memory_class

_Arguments = Mapping[str, inspect.Parameter]


def check(space: Space, config: Config, flags: list[str]) -> Space:
    """Validates a space, and converts integer ranges to float ranges for float arguments.

    Args:
        space: as read from its file.
        config: the configuration shared by all trials.
        flags: the arguments of the command line.

    Raises:
        ValueError: a parameter is also given as a flag, is not an argument of its part, or has no effect there; or the
            environment has no such objective. One line that names the entry.
    """
    named = {word.split("=")[0].removeprefix("--").replace("-", "_") for word in flags if word.startswith("--")}
    for name in sorted(named):
        if name in space:
            space.wrong(f"space.{name}", f"is searched, but the command line also has --{name.replace('_', '-')}")
        if name in ("seed", "no_seed"):
            space.wrong("seeds", "the command line has --seed, but the seeds of a sweep are set in its file")
    values = {part: _values(space, config, part) for part in ("memory", "env", "algo")}
    arguments: dict[str, dict[Any, _Arguments | None]] = {"memory": {}, "env": {}}
    for memory in values["memory"]:
        try:
            arguments["memory"][memory] = _arguments(memory_class(memory), "input_size", "queries")
        except ValueError as error:
            _blame(space, "memory", error)
    scores = set()
    for env_id in values["env"]:
        try:
            env = dataclasses.replace(config, env=env_id).make_env(1)
        except ValueError as error:
            _blame(space, "env", error)
        adapted = isinstance(env, HostEnv)  # arguments of third-party environments are not checked
        arguments["env"][env_id] = None if adapted else _arguments(type(env), "num_envs", "device")
        scores |= set(env.metric_names)
        env.close()
    _check_fixed(space, config, arguments)
    _check_objective(space, scores)
    for parameter in space.parameters:
        _check_effect(space, parameter, values["algo"])
    return dataclasses.replace(space, parameters=tuple(_typed(space, one, arguments) for one in space.parameters))


def _values(space: Space, config: Config, name: str) -> list[Any]:
    for parameter in space.parameters:
        if parameter.name == name:
            return list(parameter.choices)
    return [getattr(config, name)]


def _blame(space: Space, part: str, error: ValueError) -> None:
    if part in space:
        space.wrong(f"space.{part}", str(error))
    raise error


def _arguments(part: Any, *ours: str) -> _Arguments | None:
    """The arguments of a class that a user may set; None: any."""
    found = inspect.signature(part).parameters
    if any(argument.kind is inspect.Parameter.VAR_KEYWORD for argument in found.values()):
        return None
    return {name: argument for name, argument in found.items() if name not in ours}


def _check_fixed(space: Space, config: Config, arguments: Mapping[str, Mapping[Any, _Arguments | None]]) -> None:
    for part, known in arguments.items():
        for name in getattr(config, f"{part}_kwargs"):
            for which, taken in known.items():
                if taken is not None and name not in taken:
                    _unknown(space, f"{part}_kwargs.{name}", which, taken)


def _unknown(space: Space, entry: str, which: Any, taken: _Arguments) -> None:
    space.wrong(entry, f"{which} does not take it; known are {', '.join(taken) or 'none'}")


def _check_objective(space: Space, scores: set[str]) -> None:
    kind, _, name = space.objective.partition("/")
    if kind == "task" and name not in scores:
        known = ", ".join(["return", *(f"task/{score}" for score in sorted(scores))])
        space.wrong("objective", f"{space.objective} is not a score of the environment; known are {known}")


def _check_effect(space: Space, parameter: Parameter, algos: list[Any]) -> None:
    """Checks that a hyper-parameter belongs to the learners for which it is drawn."""
    if parameter.name in {*known_entries()} - {*run_entries()}:
        for algo in parameter.when.get("algo", algos):
            if parameter.name not in hints_of(learner_class(algo).config_class):
                space.wrong(f"space.{parameter.name}", f"has no effect on {algo}")


def _typed(space: Space, one: Parameter, arguments: Mapping[str, Mapping[Any, _Arguments | None]]) -> Parameter:
    kwargs, dot, name = one.name.partition(".")
    part = kwargs.removesuffix("_kwargs")
    if not dot:
        return one
    for which, taken in arguments[part].items():
        if which not in one.when.get(part, (which,)) or taken is None:
            continue
        if name not in taken:
            _unknown(space, f"space.{one.name}", which, taken)
        if one.kind is int and "float" in str(taken[name].annotation):
            one = dataclasses.replace(one, kind=float)
        if one.kind is float and str(taken[name].annotation) in ("int", "int | None"):
            space.wrong(f"space.{one.name}", f"is a whole number, but low and high are {one.low} and {one.high}")
    return one
