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
from agents.run.parsing import given_parts, named_options
from agents.sweep.space import KWARGS, Parameter, Space
from policies.memories import memory_class

_Arguments = Mapping[str, inspect.Parameter] | None
"""The arguments of a class that a user may set; None: not known."""


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
    named = {name.removeprefix("no_") for name in named_options(flags)}
    for name in sorted(named):
        if name in space:
            space.wrong(f"space.{name}", f"is searched, but the command line also has --{name.replace('_', '-')}")
    if "seed" in named:
        space.wrong("seeds", "the command line has --seed, but the seeds of a sweep are set in its file")
    choices = {one.name: one.choices for one in space.parameters}
    parts = {part: choices.get(part, (getattr(config, part),)) for part in ("memory", "env", "algo")}
    arguments: dict[str, dict[str, _Arguments]] = {"memory_kwargs": {}, "env_kwargs": {}}
    scores = set()
    entry = "memory"
    try:
        for name in parts["memory"]:
            arguments["memory_kwargs"][name] = _arguments(memory_class(name), "input_size", "queries")
        entry = "env"
        for name in parts["env"]:
            env = dataclasses.replace(config, env=name).make_env(1)
            adapted = isinstance(env, HostEnv)  # arguments of third-party environments are not checked
            arguments["env_kwargs"][name] = None if adapted else _arguments(type(env), "num_envs", "device")
            scores |= {f"task/{score}" for score in env.metric_names}
            env.close()
    except ValueError as error:
        if entry in space:
            space.wrong(f"space.{entry}", str(error))
        raise
    if space.objective.startswith("task/") and space.objective not in scores:
        known = ", ".join(["return", *sorted(scores)])
        space.wrong("objective", f"{space.objective} is not a score of the environment; known are {known}")
    if not config.eval_episodes and (space.objective == "return" or space.objective in scores):
        space.wrong("objective", f"{space.objective} is a score of new episodes, expected eval_episodes of at least 1")
    for part in KWARGS:
        for name in getattr(config, part):
            if f"{part}.{name}" in space and any(word.startswith(f"{name}=") for word in flags):
                flag = part.replace("_", "-")
                space.wrong(f"space.{part}.{name}", f"is searched, but the command line also has --{flag} {name}")
            for taker in arguments[part]:
                _annotation_of(space, f"{part}.{name}", arguments[part], taker)
    for one in space.parameters:
        if one.name in {*known_entries()} - {*run_entries()}:
            for algo in one.when.get("algo", parts["algo"]):
                if one.name not in hints_of(learner_class(algo).config_class):
                    space.wrong(f"space.{one.name}", f"has no effect on {algo}")
    typed = tuple(_typed(space, one, arguments) for one in space.parameters)
    return dataclasses.replace(space, parameters=typed).with_flags(named, given_parts(flags))


def _arguments(part: Any, *excluded: str) -> _Arguments:
    found = inspect.signature(part).parameters
    if any(argument.kind is inspect.Parameter.VAR_KEYWORD for argument in found.values()):
        return None
    return {name: argument for name, argument in found.items() if name not in excluded}


def _annotation_of(space: Space, entry: str, takers: Mapping[str, _Arguments], taker: str) -> str:
    """The annotation of the argument that `entry` names; empty if it is not known."""
    known = takers[taker]
    if known is None:
        return ""
    name = entry.split(".")[-1]
    if name not in known:
        space.wrong(entry, f"{taker} has no such argument; known are {', '.join(known) or 'none'}")
    return str(known[name].annotation)


def _typed(space: Space, one: Parameter, arguments: Mapping[str, Mapping[str, _Arguments]]) -> Parameter:
    part, dot, _ = one.name.partition(".")
    takers = arguments[part] if dot else {}
    for taker in one.when.get(part.removesuffix("_kwargs"), tuple(takers)):
        hint = _annotation_of(space, f"space.{one.name}", takers, taker)
        if one.kind is int and "float" in hint:
            one = dataclasses.replace(one, kind=float)
        if one.kind is float and hint in ("int", "int | None"):
            space.wrong(f"space.{one.name}", f"is a whole number, but low and high are {one.low} and {one.high}")
    return one
