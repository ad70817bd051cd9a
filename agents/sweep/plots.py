"""Plots of a sweep: objective over trials, learning curves, and parameter importances."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from agents.sweep.space import Space
from agents.sweep.study import counted

_BEST = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")  # the colour-blind safe palette of Okabe and Ito
_REST, _PRUNED, _FAILED = "#8a8f98", "#c3c7cd", "#b00020"
_ENOUGH = 4
"""Minimum number of complete trials for importances."""


def figures(study: optuna.Study, space: Space, total_timesteps: int) -> dict[str, Figure]:
    """Draws the figures `history`, `curves` and `importance`."""
    trials = counted(study)
    return {
        "history": history(trials, space),
        "curves": curves(trials, space, total_timesteps),
        "importance": importance(study, trials, space),
    }


def _axes(title: str, height: float = 4.2) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _label(space: Space) -> str:
    return space.objective if len(space.seeds) == 1 else f"{space.objective}, mean of {len(space.seeds)} seeds"


def _of(trials: list[FrozenTrial], state: TrialState) -> list[FrozenTrial]:
    return [trial for trial in trials if trial.state == state]


def history(trials: list[FrozenTrial], space: Space) -> Figure:
    """The value of every trial in starting order, and the best so far."""
    figure, axes = _axes(f"{space.name}: {len(trials)} trials")
    complete, pruned = _of(trials, TrialState.COMPLETE), _of(trials, TrialState.PRUNED)
    pruned = [trial for trial in pruned if trial.value is not None]
    if complete:
        number = [trial.number for trial in complete]
        value = np.array([float(trial.value or 0.0) for trial in complete])
        best = np.maximum.accumulate(value) if space.direction == "maximize" else np.minimum.accumulate(value)
        last = max(trial.number for trial in trials)
        axes.step([*number, last], [*best, best[-1]], where="post", color=_BEST[1], label="best so far")
        for trial in complete:
            seeds = list(trial.user_attrs.get("results", {0: trial.value}).values())
            axes.vlines(trial.number, min(seeds), max(seeds), color=_BEST[0], alpha=0.35, linewidth=3)
        kind = "complete" + (", with the range of its seeds" if len(space.seeds) > 1 else "")
        axes.plot(number, value, "o", color=_BEST[0], label=kind)
    if pruned:
        axes.plot(
            [trial.number for trial in pruned],
            [float(trial.value or 0.0) for trial in pruned],
            "v",
            color=_REST,
            markerfacecolor="none",
            label="pruned, value when it was stopped",
        )
    for index, trial in enumerate(_of(trials, TrialState.FAIL)):
        axes.axvline(trial.number, color=_FAILED, linestyle=":", label="failed" if index == 0 else None)
    axes.set(xlabel="trial", ylabel=_label(space))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9)
    return figure


def curve(trial: FrozenTrial, space: Space, total_timesteps: int) -> tuple[list[float], list[float]]:
    """Steps and values of a trial's curve: at each point the mean over the seeds that reached it."""
    latest: dict[int, float] = {}
    for number in sorted(trial.intermediate_values):
        latest[(number - 1) % space.reports + 1] = trial.intermediate_values[number]
    points = sorted(latest)
    return [total_timesteps * point / space.reports for point in points], [latest[point] for point in points]


def curves(trials: list[FrozenTrial], space: Space, total_timesteps: int) -> Figure:
    """The curve of every trial. The best are labelled; pruned trials end where they were pruned."""
    figure, axes = _axes(f"{space.name}: {space.objective} while training", height=4.8)
    sign = -1 if space.direction == "maximize" else 1
    order = sorted(_of(trials, TrialState.COMPLETE), key=lambda trial: (sign * float(trial.value or 0.0), trial.number))
    named = {trial.number: color for trial, color in zip(order, _BEST, strict=False)}
    seen = set()
    for trial in [*_of(trials, TrialState.PRUNED), *_of(trials, TrialState.RUNNING), *reversed(order)]:
        steps, values = curve(trial, space, total_timesteps)
        if not steps:
            continue
        if trial.number in named:
            label = f"trial {trial.number}: {trial.value:.4g}"
            axes.plot(steps, values, color=named[trial.number], linewidth=1.8, label=label)
            continue
        kind = {TrialState.PRUNED: "pruned", TrialState.RUNNING: "running"}.get(trial.state, "others")
        color = _PRUNED if kind == "pruned" else _REST
        style = ":" if kind == "running" else "-"
        axes.plot(steps, values, style, color=color, linewidth=1, label=None if kind in seen else kind)
        if kind == "pruned":
            axes.plot(steps[-1], values[-1], "x", color=_REST, markersize=5)
        seen.add(kind)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        best_first = [*range(len(labels) - 1, -1, -1)]
        axes.legend([handles[i] for i in best_first], [labels[i] for i in best_first], frameon=False, fontsize=9)
    axes.set(xlabel="environment steps", ylabel=_label(space), xlim=(0, total_timesteps))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    return figure


def importances(study: optuna.Study, trials: list[FrozenTrial]) -> dict[str, float]:
    """Importance of each parameter for the better trials (PED-ANOVA), largest first.

    Empty if too few trials are complete, or all have the same value.
    """
    complete = _of(trials, TrialState.COMPLETE)
    if len(complete) < _ENOUGH or len({trial.value for trial in complete}) < 2:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about few trials; the picture states their number
        return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())


def importance(study: optuna.Study, trials: list[FrozenTrial], space: Space) -> Figure:
    """Bars of `importances`."""
    found = importances(study, trials)
    count = len(_of(trials, TrialState.COMPLETE))
    title = f"{space.name}: what mattered for {space.objective} (PED-ANOVA over {count} complete trials)"
    figure, axes = _axes(title, height=1.4 + 0.4 * max(len(found), 3))
    if not found:
        text = f"needs {_ENOUGH} complete trials with different values"
        axes.text(0.5, 0.5, text, ha="center", va="center", color=_REST, transform=axes.transAxes)
        axes.set_axis_off()
        return figure
    names, shares = list(reversed(found)), list(reversed(found.values()))
    bars: Any = axes.barh(names, shares, color=_BEST[0], height=0.65)
    axes.bar_label(bars, labels=[f"{share:.2f}" for share in shares], padding=4, fontsize=9)
    axes.set(xlabel="share of importance", xlim=(0, 1.1 * max(shares)))
    return figure
