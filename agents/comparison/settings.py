"""Settings of runs: their names, in which of them runs differ, and whether two runs are the same training."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agents.common.arguments import format_setting
from agents.comparison.runs import Run

NONE = "–"
ENVIRONMENT = ("env", "env_kwargs", "wrappers")
"""Entries that define the task."""
_WITHOUT_EFFECT = ("run_dir", "resume", "data_dir", "checkpoint_every", "panels_every", "progress", "baseline")
"""Entries that do not affect a run's numbers."""
_SCORING = ("eval_episodes", "eval_steps")
_MACHINE = ("device", "threads", "fast", "vector")
_NAMES = ("recipe", "follows", "seed")
_FIRST = ("memory", "algo", "recipe", "init_from")
"""Entries by which runs are distinguished first, in this order; a recipe given as a path comes last."""


def settings(run: Run) -> dict[str, Any]:
    """All entries of a run's configuration, flat: `memory_kwargs.heads`.

    `init_from` is replaced by the trainings whose weights the run started from, which are other folders for each seed.
    """
    return {**_flat(run.config), "init_from": run.lessons}


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def changes(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings in which two configurations differ, with both values; empty if they are the same training.

    Args:
        first, second: entries of `config.yaml`. Folders, displays and thread counts are not compared.
    """
    ignored = (*_WITHOUT_EFFECT, "threads", "recipe", "follows")
    one, other = (_flat({name: v for name, v in c.items() if name not in ignored}) for c in (first, second))
    both = {name: (one.get(name), other.get(name)) for name in sorted({*one, *other})}
    return {name: values for name, values in both.items() if _plain(values[0]) != _plain(values[1])}


def task_key(run: Run, ignored: Sequence[str] = ()) -> tuple[Any, ...]:
    """A key that is equal for runs in the same environment, without the settings `ignored` (full names)."""
    parts = _flat({name: run.config.get(name) for name in ENVIRONMENT})
    used = {name: value for name, value in parts.items() if not {name, name.split(".")[0]} & {*ignored}}
    return tuple(sorted((name, repr(_plain(value))) for name, value in used.items() if value not in ({}, [], None)))


def training_key(run: Run) -> str:
    """A key that is equal for runs that differ only in their seeds."""
    ignored = (*_WITHOUT_EFFECT, *_SCORING, *_MACHINE, *_NAMES, "init_from")
    return f"{sorted((name, _plain(value)) for name, value in run.config.items() if name not in ignored)} {run.lessons}"


def differing(runs: Sequence[Run]) -> list[str]:
    """Settings that differ between runs, most important first, without seeds and folders."""
    ignored = {*_WITHOUT_EFFECT, *_SCORING, *_MACHINE, "seed", "follows"}
    each = [{name: value for name, value in settings(run).items() if name.split(".")[0] not in ignored} for run in runs]
    names = dict.fromkeys(name for one in each for name in one)
    found = [name for name in names if len({repr(_plain(one.get(name))) for one in each}) > 1]
    files = any("/" in str(run.config.get("recipe")) or "\\" in str(run.config.get("recipe")) for run in runs)

    def place(name: str) -> int:
        return len(found) + 9 if name == "recipe" and files else _FIRST.index(name) if name in _FIRST else len(_FIRST)

    return sorted(found, key=place)


def distinguishing(runs: Sequence[Run]) -> list[str]:
    """The fewest settings, in the order of `differing`, that distinguish all trainings."""
    chosen: list[str] = []
    count = 1
    for name in differing(runs):
        if name.split(".")[0] in ENVIRONMENT:
            continue
        finer = len({values(run, [*chosen, name]) for run in runs})
        if finer > count:
            chosen, count = [*chosen, name], finer
    return chosen or ["memory"]


def values(run: Run, names: Iterable[str]) -> tuple[str, ...]:
    """Values of settings as text; `NONE` if a run does not have the setting.

    A name such as `memory_kwargs` means all of its entries.
    """
    entries = settings(run)
    return tuple(_format(entries, name) for name in names)


def _format(entries: Mapping[str, Any], name: str) -> str:
    within = {key.removeprefix(f"{name}."): value for key, value in entries.items() if key.startswith(f"{name}.")}
    if within:
        return " ".join(f"{key}={format_setting(value)}" for key, value in sorted(within.items()))
    return format_setting(entries[name]) if name in entries and entries[name] not in ([], {}) else NONE


def full_names(names: Iterable[str], runs: Sequence[Run]) -> list[str]:
    """Full names of settings: `heads` becomes `memory_kwargs.heads` if the name is unique.

    Raises:
        ValueError: no run has such a setting, or the short name is ambiguous.
    """
    known = dict.fromkeys(name for run in runs for name in settings(run))
    known |= dict.fromkeys(name.split(".")[0] for name in list(known))
    found = []
    for name in (name.replace("-", "_") for name in names):
        ends = [other for other in known if other.endswith(f".{name}")]
        if name in known:
            found.append(name)
        elif len(ends) == 1:
            found += ends
        else:
            near = ends or difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(f"--by {name}: no run has a setting of that name{hint}")
    return list(dict.fromkeys(found))


def _plain(value: Any) -> Any:
    """A value in a comparable form: lists equal tuples, and 1 equals 1.0."""
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in sorted(value.items())}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, Path):
        return str(value)
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
