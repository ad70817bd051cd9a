"""The definition of a sweep: fixed values, parameters, seeds, objective, sampler and pruner."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

from agents import learner_class
from agents.hyperparameters import Hyperparameters, hints_of
from agents.run.config import Config, hyperparameters
from agents.run.recipes import base_config

KWARGS = ("env_kwargs", "memory_kwargs")


@dataclass(frozen=True)
class Parameter:
    """One dimension of the space: a range of numbers, or choices."""

    name: str
    """An entry of `Config`, or one argument: `memory_kwargs.hidden_size`, `env_kwargs.length`."""
    kind: type | None = None
    """`int` or `float` for a range; None for choices."""
    low: float = 0
    high: float = 0
    log: bool = False
    step: float | None = None
    choices: tuple[Any, ...] = ()
    when: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """Conditions: other parameters and the values at which this one is drawn."""

    def applies(self, values: Mapping[str, Any]) -> bool:
        """Whether it is drawn, given the values of earlier parameters."""
        return all(name in values and values[name] in wanted for name, wanted in self.when.items())

    def suggest(self, trial: Any) -> Any:
        """Draws the value in an Optuna trial."""
        if self.kind is None:
            return trial.suggest_categorical(self.name, self.choices)
        if self.kind is int:
            return trial.suggest_int(self.name, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(self.name, float(self.low), float(self.high), step=self.step, log=self.log)

    def grid(self) -> list[Any] | None:
        """All its values; None if there are infinitely many."""
        if self.kind is None:
            return list(self.choices)
        if self.kind is int or self.step:
            step = self.step or 1
            return [self.low + step * i for i in range(math.floor((self.high - self.low) / step + 1e-9) + 1)]
        return None


@dataclass(frozen=True)
class Space:
    """A parsed space file."""

    file: Path
    name: str
    parameters: tuple[Parameter, ...]
    recipe: str | None = None
    fixed: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    trials: int | None = None
    objective: str = "return"
    direction: Literal["maximize", "minimize"] = "maximize"
    sampler: dict[str, Any] = field(default_factory=lambda: {"name": "tpe"})
    pruner: dict[str, Any] = field(default_factory=lambda: {"name": "median"})
    reports: int = 20
    of_algo: dict[str, dict[str, Any]] = field(default_factory=dict)
    """For each learner that is searched, the entries whose defaults are not those of the first; see `with_flags`."""

    def wrong(self, entry: str, what: str) -> NoReturn:
        """Raises a `ValueError` about an entry of the file."""
        raise ValueError(f"{self.file}: {entry}: {what}")

    def __contains__(self, name: str) -> bool:
        return any(parameter.name == name for parameter in self.parameters)

    def defaults(self, given: Mapping[str, Any]) -> Config:
        """The values below the flags: defaults, overridden by the recipe, overridden by `fixed`.

        If learners are searched, it has the hyper-parameters of all of them.

        Args:
            given: recipe, env, algo and memory from the flags. A part that they replace loses the arguments that the
                file fixes for it, and a part that is searched loses those of the recipe.
        """
        config = self._defaults(given)
        for parameter in self.parameters:
            if parameter.name == "algo":
                config.learner = _of_all(parameter.choices, config.entries() | self.fixed)
        return config

    def with_flags(self, flags: Collection[str], given: Mapping[str, Any]) -> Space:
        """The space whose trials have the defaults of their own learner, except for the entries set by `flags`.

        Args:
            flags: names of entries.
            given: as of `defaults`.
        """
        start = self.defaults(given).entries()
        own = {}
        for parameter in self.parameters:
            for algo in parameter.choices if parameter.name == "algo" else ():
                entries = self._defaults({**given, "algo": algo}).entries()
                own[algo] = {name: v for name, v in entries.items() if name not in flags and v != start.get(name)}
        return dataclasses.replace(self, of_algo=own)

    def _defaults(self, given: Mapping[str, Any]) -> Config:
        parts = {name: given.get(name) or self.fixed.get(name) for name in ("env", "algo", "memory")}
        config = base_config(given.get("recipe") or self.recipe, **parts)
        own = {part: self.fixed.get(part, getattr(config, part)) for part in ("env", "memory")}
        entries = config.entries() | {"baseline": False, "progress": False}
        for name, value in self.fixed.items():
            part = name.removesuffix("_kwargs")
            if part == name:
                entries[name] = Path(value) if name == "data_dir" and value is not None else value
            elif given.get(part) in (None, own[part]):
                entries[name] = ({} if part in self else entries[name]) | value
        for part in ("env", "memory"):
            if part in self and f"{part}_kwargs" not in self.fixed:
                entries[f"{part}_kwargs"] = {}
        return Config.of(entries)

    def suggest(self, trial: Any) -> dict[str, Any]:
        """Draws the values of an Optuna trial whose conditions hold."""
        values: dict[str, Any] = {}
        for parameter in self.parameters:
            if parameter.applies(values):
                values[parameter.name] = parameter.suggest(trial)
        return values

    def configure(self, config: Config, values: Mapping[str, Any]) -> Config:
        """A trial's configuration."""
        chosen = config.entries() | self.of_algo.get(values.get("algo", ""), {})
        chosen |= {name: dict(chosen[name]) for name in KWARGS}
        for name, value in values.items():
            part, _, argument = name.partition(".")
            if argument:
                chosen[part][argument] = value
            else:
                chosen[name] = value
        return Config.of(chosen)

    def size(self) -> int | None:
        """Number of different trials; None: infinitely many."""
        found: list[dict[str, Any]] = [{}]
        for parameter in self.parameters:
            values = parameter.grid()
            if values is None:
                return None
            found = [
                {**one, **more}
                for one in found
                for more in ([{parameter.name: value} for value in values] if parameter.applies(one) else [{}])
            ]
        return len(found)


def _of_all(algos: tuple[Any, ...], entries: Mapping[str, Any]) -> Any:
    """The hyper-parameters of all learners that a space can choose, as one object."""
    fields: dict[str, Any] = {}
    for algo in reversed(algos):
        hints, start = hints_of(learner_class(algo).config_class), vars(hyperparameters(algo))
        fields |= {name: (name, hint, field(default=start[name])) for name, hint in hints.items()}
    kind: Any = dataclasses.make_dataclass("OfAll", fields.values(), bases=(Hyperparameters,))
    return kind(**{name: entries[name] for name in fields if name in entries})
