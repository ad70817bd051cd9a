"""Reports of a sweep: `trials.csv`, `best.yaml`, figures, and a table of the best trials."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import optuna
import yaml
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from rich.table import Table

from agents.common.files import replace_file
from agents.run.config import Config
from agents.sweep.space import Space
from agents.sweep.study import PER_TRIAL

_ENOUGH = 4
"""Minimum number of complete trials for importances."""
_NOT_IN_A_RECIPE = (*PER_TRIAL, "baseline", "progress")


def ranked(study: optuna.Study) -> list[FrozenTrial]:
    """The complete trials, best first; ties in order of their numbers."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    sign = -1 if study.direction == StudyDirection.MAXIMIZE else 1
    return sorted(complete, key=lambda trial: (sign * float(trial.value or 0.0), trial.number))


def _count_finished(study: optuna.Study) -> int:
    return sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))


def write(study: optuna.Study, space: Space, config: Config, folder: Path, pictures: bool = True) -> None:
    """Writes all files of the sweep's folder, each atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "trials.csv", trials_csv(study, space))
    best = ranked(study)
    if best:
        replace_file(folder / "best.yaml", best_yaml(best[0], _count_finished(study), space, config))
    if pictures:
        draw(study, space, folder)


def draw(study: optuna.Study, space: Space, folder: Path) -> None:
    """Writes Optuna's pictures of the study: `history.png`, `curves.png` and `importance.png`.

    `importance.png` needs at least four complete trials with different values.
    """
    from optuna.visualization import matplotlib as plots

    drawings: dict[str, Callable[[], Any]] = {
        "history": lambda: plots.plot_optimization_history(study, target_name=space.objective),
        "curves": lambda: plots.plot_intermediate_values(study),
        "importance": lambda: plots.plot_param_importances(study, evaluator=PedAnovaImportanceEvaluator()),
    }
    values = [trial.value for trial in ranked(study)]
    if len(values) < _ENOUGH or len({*values}) < 2:
        del drawings["importance"]
    plt.switch_backend("agg")
    with matplotlib.rc_context(), warnings.catch_warnings():  # Optuna sets a style for all figures
        warnings.simplefilter("ignore")  # about few trials
        for name, drawing in drawings.items():
            axes = drawing()
            title = axes.get_title(loc="left") or axes.get_title()
            axes.set_title("")
            axes.set_title(f"{space.name}: {title}", loc="left")
            if name == "curves":
                axes.set(xlabel=f"report ({space.reports} per seed)", ylabel=space.objective)
                if axes.get_legend() and len(axes.get_lines()) > 20:
                    axes.get_legend().remove()  # it would be taller than the figure
            buffer = io.BytesIO()
            axes.figure.savefig(buffer, format="png", dpi=120, bbox_inches="tight")
            plt.close(axes.figure)
            replace_file(folder / f"{name}.png", buffer.getvalue())


def trials_csv(study: optuna.Study, space: Space) -> str:
    """One row per trial: state, value, each seed's value, parameters, seconds, and failure."""
    text = io.StringIO()
    names = [parameter.name for parameter in space.parameters]
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["trial", "state", "value", *(f"seed_{seed}" for seed in space.seeds), *names, "seconds", "error"])
    for trial in study.get_trials(deepcopy=False):
        results = trial.user_attrs.get("results", {})
        table.writerow(
            [
                trial.number,
                trial.state.name.lower(),
                _blank(trial.value if trial.state.is_finished() else None),
                *(_blank(results.get(str(seed))) for seed in space.seeds),
                *(_blank(trial.params.get(name)) for name in names),
                _blank(None if trial.duration is None else round(trial.duration.total_seconds(), 1)),
                trial.user_attrs.get("error", ""),
            ]
        )
    return text.getvalue()


def _blank(value: Any) -> Any:
    return "" if value is None else value


def best_yaml(best: FrozenTrial, count: int, space: Space, config: Config) -> str:
    """The best trial as a recipe: the settings that differ from the defaults, and the expected score."""
    chosen = space.configure(config, best.params).entries()
    plain = Config(algo=chosen["algo"]).entries() | dict.fromkeys(("env", "memory", "algo"))
    data = {name: v for name, v in chosen.items() if name not in _NOT_IN_A_RECIPE and v != plain[name]}
    seeds = ", ".join(f"{seed}: {value:.4g}" for seed, value in best.user_attrs.get("results", {}).items())
    data["expect"] = (
        f"Trial {best.number}, the best of {count} of the sweep {space.name}: {space.objective} {best.value:.4g} "
        f"(seed {seeds}). The best of many trials is partly luck; expect less with other seeds."
    )
    return yaml.safe_dump(data, sort_keys=False, width=100, allow_unicode=True)


def table(study: optuna.Study, space: Space, rows: int = 5) -> Table:
    """The best trials with their values and parameters."""
    drawn = Table(title=f"best of {_count_finished(study)} trials by {space.objective}", title_justify="left")
    names = [parameter.name for parameter in space.parameters]
    seeds = [f"seed {seed}" for seed in space.seeds] if len(space.seeds) > 1 else []
    for title in ("trial", space.objective, *seeds, *names):
        short = title.removeprefix("memory_kwargs.").removeprefix("env_kwargs.")
        drawn.add_column(short, justify="right", overflow="fold")
    for trial in ranked(study)[:rows]:
        results = trial.user_attrs.get("results", {})
        each = [number(results.get(str(seed))) for seed in space.seeds] if seeds else []
        drawn.add_row(str(trial.number), number(trial.value), *each, *(number(trial.params.get(n)) for n in names))
    return drawn


def number(value: Any) -> str:
    """A value as text, with four significant digits; "–" for None."""
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
