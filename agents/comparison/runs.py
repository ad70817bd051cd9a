"""Reads run folders of `train.py`: configuration, final score, curves and budget."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agents.checkpoint import CheckpointError, latest_checkpoint
from agents.checkpoint.format import read_manifest
from agents.common.plain_yaml import read_yaml_file
from agents.comparison.curves import Array, Curve
from agents.run.config import Config
from agents.run.logs import STEP, WALL, rows_up_to

RETURN = "return"
"""The mean return per episode, a score that every environment has."""
BASELINE = "identity"
"""Subfolder of the memoryless agent."""

_EPISODES, _ELAPSED = "rollout/episodes", "time/time_elapsed"
_COLUMNS = {RETURN: "rollout/ep_rew_mean", "success_rate": "rollout/success_rate"}
"""Columns of `progress.csv` of scores that are not metrics of a task."""
_SKIPPED = {"checkpoints", "lessons", BASELINE}
"""Subfolders of a run that are not searched: `lessons` are other tasks; the baseline is read with its run."""


@dataclass(frozen=True)
class Run:
    """One training."""

    folder: Path
    """The run's folder, or `RUN/identity` for its baseline."""
    config: dict[str, Any]
    """All entries of `config.yaml`; missing ones have their defaults."""
    scores: dict[str, float] = field(default_factory=dict)
    """Final scores by name, on new episodes; empty while the run is incomplete."""
    random: dict[str, float] = field(default_factory=dict)
    """Scores of random actions, if `evaluate.py` was run."""
    env_steps: int = 0
    """Environment steps from its summary; 0 while the run is incomplete."""

    @property
    def memory(self) -> str:
        """The memory's name."""
        return str(self.config["memory"])

    @property
    def env(self) -> str:
        """The environment's id."""
        return str(self.config["env"])

    @property
    def seed(self) -> int:
        """The seed of the training."""
        return int(self.config["seed"])

    @cached_property
    def rows(self) -> list[dict[str, str]]:
        """Rows of `progress.csv`; if it is missing, the same numbers from TensorBoard's files.

        Raises:
            ValueError: the file is damaged.
        """
        if (self.folder / "progress.csv").exists():
            rows = rows_up_to(self.folder, sys.maxsize)
            for number, row in enumerate(rows, start=2):
                for name, value in row.items():
                    if not _is_number(value):
                        found = f"row {number} has {value!r} for {name}, expected a number"
                        raise ValueError(f"{self.folder / 'progress.csv'} is damaged: {found}")
            return rows
        return _event_rows(self.folder)

    @property
    def steps(self) -> int:
        """Environment steps trained so far; 0 if unknown."""
        return int(self.rows[-1][STEP]) if self.rows else self.env_steps

    @property
    def minutes(self) -> float:
        """Minutes of training so far, over all resumes; NaN if unknown."""
        return float(self._seconds[-1] / 60) if self.rows else math.nan

    @cached_property
    def lesson_steps(self) -> int | None:
        """Environment steps of the earlier runs whose weights this run started from; 0 without any, None if unknown."""
        if self.config["init_from"] is None or self._start is None:
            return None if self.config["init_from"] else 0
        before = 0 if self._start.run is None else self._start.run.lesson_steps
        return None if before is None else self._start.steps + before

    @cached_property
    def lessons(self) -> str | bool:
        """The trainings before this one, whose weights it started from, as text; False without any, True if unknown."""
        run = None if self._start is None else self._start.run
        if run is None:
            return self.config["init_from"] is not None
        name = Path(run.config["recipe"] or run.env).name
        before = "" if run.lessons is False else "unknown, " if run.lessons is True else f"{run.lessons}, "
        return f"{before}{name.removesuffix('.yaml')} ({run.config['total_timesteps']:,} steps)"

    @cached_property
    def _start(self) -> _Start | None:
        """Whose weights this run started from; None if from none, or if they are gone."""
        start = self.config["init_from"]
        return None if start is None else _find_start(Path(start), self.folder)

    @cached_property
    def parameters(self) -> int | None:
        """Number of trained parameters; None without a checkpoint of a trained agent."""
        try:
            shapes = read_manifest(latest_checkpoint(self.folder))["tensors"]
        except (CheckpointError, OSError, KeyError):
            return None
        each: dict[str, int] = {}  # the optimiser's state of a parameter has its size
        for name, (_, shape) in shapes.items():
            part, _, rest = name.partition("/")
            if part == "optimizer":
                number = rest.split("/")[0]
                each[number] = max(each.get(number, 0), math.prod(shape))
        return sum(each.values()) or None

    def curve(self, score: str) -> Curve:
        """A score over steps and time: mean return of the last 100 episodes, or the task's score of each iteration."""
        column = column_of(score)
        rows = [number for number, row in enumerate(self.rows) if not math.isnan(float(row.get(column) or math.nan))]

        def numbers(name: str) -> Array:
            return np.array([float(self.rows[number].get(name) or math.nan) for number in rows])

        return Curve(numbers(STEP), self._seconds[rows] / 60, numbers(_EPISODES), numbers(column))

    @cached_property
    def _seconds(self) -> Array:
        """Seconds at every row. In older runs, without `time/wall`, the clock restarted at each resume."""
        if all(WALL in row for row in self.rows):
            return np.array([float(row[WALL]) for row in self.rows])
        elapsed = np.array([float(row.get(_ELAPSED) or math.nan) for row in self.rows])
        restarted = np.diff(elapsed, prepend=0.0) < 0
        before = np.where(restarted, np.roll(elapsed, 1), 0.0).cumsum()
        return np.asarray(elapsed + before)


def column_of(score: str) -> str:
    """The column of `progress.csv` with a score during training."""
    return _COLUMNS.get(score, score if "/" in score else f"task/{score}")


def find_runs(paths: Iterable[str | os.PathLike[str]], baselines: bool = True) -> list[Run]:
    """Finds the runs in folders, each once.

    Args:
        paths: run folders, or folders that contain runs at any depth. Lessons within a run are ignored.
        baselines: also return the memoryless agents trained beside the runs.

    Raises:
        ValueError: a path does not exist or contains no run, or a file of a run is damaged.
    """
    folders: dict[Path, Path] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise ValueError(f"{path} does not exist: expected the folder of a run, or a folder with runs in it")
        found = list(_runs_in(path))
        if not found:
            inside = next((f"; {home} is a run" for home in path.parents if (home / "config.yaml").is_file()), "")
            raise ValueError(
                f"{path} contains no run: expected a config.yaml of train.py in it or its subfolders{inside}"
            )
        for folder in found:
            folders.setdefault(folder.resolve(), folder)
    return [run for folder in folders.values() for run in _read(folder, baselines)]


def _runs_in(folder: Path) -> Iterator[Path]:
    if (folder / "config.yaml").is_file():
        yield folder
    elif folder.is_dir():
        for inner in sorted(folder.iterdir()):
            if inner.is_dir() and inner.name not in _SKIPPED and not inner.is_symlink():
                yield from _runs_in(inner)


def _read(folder: Path, baselines: bool) -> Iterator[Run]:
    entries = read_yaml_file(folder / "config.yaml", "configuration")
    if not isinstance(entries, dict):
        raise ValueError(f"{folder}/config.yaml is not a configuration: expected entries such as 'env: ...'")
    try:
        config = {**Config.of(entries).entries(), **entries}
    except ValueError:  # the learner is not installed: only the common entries have defaults
        config = {**Config().entries(), **entries}
    summary, evaluation = (_json(folder / name) for name in ("summary.json", "evaluation.json"))
    same_env = all(evaluation.get(name) == config[name] for name in ("env", "env_kwargs"))
    for name, entry in (("wrappers", "wrappers"), ("max_steps", "eval_steps")):  # not in older files
        same_env = same_env and evaluation.get(name, config[entry]) == config[entry]
    random = _entries(evaluation, "scores", folder / "evaluation.json").get("random") if same_env else {}
    chance = _scores(random or {}, "mean", "metrics", folder / "evaluation.json")
    file = folder / "summary.json"
    steps = int(_number(summary.get("env_steps") or 0, "env_steps", file))
    yield Run(folder, config, _scores(summary, "mean_return", "metrics", file), chance, steps)
    if baselines and config["memory"] != "identity" and (folder / BASELINE).is_dir():
        alone: dict[str, Any] = {"memory": "identity", "memory_kwargs": {}, "precision": "float32", "init_from": None}
        alone["imports"] = []  # equal baselines are one group, even if only one of the runs imports its memory
        found = _scores(summary, "identity_mean_return", "identity_metrics", file)
        yield Run(folder / BASELINE, {**config, **alone}, found, chance)


def _scores(found: dict[str, Any], mean: str, metrics: str, file: Path) -> dict[str, float]:
    """The entries `mean` and `metrics` as scores by name; empty without a mean."""
    if found.get(mean) is None:
        return {}
    others = _entries(found, metrics, file)
    return {RETURN: _number(found[mean], mean, file), **{name: _number(others[name], name, file) for name in others}}


def _entries(found: dict[str, Any], name: str, file: Path) -> dict[str, Any]:
    entries = found.get(name) or {}
    if not isinstance(entries, dict):
        raise ValueError(f"{file} is damaged: {name} is {entries!r}, expected names and values")
    return entries


def _number(value: Any, name: str, file: Path) -> float:
    if not isinstance(value, (int, float)):
        raise ValueError(f"{file} is damaged: {name} is {value!r}, expected a number")
    return float(value)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{file} is damaged: expected JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} is damaged: expected names and values")
    return found


def _event_rows(folder: Path) -> list[dict[str, str]]:
    """Scalars of TensorBoard's event files, one row per step; times are when they were written."""
    if not any(folder.glob("events.out.tfevents.*")):
        return []
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    rows: dict[int, dict[str, str]] = {}
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            rows.setdefault(event.step, {STEP: str(event.step)})[name] = repr(event.value)
    return [rows[step] for step in sorted(rows)]


class _Start(NamedTuple):
    """A checkpoint that another run started from."""

    steps: int
    run: Run | None
    """The run that it belongs to; None for a checkpoint alone."""


def _find_start(start: Path, folder: Path) -> _Start | None:
    """The checkpoint at `start`, from which the run in `folder` started, also if both have been moved."""
    for place in (start, folder / "lessons" / start.name, folder.parent / start.name):
        try:
            checkpoint = latest_checkpoint(place)
            home = checkpoint.parent.parent
            steps = int(read_manifest(checkpoint)["counters"]["num_timesteps"])
            return _Start(steps, next(_read(home, False)) if (home / "config.yaml").is_file() else None)
        except (CheckpointError, OSError, KeyError, TypeError, ValueError):
            continue
    return None
