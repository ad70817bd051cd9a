"""Configurations from files: a run's `config.yaml` and the recipes, and which of them a command starts from."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from agents import learner_class
from agents.common.plain_yaml import read_yaml_file
from agents.environments import import_modules
from agents.run.config import Config, known_entries, run_defaults_of

RECIPES = Path(__file__).resolve().parent.parent.parent / "recipes"
"""Folder of the recipes."""


def default_config(algo: str | None, env: str | None = None, device: str | None = None) -> Config:
    """The values that flags override if there is no recipe.

    Environments from outside this project may have observations of any scale; ours are of the order of 1.

    Raises:
        ValueError: there is no such learner.
    """
    algo = algo or Config.algo
    entries = {"algo": algo, **run_defaults_of(learner_class(algo).config_class, device)}
    entries["normalize_obs"] = not (env or Config.env).startswith("Engram/")
    return Config.of(entries)


def base_config(
    recipe: str | None, env: str | None, algo: str | None, memory: str | None, device: str | None = None
) -> Config:
    """The values that flags override: those of the recipe, of the default recipe, or defaults.

    Args:
        recipe: a name or a file; None: the default recipe, if env and algo match it.
        env, algo, memory: as given by flags. If one differs from the recipe's, the recipe's arguments for it are
            dropped.
        device: as given by a flag; None: the CPU.

    Raises:
        ValueError: there is no such recipe or learner, or the recipe is wrong.
    """
    file = find_recipe(recipe) if recipe else default_recipe(env, algo)
    config = load_config(file) if file else default_config(algo, env, device)
    if algo not in (None, config.algo):
        config = Config.of(config.entries() | {"algo": algo})
    config.recipe = file.stem if file else None
    if env not in (None, config.env):
        config.env_kwargs, config.wrappers = {}, []
    if memory not in (None, config.memory):
        config.memory_kwargs = {}
    return config


def load_config(file: str | os.PathLike[str]) -> Config:
    """A configuration from a `config.yaml` or a recipe.

    Raises:
        ValueError: it is missing or not YAML, has an unknown entry, or one of a wrong type or out of its range.
    """
    data = read_yaml_file(Path(file), "configuration")
    if not isinstance(data, dict):
        raise ValueError(f"{file} is not a configuration: expected entries such as 'env: ...'")
    data.pop("expect", None)  # the expected result, for readers
    try:
        import_modules(data.get("imports", []))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    known = known_entries()
    for name in data:
        if name not in known:
            near = difflib.get_close_matches(str(name).replace("-", "_"), known, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{file}: {name} is an unknown entry{hint}; known are {', '.join(sorted(known))}")
    try:
        config = Config.of(data)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    config.fit(lambda name: f"{file}: {name}")
    return config


def find_recipe(name: str) -> Path:
    """The file of a recipe given by name or path.

    Raises:
        ValueError: there is none; the message lists the known names.
    """
    for candidate in (Path(name), RECIPES / f"{name}.yaml"):
        if candidate.is_file():
            return candidate
    known = ", ".join(sorted(file.stem for file in RECIPES.glob("*.yaml")))
    raise ValueError(f"no recipe {name!r}; in {RECIPES} there are: {known}")


def default_recipe(env: str | None, algo: str | None) -> Path | None:
    """The default recipe of a command that names none, if it trains on the maze; else None."""
    names = {None: "maze-ppo", "ppo": "maze-ppo", "a2c": "maze-a2c"}
    return find_recipe(names[algo]) if env in (None, Config.env) and algo in names else None
