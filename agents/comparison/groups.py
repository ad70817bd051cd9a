"""Groups of runs that differ only in their seeds: scores over seeds, budgets, and when a threshold was reached."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from agents.comparison import settings
from agents.comparison.curves import Array, Axis, SeedCurves
from agents.comparison.intervals import Interval, Method, interquartile_mean, mean_interval
from agents.comparison.runs import RETURN, Run

_PREFERRED = ("error", "f1", "right_triples", "located", "success")
"""Task scores that are compared by default, if the runs have them."""
_NO_SCORE = "not complete, or trained with --eval-episodes 0"
_BUDGET_TOLERANCE = 0.02
"""Relative difference at which budgets count as equal: whole rollouts seldom add up to a round number."""


class GroupingError(ValueError):
    """The runs cannot be compared in one table."""


def lower_is_better(score: str) -> bool:
    """Whether a lower score is better."""
    return any(word in score for word in ("error", "wrong", "loss", "bits"))


def direction(score: str) -> str:
    """ "lower is better", "higher is better", or an empty string if neither holds."""
    if lower_is_better(score):
        return "lower is better"
    return "" if score.split("/")[0] in ("train", "time", "memory") else "higher is better"


class Reached(NamedTuple):
    """When the curves of a group first reached a threshold: medians over seeds, infinite if most never did."""

    steps: float
    minutes: float
    seeds: int
    """Number of seeds that reached the threshold."""


@dataclass(frozen=True)
class Group:
    """The runs of one row, one per seed."""

    names: tuple[str, ...]
    """Their common values of the settings that the comparison groups by."""
    runs: tuple[Run, ...]
    score: str
    """Name of the score."""
    method: Method = "bootstrap"
    in_training: bool = False
    """Whether the score is the last one of training, not that of new episodes."""

    @property
    def label(self) -> str:
        """For legends."""
        return " · ".join(self.names)

    @property
    def seeds(self) -> int:
        """Number of runs."""
        return len(self.runs)

    @property
    def scores(self) -> list[float]:
        """Final scores of the seeds that have one."""
        if not self.in_training:
            return [run.scores[self.score] for run in self.runs if self.score in run.scores]
        curves = [run.curve(self.score).values for run in self.runs]
        return [float(_last(values)) for values in curves if len(values)]

    @property
    def mean(self) -> float:
        """Over the seeds; NaN without a score."""
        return statistics.fmean(self.scores) if self.scores else math.nan

    @property
    def interval(self) -> Interval | None:
        """95 % interval of the mean; None for fewer than two seeds."""
        return mean_interval(self.scores, self.method) if len(self.scores) > 1 else None

    @property
    def interquartile_mean(self) -> float:
        """Over the seeds; NaN without a score."""
        return interquartile_mean(self.scores) if self.scores else math.nan

    @property
    def steps(self) -> tuple[int, int]:
        """Minimum and maximum of the runs' environment steps."""
        each = [run.steps for run in self.runs]
        return min(each), max(each)

    @property
    def lesson_steps(self) -> int | None:
        """Steps of earlier lessons, the maximum over the runs; None if unknown."""
        each = [run.lesson_steps for run in self.runs]
        return None if None in each else max(steps for steps in each if steps is not None)

    @property
    def minutes(self) -> float:
        """Minutes of training per seed, median."""
        return statistics.median(run.minutes for run in self.runs)

    @property
    def parameters(self) -> int | None:
        """Number of trained parameters, median over the runs."""
        each = [run.parameters for run in self.runs if run.parameters is not None]
        return round(statistics.median(each)) if each else None

    def reached(self, threshold: float) -> Reached:
        """When the training curves first reached `threshold`, in steps that include earlier lessons."""
        steps, minutes = [], []
        for run in self.runs:
            curve = run.curve(self.score)
            values = -curve.values if lower_is_better(self.score) else curve.values
            there = np.flatnonzero(values >= (-threshold if lower_is_better(self.score) else threshold))
            steps.append(float(curve.steps[there[0]]) + (run.lesson_steps or 0) if len(there) else math.inf)
            minutes.append(float(curve.minutes[there[0]]) if len(there) else math.inf)
        count = sum(math.isfinite(step) for step in steps)
        return Reached(statistics.median(steps), statistics.median(minutes), count)

    def mean_curve(self, axis: Axis) -> tuple[Array, Array, Array, Array]:
        """As `SeedCurves.mean_curve`."""
        return SeedCurves(self.label, tuple(run.curve(self.score) for run in self.runs), self.method).mean_curve(axis)


def _last(values: Array) -> float:
    """The mean of the last twentieth, because the score of a single iteration is from few episodes."""
    return float(values[-max(1, len(values) // 20) :].mean())


@dataclass(frozen=True)
class Comparison:
    """Groups of runs of one environment."""

    env: str
    env_kwargs: str
    """The environment's arguments as text; empty for the defaults."""
    by: tuple[str, ...]
    """The settings that distinguish the groups."""
    score: str
    groups: list[Group]
    """Best first."""
    notes: list[str] = field(default_factory=list)
    """Remarks: runs left out, settings that differ within a group, and so on."""
    random: float | None = None
    """The score of random actions, if known."""
    title: str = ""
    """Replaces the environment's name in tables and pictures."""

    @property
    def name(self) -> str:
        """The title; by default the environment with its arguments."""
        return self.title or " ".join(filter(None, (self.env, self.env_kwargs)))

    @classmethod
    def of(
        cls,
        runs: Sequence[Run],
        by: Sequence[str] = (),
        score: str | None = None,
        method: Method = "bootstrap",
        in_training: bool = False,
    ) -> Comparison:
        """Compares runs of one environment.

        Args:
            runs: from `find_runs`. Of runs with equal settings and seed, only the one with more steps is used.
            by: settings to group by; empty: the fewest that distinguish the trainings.
            score: "return", a score of the task, or a column of `progress.csv`; None: the task's own score if it has
                one.
            method: of the intervals, see `intervals.mean_interval`.
            in_training: use the last score of training instead of that of new episodes.

        Raises:
            GroupingError: the environments differ, or no run has the score.
        """
        by = settings.full_names(by, runs)
        _refuse_different(runs, by)
        runs, notes = _without_repeats(runs)
        score = score or preferred(runs, in_training)
        in_training = in_training or "/" in score
        _refuse_without(score, runs, in_training)
        unfinished = [run for run in runs if not run.scores]
        if unfinished and not in_training:
            notes.append(f"no score yet: {_list_folders(unfinished)} ({_NO_SCORE})")
        names = tuple(by or settings.distinguishing(runs))
        members: dict[tuple[str, ...], list[Run]] = {}
        for run in runs:
            members.setdefault(settings.values(run, names), []).append(run)
        groups = [Group(key, tuple(of), score, method, in_training) for key, of in members.items()]
        groups.sort(key=lambda group: _rank(group, score))
        notes += _notes_on_groups(groups)
        first, chance, kwargs = runs[0], None, ""
        if len({settings.task_key(run) for run in runs}) == 1:
            chance = next((run.random[score] for run in runs if score in run.random), None)
            kwargs = " ".join(word for word in settings.values(first, ("env_kwargs",)) if word != settings.NONE)
        return cls(first.env, kwargs, names, score, groups, notes, chance)

    @property
    def most_steps(self) -> int:
        """The largest number of steps of a run, including earlier lessons."""
        return max(group.steps[1] + (group.lesson_steps or 0) for group in self.groups)

    def same_budget(self, group: Group) -> str:
        """Whether a group was trained for as many steps as the longest run: "yes", or "no" and its share."""
        lessons = group.lesson_steps
        if lessons is None or not min(group.steps):
            return "unknown"
        shares = [(steps + lessons) / max(self.most_steps, 1) for steps in group.steps]
        if shares[0] >= 1 - _BUDGET_TOLERANCE:
            return "yes"
        low, high = (f"{100 * share:.2g}" for share in shares)
        return f"no: {low} %" if low == high else f"no: {low}–{high} %"


def preferred(runs: Sequence[Run], in_training: bool = False) -> str:
    """The default score: the task's own if all runs with scores have it, else the return."""
    if in_training:
        each = [{name.removeprefix("task/") for name in run.rows[-1]} for run in runs if run.rows]
    else:
        each = [{*run.scores} for run in runs if run.scores]
    common = set.intersection(*each) if each else set()
    return next((name for name in _PREFERRED if name in common), RETURN)


def by_environment(runs: Sequence[Run], by: Sequence[str] = ()) -> list[list[Run]]:
    """Groups runs by environment; arguments named in `by` may differ within a group."""
    found: dict[tuple[object, ...], list[Run]] = {}
    for run in runs:
        found.setdefault(settings.task_key(run, [name for name in by if name != "env"]), []).append(run)
    return list(found.values())


def _refuse_different(runs: Sequence[Run], by: Sequence[str]) -> None:
    tables = by_environment(runs, by)
    if len(tables) == 1:
        return
    envs = sorted({run.env for run in runs})
    if len(envs) > 1:
        what = f"several environments ({', '.join(envs)})"
        raise GroupingError(f"{what}: compare one at a time, or add --leaderboard or --by env for one table each")
    names = [name for name in settings.differing(runs) if name.split(".")[0] in settings.ENVIRONMENT and name not in by]
    what = f"different arguments of {envs[0]} ({', '.join(names)})"
    raise GroupingError(f"{what}: group by them with --by, or add --leaderboard for one table per environment")


def _refuse_without(score: str, runs: Sequence[Run], in_training: bool) -> None:
    unfinished = [run for run in runs if not run.scores]
    if in_training:
        if not any(len(run.curve(score).values) for run in runs):
            raise GroupingError(f"no run has logged {score}; there are {', '.join(_logged(runs))}")
    elif len(unfinished) == len(runs):
        raise GroupingError(
            f"no score yet: {_list_folders(unfinished)} ({_NO_SCORE}); --in-training uses the last score of training"
        )
    elif not any(score in run.scores for run in runs):
        have = dict.fromkeys(name for run in runs for name in run.scores)
        raise GroupingError(f"no run has the score {score}; there are {', '.join(have)}")


def _without_repeats(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Each training once, and notes on the runs that are left out."""
    chosen: dict[tuple[str, int, str], Run] = {}
    notes = []
    for run in runs:
        key = (settings.training_key(run), run.seed, str(run.config.get("init_from")))
        other = chosen.get(key)
        if other is None:
            chosen[key] = run
            continue
        longer, shorter = sorted((other, run), key=lambda one: (bool(one.scores), one.steps), reverse=True)
        chosen[key] = longer
        if run.memory != "identity":  # a baseline is trained beside each memory
            notes.append(f"{shorter.folder} repeats {longer.folder} (same settings and seed) and is left out")
    return list(chosen.values()), notes


def _notes_on_groups(groups: Sequence[Group]) -> list[str]:
    """Notes on settings that differ within a group, and on single seeds."""
    notes = []
    for group in groups:
        differ = settings.differing(group.runs)
        if differ:
            more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
            notes.append(f"{group.label} mixes runs of different {', '.join(differ[:3])}{more}: add them to --by")
    single = [group.label for group in groups if len(group.scores) == 1]
    if single:
        notes.append(f"one seed, so no interval: {', '.join(single)}")
    return notes


def _rank(group: Group, score: str) -> tuple[bool, float, str]:
    mean = group.mean
    return math.isnan(mean), mean if lower_is_better(score) else -mean, group.label


def _list_folders(runs: Sequence[Run]) -> str:
    shown = [str(run.folder) for run in runs[:3]] + ([f"{len(runs) - 3} more"] if len(runs) > 3 else [])
    return " and ".join(filter(None, (", ".join(shown[:-1]), shown[-1])))


def _logged(runs: Sequence[Run]) -> list[str]:
    return sorted({name for run in runs for row in run.rows[-1:] for name in row})
