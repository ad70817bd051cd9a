"""The study: trials that several processes and machines share, in a journal file or a database.

The process that runs a trial renews its lease. If the process dies, the trial returns to the queue with its values, and
the next `ask` takes it. (Optuna's heartbeats do the same for databases only, and they start a new trial instead.)
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import json
import os
import socket
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna import pruners, samplers
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState

from agents.run.config import Config
from agents.sweep.space import Space

RENEW_S = 30.0
"""Seconds between renewals of a lease."""
GRACE_S = 180.0
"""Seconds without renewal after which a lease expires."""
MAX_RESTARTS = 3
"""How often a trial whose process died is retried."""

_SAMPLERS: dict[str, type[samplers.BaseSampler]] = {
    "tpe": samplers.TPESampler,
    "random": samplers.RandomSampler,
    "grid": samplers.BruteForceSampler,
    "gp": samplers.GPSampler,
    "cmaes": samplers.CmaEsSampler,
    "qmc": samplers.QMCSampler,
}
_PRUNERS: dict[str, type[pruners.BasePruner]] = {
    "none": pruners.NopPruner,
    "median": pruners.MedianPruner,
    "percentile": pruners.PercentilePruner,
    "halving": pruners.SuccessiveHalvingPruner,
    "hyperband": pruners.HyperbandPruner,
    "threshold": pruners.ThresholdPruner,
}
PER_TRIAL = (
    *("seed", "device", "threads", "data_dir", "checkpoint_every", "panels_every"),
    *("recipe", "resume", "run_dir"),
)
"""Entries that may differ between the machines of a study, or that each trial sets."""


def silence_optuna() -> None:
    """Silences Optuna's messages and its warnings about experimental options."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def make_sampler(space: Space) -> samplers.BaseSampler:
    """The sampler of a space; TPE by default.

    Raises:
        ValueError: the sampler or one of its options is unknown, or a grid is infinite.
    """
    if space.sampler["name"] == "grid" and space.size() is None:
        endless = next(parameter.name for parameter in space.parameters if parameter.grid() is None)
        space.wrong("sampler", f"a grid needs a step or choices for {endless}")
    if space.sampler["name"] == "cmaes" and importlib.util.find_spec("cmaes") is None:
        space.wrong("sampler", "cmaes needs a package: python -m pip install cmaes")
    defaults = {"tpe": {"constant_liar": True}}  # parallel trials are not all drawn near each other
    sampler: samplers.BaseSampler = _make(space, "sampler", space.sampler, _SAMPLERS, defaults)
    return sampler


def make_pruner(space: Space) -> pruners.BasePruner:
    """The pruner of a space, with steps counted in reports; by default the median pruner, after a quarter of a curve.

    Raises:
        ValueError: the pruner or one of its options is unknown.
    """
    defaults: dict[str, dict[str, Any]] = {
        "median": {"n_warmup_steps": space.reports // 4},
        "percentile": {"n_warmup_steps": space.reports // 4},
        "halving": {"min_resource": max(1, space.reports // 5)},
        "hyperband": {"min_resource": max(1, space.reports // 5), "max_resource": space.reports * len(space.seeds)},
    }
    pruner: pruners.BasePruner = _make(space, "pruner", space.pruner, _PRUNERS, defaults)
    return pruner


def _make(space: Space, entry: str, body: dict[str, Any], known: dict[str, Any], defaults: dict[str, Any]) -> Any:
    name = body["name"]
    options = {key: value for key, value in body.items() if key != "name"}
    if name not in known:
        space.wrong(entry, f"{name} is unknown; known are {', '.join(known)}")
    known_options = [option for option in inspect.signature(known[name]).parameters if option not in ("args", "kwargs")]
    for option in options:
        if option not in known_options:
            space.wrong(
                f"{entry}.{option}", f"{name} has no such option; known are {', '.join(known_options) or 'none'}"
            )
    try:
        return known[name](**{**defaults.get(name, {}), **options})
    except (TypeError, ValueError, ImportError) as error:
        space.wrong(entry, f"{name}: {' '.join(str(error).split())}")


def draw_test_trials(space: Space) -> None:
    """Draws some trials in memory, because samplers and pruners check most options only then.

    Raises:
        ValueError: an option is of the wrong type or out of range.
    """

    def objective(trial: optuna.Trial) -> float:
        space.suggest(trial)
        for step in range(1, space.reports + 1):
            trial.report(trial.number / step, step)
            trial.should_prune()
        return float(trial.number)

    plain: tuple[Any, Any] = samplers.RandomSampler(0), pruners.NopPruner()
    for entry, body, parts in (
        ("sampler", space.sampler, (make_sampler(space), plain[1])),
        ("pruner", space.pruner, (plain[0], make_pruner(space))),
    ):
        if {*body} == {"name"}:  # the defaults work
            continue
        study = optuna.create_study(sampler=parts[0], pruner=parts[1])
        try:
            study.optimize(objective, n_trials=12)  # TPE draws ten at random first
        except Exception as error:
            space.wrong(entry, f"{body['name']} fails with its options: {' '.join(str(error).split())}")


def default_storage(folder: Path) -> str:
    """The journal of a sweep's folder."""
    return str(folder / "study.journal")


def open_storage(where: str) -> BaseStorage:
    """Opens a database (`sqlite:///...`, `postgresql://...`) or a journal file.

    Raises:
        ValueError: the storage cannot be opened or is damaged; the message has its name and advice.
    """
    with readable(where):
        if "://" in where:
            return optuna.storages.get_storage(where)
        if os.path.exists(where) and not os.path.isfile(where):
            raise ValueError("it is not a regular file")
        lock = JournalFileOpenLock(where) if os.name == "nt" else None  # symbolic links need special rights on Windows
        storage = JournalStorage(JournalFileBackend(where, lock))  # fails if it holds anything else
        writing = lock or JournalFileSymlinkLock(where)
        writing.acquire()
        try:
            _drop_incomplete(Path(where))
        finally:
            writing.release()
        return storage


@contextlib.contextmanager
def readable(where: str) -> Iterator[None]:
    """Context manager that turns any error of a storage into a one-line `ValueError` with its name and advice.

    Every database has its own error types, and an inconsistent journal fails an assertion.
    """
    try:
        yield
    except Exception as error:
        if str(error).startswith("cannot open the storage"):
            raise
        hidden = "://" in where and not where.startswith("sqlite")  # it may hold a password
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise ValueError(
            f"cannot open the storage {where.split('://')[0] if hidden else where}: {reason}; check that it exists and "
            "is intact, or start again with another --run-dir or --storage"
        ) from error


def _drop_incomplete(file: Path) -> None:
    """Removes an incomplete last line, as a power loss leaves it; appending to it would make the journal unreadable."""
    content = file.read_bytes()
    whole = content.rfind(b"\n") + 1
    if content and not whole:
        raise ValueError("it is not a journal")
    if whole < len(content):
        with open(file, "rb+") as journal:
            journal.truncate(whole)
        warnings.warn(f"{file}: the last entry is incomplete, perhaps after a power loss, and is dropped", stacklevel=2)


def open_study(space: Space, config: Config, where: str) -> optuna.Study:
    """The study of this name, created if missing.

    Raises:
        ValueError: the study exists and searches another space, or its storage is damaged.
    """
    sampler, pruner = make_sampler(space), make_pruner(space)
    draw_test_trials(space)
    with readable(where):
        study = optuna.create_study(
            study_name=space.name,
            storage=open_storage(where),
            sampler=sampler,
            pruner=pruner,
            direction=space.direction,
            load_if_exists=True,
        )
        saved = study.user_attrs.get("definition")
        study.get_trials(deepcopy=False)
    own = definition(space, config)
    if saved is None:
        study.set_user_attr("definition", own)
    elif saved != own:
        differ = sorted(name for name in {*own, *saved} if own.get(name) != saved.get(name))
        what = ", ".join(f"{name} (there {saved.get(name)}, here {own.get(name)})" for name in differ)
        raise ValueError(f"the study {space.name} searches another space: {what}; choose another name or --run-dir")
    return study


def definition(space: Space, config: Config) -> dict[str, Any]:
    """The settings shared by all trials of a study, flat, as stored in JSON."""
    entries = config.entries().items()
    fixed = {f"fixed.{name}": value for name, value in entries if name not in PER_TRIAL and name not in space}
    searched = {f"space.{one.name}": {k: v for k, v in vars(one).items() if k != "kind"} for one in space.parameters}
    goal = {name: getattr(space, name) for name in ("seeds", "objective", "direction", "reports")}
    flat: dict[str, Any] = json.loads(json.dumps({**fixed, **searched, **goal}, default=str))
    return flat


def renew(study: optuna.Study, trial_id: int) -> None:
    """Renews the lease of a trial that this process runs."""
    lease = {"host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}
    with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):  # it ended a moment ago
        study._storage.set_trial_user_attr(trial_id, "lease", lease)


def is_abandoned(trial: FrozenTrial) -> bool:
    """Whether a running trial's process is gone: on this machine by its number, on others by the age of its lease."""
    lease = trial.user_attrs.get("lease")
    if lease is None:  # the lease is written a moment after the trial is asked for
        return trial.datetime_start is not None and time.time() - trial.datetime_start.timestamp() > GRACE_S
    if lease["host"] == socket.gethostname() and os.name == "posix":
        return not alive(lease["pid"])
    return time.time() - float(lease["time"]) > GRACE_S


def alive(process: int) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True


def requeue(study: optuna.Study) -> None:
    """Returns the trials of dead processes to the queue."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if is_abandoned(trial):
            requeue_trial(study, trial._trial_id)


def requeue_trial(study: optuna.Study, trial_id: int) -> None:
    """Returns a trial whose process died to the queue; after too many retries it has failed."""
    restarts = study._storage.get_trial(trial_id).user_attrs.get("restarts", 0) + 1
    with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):  # another process finished it first
        if restarts > MAX_RESTARTS:
            fail(study, trial_id, f"its process died {restarts} times")
        else:
            study._storage.set_trial_user_attr(trial_id, "restarts", restarts)
            study._storage.set_trial_state_values(trial_id, TrialState.WAITING)


def fail(study: optuna.Study, trial_id: int, why: str) -> None:
    """Marks a trial as failed."""
    study._storage.set_trial_user_attr(trial_id, "error", why)
    study._storage.set_trial_state_values(trial_id, TrialState.FAIL)
