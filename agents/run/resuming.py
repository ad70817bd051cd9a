"""Which settings may change when a run is resumed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

from agents import LEARNERS, CheckpointError
from agents.checkpoint import read_manifest
from agents.checkpoint.encoding import encode
from agents.checkpoint.opening import open_checkpoint
from agents.common.arguments import format_setting
from agents.run.config import Config

SUMMARY = "summary.json"
"""The file with a complete run's scores."""

CHANGEABLE = (
    *("anneal", "bptt_segment", "total_timesteps", "env_kwargs", "wrappers", "vector", "device", "threads", "fast"),
    *("precision", "data_dir", "checkpoint_every", "panels_every", "eval_episodes", "eval_steps", "baseline"),
    *("progress", "follows", "imports"),
)
"""Entries that may change, besides hyper-parameters; `env_kwargs` and `wrappers` only if the spaces stay the same."""


CHANGES_TRAINING = ("anneal", "total_timesteps", "env_kwargs", "wrappers")
"""Those of `CHANGEABLE` that change what is trained."""


def changeable_hyperparameters(config: Config) -> list[str]:
    """Hyper-parameters that may change; they take effect from the next rollout on."""
    return [name for name in vars(config.learner) if name not in config.learner.fixed]


def refuse_changes(config: Config, saved: Config) -> None:
    """Refuses flags that cannot change when a run is resumed.

    Args:
        config: configuration with the flags applied.
        saved: the run's own configuration.

    Raises:
        ValueError: there is one.
    """
    for name, before in saved.entries().items():
        now = config.entries().get(name, before)
        if now == before or name in (*changeable_hyperparameters(saved), *CHANGEABLE, "run_dir", "resume"):
            continue
        had = "without one" if before is None else f"with {format_setting(before)}"
        raise ValueError(
            f"--{name.replace('_', '-')} is {format_setting(now)}, but {config.run_dir} is a run {had}, which cannot "
            "change on resume: leave it out, or start a new run, with --init-from for the weights"
        )
    now, before = config.learner.n_steps, saved.learner.n_steps
    if bool(now) != bool(before):
        raise ValueError(
            f"--n-steps is {now}, but {config.run_dir} is a run with {before}: 0 (whole episodes) "
            "cannot be resumed as another number, nor the reverse"
        )


def changed_arguments(config: Config, checkpoint: Path) -> dict[str, Any]:
    """Constructor arguments that the run's configuration changes with respect to a checkpoint.

    Raises:
        CheckpointError: the checkpoint cannot be read, or belongs to another agent than the configuration.
    """
    with open_checkpoint(checkpoint) as source:
        manifest = read_manifest(source)
    stored = manifest.get("config")
    policy = stored.get("policy_kwargs") if isinstance(stored, dict) else None
    if not isinstance(stored, dict) or not isinstance(policy, dict):
        raise CheckpointError(f"{checkpoint} is incomplete: expected the arguments of a learner and its policy")
    found: dict[str, Any] = {"algo": manifest.get("algorithm"), "memory": policy.get("memory")}
    expected: dict[str, Any] = {"algo": LEARNERS[config.algo].__name__, "memory": config.memory}
    memory_kwargs = policy.get("memory_kwargs") or {}
    if found == expected and memory_kwargs != (wanted := encode(config.memory_kwargs)):
        found, expected = {"memory_kwargs": memory_kwargs}, {"memory_kwargs": wanted}
    arguments = config.learner_kwargs()
    for name in ("seed", *config.learner.fixed):
        if name in stored and name in arguments:
            found[name], expected[name] = stored[name], arguments[name]
    for name, value in found.items():
        if value != expected[name]:
            raise CheckpointError(
                f"{checkpoint} is of {name} {format_setting(value)}, but the run's config.yaml says "
                f"{format_setting(expected[name])}: they do not belong to the same run"
            )
    changed = {
        name: arguments[name]
        for name in changeable_hyperparameters(config)
        if name not in stored or encode(arguments[name]) != stored[name]  # an older Engram did not have all of them
    }
    if config.learner.n_steps == 0:
        changed.pop("n_steps", None)  # the checkpoint stores the number of steps
    policy_kwargs = config.own_classes().get("policy_kwargs", {})
    if policy.get("bptt_segment") != config.bptt_segment:
        policy_kwargs["bptt_segment"] = config.bptt_segment
    return {**changed, "policy_kwargs": policy_kwargs} if policy_kwargs else changed


def what_changed(config: Config, saved: Config, training: bool = False) -> str:
    """The entries changed by flags, as "learning_rate 3e-4 → 1e-5, ..."; empty if there are none.

    Args:
        config: configuration with the flags applied.
        saved: the run's own configuration.
        training: only those that change what is trained.
    """
    before, after = saved.entries(), config.entries()
    among = (*changeable_hyperparameters(config), *(CHANGES_TRAINING if training else CHANGEABLE))
    names = [name for name in among if before[name] != after[name]]
    return ", ".join(f"{name} {format_setting(before[name])} → {format_setting(after[name])}" for name in names)


def is_complete(folder: Path, checkpoint: Path, config: Config, saved: Config) -> bool:
    """Whether a run is complete: `checkpoint` has all steps, and the run's summary holds the requested score.

    Raises:
        ValueError: it is, but flags change what is trained.
    """
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        steps = read_manifest(checkpoint)["counters"]["num_timesteps"]
    except (OSError, ValueError, KeyError, TypeError, CheckpointError):
        return False
    if not isinstance(summary, dict) or not isinstance(steps, int):
        return False
    lacks_baseline = config.baseline and config.memory != "identity" and summary.get("identity_mean_return") is None
    rescores = (config.eval_episodes, config.eval_steps) != (saved.eval_episodes, saved.eval_steps)
    if steps < config.total_timesteps or lacks_baseline or rescores:
        return False
    longer = dataclasses.replace(config, total_timesteps=saved.total_timesteps)
    if changed := what_changed(longer, saved, training=True):
        raise ValueError(
            f"{folder} is complete, so this has no effect: {changed}; expected also --total-timesteps with more than "
            f"{steps:,} steps, or one of its earlier checkpoints"
        )
    return True


def set_aside_summary(folder: Path) -> None:
    """Renames the summary of a run that trains on: its scores are those of the agent before."""
    with contextlib.suppress(FileNotFoundError):
        (folder / SUMMARY).replace(folder / f"set_aside_{SUMMARY}")


def set_aside_later(checkpoint: Path) -> list[Path]:
    """Renames checkpoints later than the resumed one: the run will write these steps again, with other results."""
    renamed = []
    for later in sorted(checkpoint.parent.glob("step_*")):
        if later.name > checkpoint.name:
            target, number = later.with_name(f"set_aside_{later.name}"), 1
            while target.exists():
                number += 1
                target = later.with_name(f"set_aside_{later.name}_{number}")
            renamed.append(later.rename(target))
    return renamed
