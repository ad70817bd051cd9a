"""Run folders as `train.py` leaves them: configuration, final score, curves and budget."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from agents.checkpoint import CheckpointError, latest_checkpoint
from agents.checkpoint.format import read_manifest
from agents.common.plain_yaml import read_yaml_file
from agents.comparison.curves import Array, Curve
from agents.run.config import Config
from agents.run.logs import STEP, WALL, kept_rows

RETURN = "return"
"""The score that every environment has: the mean return of an episode."""
BASELINE = "identity"
"""Folder of the memoryless agent in that of a run."""

_RETURN_COLUMN, _EPISODES, _ELAPSED = "rollout/ep_rew_mean", "rollout/episodes", "time/time_elapsed"
_SKIPPED = {"checkpoints", "lessons", BASELINE}
"""Folders within a run: `lessons` are other tasks, the baseline comes with its run."""


@dataclass(frozen=True)
class Run:
    """One training."""

    folder: Path
    """Its own, or `RUN/identity` for the baseline trained beside a run."""
    config: dict[str, Any]
    """All entries of `config.yaml`; those that it lacks have their defaults."""
    scores: dict[str, float] = field(default_factory=dict)
    """Final scores by name, of fresh episodes; empty while it is not complete."""
    random: dict[str, float] = field(default_factory=dict)
    """Scores of random actions, where `evaluate.py` has been run."""
    env_steps: int = 0
    """Environment steps, as its summary says; 0 where it is not complete."""

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
        """Rows of `progress.csv`; the same numbers from TensorBoard's files where it is not there.

        Raises:
            ValueError: the file is damaged.
        """
        if (self.folder / "progress.csv").exists():
            return kept_rows(self.folder, sys.maxsize)
        return _event_rows(self.folder)

    @property
    def steps(self) -> int:
        """Environment steps trained so far; 0 where unknown."""
        return int(self.rows[-1][STEP]) if self.rows else self.env_steps

    @property
    def minutes(self) -> float:
        """Minutes of training so far, over all resumes; NaN where unknown."""
        return float(self._seconds[-1] / 60) if self.rows else math.nan

    @cached_property
    def lesson_steps(self) -> int | None:
        """Steps of the runs whose weights this one began with; 0 where it began with none, None where unknown."""
        start = self.config["init_from"]
        return 0 if start is None else _steps_until(Path(start), self.folder)

    @cached_property
    def parameters(self) -> int | None:
        """How many numbers are learned; None without a checkpoint of a trained agent."""
        try:
            shapes = read_manifest(latest_checkpoint(self.folder))["tensors"]
        except (CheckpointError, OSError, KeyError):
            return None
        each: dict[str, int] = {}  # the optimiser's state of a parameter is of its size
        for name, (_, shape) in shapes.items():
            part, _, rest = name.partition("/")
            if part == "optimizer":
                number = rest.split("/")[0]
                each[number] = max(each.get(number, 0), math.prod(shape))
        return sum(each.values()) or None

    def curve(self, score: str) -> Curve:
        """A score against steps and time: mean return of the last 100 episodes, or the task's own of each iteration."""
        column = column_of(score)
        there = [number for number, row in enumerate(self.rows) if not math.isnan(float(row.get(column) or math.nan))]

        def numbers(name: str) -> Array:
            return np.array([float(self.rows[number].get(name) or math.nan) for number in there])

        return Curve(numbers(STEP), self._seconds[there] / 60, numbers(_EPISODES), numbers(column))

    @cached_property
    def _seconds(self) -> Array:
        """Seconds at every row. Runs before `time/wall` have a clock that began anew at each resume."""
        if all(WALL in row for row in self.rows):
            return np.array([float(row[WALL]) for row in self.rows])
        elapsed = np.array([float(row.get(_ELAPSED) or math.nan) for row in self.rows])
        began = np.diff(elapsed, prepend=0.0) < 0
        before = np.where(began, np.roll(elapsed, 1), 0.0).cumsum()
        return np.asarray(elapsed + before)


def column_of(score: str) -> str:
    """The column of `progress.csv` that has a score while training."""
    return _RETURN_COLUMN if score == RETURN else score if "/" in score else f"task/{score}"


def find_runs(paths: Iterable[str | os.PathLike[str]], baselines: bool = True) -> list[Run]:
    """The runs in some folders, each once.

    Args:
        paths: run folders, or folders with runs somewhere below them. Lessons within a run are not runs here.
        baselines: whether the memoryless agents trained beside them are runs as well.

    Raises:
        ValueError: a path does not exist or holds no run, or a file of a run is damaged.
    """
    folders: dict[Path, Path] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise ValueError(f"there is no {path}: expected the folder of a run, or one with runs in it")
        below = list(_runs_in(path))
        if not below:
            inside = next((f"; {home} is a run" for home in path.parents if (home / "config.yaml").is_file()), "")
            raise ValueError(f"{path} holds no run: expected config.yaml in it or below, as train.py writes it{inside}")
        for folder in below:
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
    except ValueError:  # of a learner that is not installed: only what its runs share with others has a default
        config = {**Config().entries(), **entries}
    summary, evaluation = (_json(folder / name) for name in ("summary.json", "evaluation.json"))
    same_env = evaluation.get("env") == config["env"] and evaluation.get("env_kwargs") == config["env_kwargs"]
    random = evaluation.get("scores", {}).get("random") or {} if same_env else {}
    chance = _scores(random.get("mean"), random.get("metrics"))
    steps = int(summary.get("env_steps") or 0)
    yield Run(folder, config, _scores(summary.get("mean_return"), summary.get("metrics")), chance, steps)
    if baselines and config["memory"] != "identity" and (folder / BASELINE / "progress.csv").is_file():
        alone: dict[str, Any] = {"memory": "identity", "memory_kwargs": {}, "precision": "float32", "init_from": None}
        found = _scores(summary.get("identity_mean_return"), summary.get("identity_metrics"))
        yield Run(folder / BASELINE, {**config, **alone}, found, chance)


def _scores(mean: float | None, metrics: dict[str, float] | None) -> dict[str, float]:
    return {} if mean is None else {RETURN: float(mean), **(metrics or {})}


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
    """Scalars of TensorBoard's event files, a row a step; times are those at which they were written."""
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


def _steps_until(start: Path, folder: Path) -> int | None:
    """All steps behind the weights at `start`, a run or a checkpoint that the run in `folder` began with."""
    for place in (start, folder / "lessons" / start.name, folder.parent / start.name):
        try:
            checkpoint = latest_checkpoint(place)
            home = checkpoint.parent.parent
            steps = int(read_manifest(checkpoint)["counters"]["num_timesteps"])
            before = 0 if not (home / "config.yaml").is_file() else next(_read(home, False)).lesson_steps
        except (CheckpointError, OSError, KeyError, TypeError, ValueError):
            continue
        return None if before is None else steps + before
    return None
