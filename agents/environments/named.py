"""Looks up names from the command line: environment ids, and wrappers and encoders as `module:name`."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from types import ModuleType
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

import envs as engram_envs
from agents.common.invocation import command_for


def find_env(env_id: str) -> EnvSpec:
    """The Gymnasium spec of an id; `module:Id-v0` imports `module` first, also from the current folder.

    Raises:
        ValueError: it is not registered; the message gives the reason in one line.
    """
    module, _, name = env_id.rpartition(":")
    if module:
        import_module_of(module, env_id)
    try:
        return gym.spec(name)
    except (gym.error.Error, ImportError, ValueError) as error:
        known = engram_envs.registered()
        near = difflib.get_close_matches(name, sorted({*known, *gym.registry}), n=4, cutoff=0.5)
        advice = (
            f"{module} was imported and registers no such id"
            if module
            else f"if a package or module of your own registers it: MODULE:{name}; this project's: "
            f"{command_for('train')} --list envs"
        )
        names = ", ".join(near) or "nothing"
        raise ValueError(f"unknown environment {env_id!r}; near it: {names}; {advice}") from error


def import_module_of(module: str, wanted: str) -> ModuleType:
    """The module of `wanted`, installed or in the current folder.

    Raises:
        ValueError: it does not exist, or importing it fails.
    """
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last: installed modules take precedence
    try:
        return importlib.import_module(module)
    except Exception as error:  # third-party code may raise anything
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        missing = isinstance(error, ModuleNotFoundError) and error.name is not None
        if missing and (module == error.name or module.startswith(f"{error.name}.")):  # type: ignore[attr-defined]
            reason = f"it is not installed, and not in the current folder, {os.getcwd()}"
        raise ValueError(f"cannot import {module!r} for {wanted!r}: {reason}") from error


def import_modules(modules: Any) -> None:
    """Imports the modules of an entry `imports`, which may register memories, learners and environments.

    Raises:
        ValueError: it is not a list of names, or one of them cannot be imported.
    """
    if not isinstance(modules, (list, tuple)) or not all(isinstance(module, str) for module in modules):
        raise ValueError(f"imports is {modules!r}, expected a list of modules: [{modules}]")
    for module in modules:
        import_module_of(module, "imports")


def import_object(path: str, role: str) -> Any:
    """Imports `module:name`.

    Args:
        path: `module:name`; the name may have dots.
        role: what the object is for, such as "the encoder"; used in messages.

    Raises:
        ValueError: it does not exist.
    """
    module, separator, name = path.partition(":")
    if not (separator and module and name):
        raise ValueError(f"{role} is {path!r}, expected module:name, such as gymnasium.wrappers:FlattenObservation")
    value: Any = import_module_of(module, path)
    for part in name.split("."):
        if not hasattr(value, part):
            near = difflib.get_close_matches(part, dir(value), n=3)
            raise ValueError(
                f"{role} is {path!r}, but {module} has no {part!r}; near it: {', '.join(near) or 'nothing'}"
            )
        value = getattr(value, part)
    return value
