"""The study: trials shared by several processes and machines, with leases that say who runs them.

A trial belongs to the process that asked for it while that process renews its lease. If the process dies, the trial
returns to the queue with its values, and the next `ask` takes it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import json
import os
import socket
import time
import uuid
import warnings
from typing import Any

import optuna
from optuna import pruners, samplers
from optuna.trial import FrozenTrial, TrialState

from agents.run.config import Config
from agents.sweep.space import Space
from agents.sweep.storage import open_storage, readable

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
_NEEDS = {"gp": "scipy", "cmaes": "cmaes"}
_PRUNERS: dict[str, type[pruners.BasePruner]] = {
    "none": pruners.NopPruner,
    "median": pruners.MedianPruner,
    "percentile": pruners.PercentilePruner,
    "halving": pruners.SuccessiveHalvingPruner,
    "hyperband": pruners.HyperbandPruner,
    "threshold": pruners.ThresholdPruner,
}
_OURS = ("seed", "device", "threads", "data_dir", "checkpoint_every", "panels_every", "recipe", "resume", "run_dir")
"""Entries that may differ between the machines of one study, or that a trial sets itself."""


def quiet() -> None:
    """Silences Optuna's messages and its warnings about experimental options."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def make_sampler(space: Space) -> samplers.BaseSampler:
    """The sampler of a space; TPE by default.

    Raises:
        ValueError: it is unknown or does not take an option, or a grid is infinite.
    """
    if space.sampler["name"] == "grid" and space.size() is None:
        endless = next(parameter.name for parameter in space.parameters if parameter.grid() is None)
        space.wrong("sampler", f"a grid needs a step or choices for {endless}")
    needed = _NEEDS.get(space.sampler["name"])
    if needed is not None and importlib.util.find_spec(needed) is None:
        space.wrong("sampler", f"{space.sampler['name']} needs a package: python -m pip install {needed}")
    defaults = {"tpe": {"constant_liar": True}}  # parallel trials are not all drawn near each other
    sampler: samplers.BaseSampler = _make(space, "sampler", space.sampler, _SAMPLERS, defaults)
    return sampler


def make_pruner(space: Space) -> pruners.BasePruner:
    """The pruner of a space, with steps counted in reports; by default the median pruner, after a quarter of a curve.

    Raises:
        ValueError: it is unknown or does not take an option.
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
    taken = [option for option in inspect.signature(known[name]).parameters if option not in ("args", "kwargs")]
    for option in options:
        if option not in taken:
            space.wrong(f"{entry}.{option}", f"{name} does not take it; known are {', '.join(taken) or 'none'}")
    try:
        return known[name](**{**defaults.get(name, {}), **options})
    except (TypeError, ValueError, ImportError) as error:
        space.wrong(entry, f"{name}: {' '.join(str(error).split())}")


def rehearse(space: Space) -> None:
    """Draws some trials in memory, because samplers and pruners check most options only then.

    Raises:
        ValueError: an option is of the wrong type or out of range.
    """
    for entry, options in (("sampler", space.sampler), ("pruner", space.pruner)):
        if len(options) == 1:  # its name
            continue
        study = optuna.create_study(
            sampler=make_sampler(space) if entry == "sampler" else samplers.RandomSampler(0), pruner=make_pruner(space)
        )
        try:
            for number in range(12):  # TPE draws ten at random first
                trial = study.ask()
                space.suggest(trial)
                for step in range(1, space.reports + 1) if entry == "pruner" else ():
                    trial.report(number / step, step)
                    trial.should_prune()
                with contextlib.suppress(RuntimeError):  # raised by a finished grid
                    study.tell(trial, float(number))
        except Exception as error:
            space.wrong(entry, f"{options['name']} fails with its options: {' '.join(str(error).split())}")


def open_study(space: Space, config: Config, where: str) -> optuna.Study:
    """The study of this name, created if missing.

    Raises:
        ValueError: it exists and searches another space, or its storage is damaged.
    """
    sampler, pruner = make_sampler(space), make_pruner(space)
    rehearse(space)
    storage = open_storage(where)
    with readable(where):
        study = optuna.create_study(
            study_name=space.name,
            storage=storage,
            sampler=sampler,
            pruner=pruner,
            direction=optuna.study.StudyDirection[space.direction.upper()],
            load_if_exists=True,
        )
        theirs = study.user_attrs.get("definition")
        study.get_trials(deepcopy=False)
    ours = definition(space, config)
    if theirs is None:
        study.set_user_attr("definition", ours)
    elif theirs != ours:
        differ = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
        what = ", ".join(f"{name} (there {theirs.get(name)}, here {ours.get(name)})" for name in differ)
        raise ValueError(f"the study {space.name} searches another space: {what}; choose another name or --run-dir")
    return study


def definition(space: Space, config: Config) -> dict[str, Any]:
    """The settings shared by all trials of a study, flat, as stored in JSON."""
    entries = config.entries().items()
    fixed = {f"fixed.{name}": value for name, value in entries if name not in _OURS and name not in space}
    searched = {f"space.{one.name}": {k: v for k, v in vars(one).items() if k != "kind"} for one in space.parameters}
    goal = {name: getattr(space, name) for name in ("seeds", "objective", "direction", "reports")}
    flat: dict[str, Any] = json.loads(json.dumps({**fixed, **searched, **goal}, default=str))
    return flat


def counted(study: optuna.Study) -> list[FrozenTrial]:
    """The trials of a study, without surplus ones that two processes asked for at the same time."""
    return [trial for trial in study.get_trials(deepcopy=False) if "surplus" not in trial.user_attrs]


class Lease:
    """A lease on one trial; it expires `GRACE_S` seconds after its last renewal."""

    def __init__(self, study: optuna.Study, trial_id: int) -> None:
        self._storage, self.trial_id = study._storage, trial_id
        self._token = uuid.uuid4().hex
        self._write()

    def _write(self) -> None:
        self._renewed = time.monotonic()
        lease = {"token": self._token, "host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}
        self._storage.set_trial_user_attr(self.trial_id, "lease", lease)

    def renew(self) -> bool:
        """Renews the lease if due; False if another process has taken the trial."""
        if time.monotonic() - self._renewed < RENEW_S:
            return True
        if not self.held():
            return False
        self._write()
        return True

    def held(self) -> bool:
        """Whether this process still holds the trial."""
        trial = self._storage.get_trial(self.trial_id)
        lease = trial.user_attrs.get("lease", {})
        return trial.state == TrialState.RUNNING and lease.get("token") == self._token

    def give_back(self) -> None:
        """Returns the trial to the queue; the next `ask` takes it with its values."""
        if self.held():
            self._storage.set_trial_state_values(self.trial_id, TrialState.WAITING)


def left_behind(trial: FrozenTrial) -> bool:
    """Whether a running trial's process is gone, or its lease has expired."""
    lease = trial.user_attrs.get("lease")
    if lease is None:  # the lease is written a moment after the trial is asked for
        return trial.datetime_start is not None and time.time() - trial.datetime_start.timestamp() > GRACE_S
    if lease["host"] == socket.gethostname() and not alive(lease["pid"]):
        return True
    return time.time() - float(lease["time"]) > GRACE_S


def alive(process: int) -> bool:
    """Whether a process of this machine runs; True if that cannot be determined."""
    if os.name == "posix":
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
        if left_behind(trial):
            put_back(study, trial._trial_id)


def put_back(study: optuna.Study, trial_id: int) -> None:
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
