"""One run from its configuration to its score."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock
from rich.console import Console
from rich.markup import escape
from stable_baselines3.common.callbacks import BaseCallback, CallbackList

from agents import LEARNERS, MemoryOnPolicyAlgorithm
from agents.checkpoint import NewEpisodesWarning, latest_checkpoint, load_weights
from agents.common.files import replace_file
from agents.common.invocation import command_for, quoted
from agents.common.terminal import PLAIN_TEXT
from agents.environments import import_modules
from agents.evaluation import Score, evaluate, random_score
from agents.evaluation.tables import print_scores
from agents.run.callbacks import CheckpointEvery, DescribeRun, PicturePanels, WallClock, git_state
from agents.run.config import Config
from agents.run.display import RunDisplay, format_duration
from agents.run.failures import ErrorContext
from agents.run.folder import (
    checkpoint_folder,
    describe_saved,
    folder_of,
    holds_run,
    lock_folder,
    newest_checkpoint,
    resume_command,
)
from agents.run.logs import rows_up_to, run_logger, training_time_until, write_scores
from agents.run.recipes import load_config
from agents.run.resuming import (
    changed_arguments,
    is_complete,
    refuse_changes,
    set_aside_later,
    set_aside_summary,
    what_changed,
)
from agents.scale import distributed
from agents.scale.devices import device_of
from agents.scale.distributed import RankLostError
from policies.native.allocator import tune_allocator


@dataclass(frozen=True)
class Start:
    """The result of `prepare`."""

    folder: Path
    resumed: str = ""
    """For a resumed run: its start step and the changed settings."""
    complete: bool = False
    """Whether the run is already complete."""


def train(config: Config, checkpoint: Path | None, console: Console) -> int:
    """Runs a parsed configuration; returns the exit status.

    Raises:
        CommandError: the run cannot be started or finished.
    """
    torch.set_num_threads(config.threads)
    if config.data_dir is not None:
        os.environ["ENGRAM_DATA"] = str(config.data_dir)
    tune_allocator()
    locks: list[FileLock | None] = []
    try:
        with ErrorContext("building", config.env).user_errors():
            distributed.take_device(device_of(config.device))
            start = distributed.from_first(lambda: prepare(config, checkpoint, locks))
        config.run_dir, config.resume = start.folder, None
        return _train(config, checkpoint, console, start)
    finally:
        for lock in locks:
            if lock is not None:
                lock.release()


def _train(config: Config, checkpoint: Path | None, console: Console, start: Start) -> int:
    folder = start.folder
    parts = [f"recipe {config.recipe}" if config.recipe else "default values", str(folder)]
    if distributed.size() > 1:
        parts.append(f"{distributed.size()} ranks")
    if distributed.restarts() and checkpoint:
        parts.append(f"restarted from {checkpoint.name}")
    title = f"[bold]{escape(config.memory)}[/] with {config.algo} on {escape(config.env)}"
    console.print(" · ".join([title, *map(escape, parts)]), highlight=False, soft_wrap=True)
    if start.complete:
        console.print(f"complete; to train for longer: {resume_command(folder)} --total-timesteps N", **PLAIN_TEXT)
        return 0
    if start.resumed:
        console.print(start.resumed, **PLAIN_TEXT)
    if config.follows and not (config.init_from or checkpoint):
        easier = f"add --lessons, or train --recipe {config.follows} and then --init-from its folder"
        console.print(f"this task is rarely learned from scratch: {easier}", **PLAIN_TEXT)

    model, wall, timed = run(config, folder, console, checkpoint)
    if model.stop_requested:
        console.print(
            f"stopped at {model.num_timesteps:,} steps; continue with: {resume_command(folder)}", **PLAIN_TEXT
        )
        return 130
    result = score(config, model, console)
    identity = None
    if config.baseline and config.memory != "identity":
        memoryless = dataclasses.replace(_memoryless(config), total_timesteps=_steps_of_baseline(config, model))
        before = distributed.from_first(lambda: newest_checkpoint(folder / "identity") if checkpoint else None)
        identity_model = run(memoryless, folder / "identity", console, before).model
        if identity_model.stop_requested:
            console.print(f"results are in {folder}; the memoryless agent was stopped", **PLAIN_TEXT)
        else:
            identity = score(memoryless, identity_model, console)
    elif config.memory == "identity":
        identity = result
    summary = {
        "mean_return": None if result is None else result.mean,
        "ci95": None if result is None else result.as_dict()["ci95"],
        "identity_mean_return": None if identity is None else identity.mean,
        "metrics": {} if result is None else result.metrics,
        "identity_metrics": {} if identity is None else identity.metrics,
        "env_steps": model.num_timesteps,
        "episodes": model._episode_num,
        "wall_s": round(wall, 2),
        "steps_per_s": round(timed / wall, 1) if timed else None,
    }
    distributed.from_first(lambda: report(config, console, result, identity, summary))
    return 0


def _memoryless(config: Config) -> Config:
    """The configuration of the memoryless agent that is trained after this one."""
    return dataclasses.replace(config, memory="identity", memory_kwargs={}, precision="float32", init_from=None)


def _check_baseline(config: Config, model: MemoryOnPolicyAlgorithm) -> None:
    """Builds the memoryless agent once, before the time to train the other one is spent."""
    if not config.baseline or config.memory == "identity":
        return
    try:
        arguments = _memoryless(config).learner_kwargs()
        LEARNERS[config.algo]("MemoryPolicy", model.tensor_env, device=model.device, **arguments)
    except (TypeError, ValueError) as error:
        message = f"the memoryless agent cannot be built: {error}; --no-baseline leaves it out"
        raise ValueError(message) from error


def _steps_of_baseline(config: Config, model: MemoryOnPolicyAlgorithm) -> int:
    """As many steps as the agent has, which are more than configured if the total has been lowered since."""
    beyond = model.num_timesteps - config.total_timesteps
    return config.total_timesteps if beyond < model.n_steps * model.all_envs else model.num_timesteps


def prepare(config: Config, checkpoint: Path | None, locks: list[FileLock | None]) -> Start:
    """Creates and locks the run's folder and writes the configuration. Nothing is written before all checks have
    passed.

    Raises:
        ValueError: the folder holds another run, or a changed setting cannot take effect.
        CheckpointError: the checkpoint is damaged or does not fit.
    """
    folder = folder_of(config)
    if checkpoint is None:
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"--run-dir is {folder}, which is a file, expected a folder: choose another --run-dir")
        taken = not distributed.restarts() and holds_run(folder)
        if not taken:
            _check_baseline(config, build(config))
            folder.mkdir(parents=True, exist_ok=True)
            locks.append(lock_folder(folder))
            taken = not distributed.restarts() and holds_run(folder)
        if taken:
            raise ValueError(f"{folder} already holds a run; choose another --run-dir, or --resume {quoted(folder)}")
        resumed = ""
    else:
        run_folder = checkpoint_folder(checkpoint)
        if folder.resolve() != run_folder.resolve():
            raise ValueError(f"--run-dir is {folder}, but --resume continues in {run_folder}: leave out one of the two")
        locks.append(lock_folder(folder))
        saved = load_config(folder / "config.yaml")
        refuse_changes(config, saved)
        if is_complete(folder, checkpoint, config, saved):
            return Start(folder, complete=True)
        model = build(config, checkpoint)
        _check_baseline(config, model)
        for name in {*config.learner.fixed} & {*vars(config.learner)}:  # any added since have the checkpoint's values
            setattr(config.learner, name, getattr(model, name, getattr(config.learner, name)))
        rows_up_to(folder, model.num_timesteps)
        changed = what_changed(config, saved)
        resumed = f"resuming at step {model.num_timesteps:,}" + (f"; {changed}" if changed else "")
        if aside := set_aside_later(checkpoint):
            resumed += f"; later checkpoints are set aside: {', '.join(path.name for path in aside)}"
    for leftover in folder.glob(".*.partial"):  # of a run that was killed while it wrote
        if leftover.is_file():
            leftover.unlink()
    dataclasses.replace(config, run_dir=folder, resume=None).save(folder / "config.yaml")
    replace_file(folder / "git.txt", git_state() + "\n")
    if checkpoint is not None and model.num_timesteps < config.total_timesteps:
        set_aside_summary(folder)
    return Start(folder, resumed)


def build(config: Config, checkpoint: Path | None = None) -> MemoryOnPolicyAlgorithm:
    """This rank's environments and the learner, new or loaded from the checkpoint.

    Raises:
        ValueError: an argument is wrong, or `num_envs` is not a multiple of the number of ranks.
        CheckpointError: the checkpoint, or that of `init_from`, is damaged or does not fit.
    """
    device = device_of(config.device)
    import_modules(config.imports)  # another rank parsed the command
    changed = {} if checkpoint is None else changed_arguments(config, checkpoint)
    env = config.make_env(distributed.share(config.num_envs), device)
    if checkpoint is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NewEpisodesWarning)  # `run` prints it
            kind = LEARNERS[config.algo]
            return kind.load(checkpoint, env, device=device, fast=config.fast, precision=config.precision, **changed)
    try:
        model = LEARNERS[config.algo]("MemoryPolicy", env, device=device, **config.learner_kwargs())
    except TypeError as error:  # arguments that the memory does not take
        raise ValueError(str(error)) from error
    if config.init_from is not None:
        load_weights(model.policy, config.init_from)
    return model


class Trained(NamedTuple):
    """An agent, its training time in seconds, over all resumes, and the steps trained in that time."""

    model: MemoryOnPolicyAlgorithm
    wall: float
    timed: int
    """Fewer than all steps if the log of the time before a resume is lost."""


def run(config: Config, folder: Path, console: Console, checkpoint: Path | None = None) -> Trained:
    """Trains one agent, with logs and checkpoints in `folder`. Returns early after Ctrl-C, on all ranks at the same
    step.

    Raises:
        CommandError: the agent cannot be built, or its training failed.
        KeyboardInterrupt: a second SIGINT or SIGTERM arrived before the iteration ended.
    """
    with ErrorContext("building", config.env).user_errors():
        model = build(config, checkpoint)
        before = 0.0 if checkpoint is None else training_time_until(folder, model.num_timesteps)
    exact = "parameters, optimiser and counters continue exactly"
    for change, reason in (
        ("environments start new episodes", model.new_episodes),
        ("random generators have new seeds", model.new_generators),
    ):
        if reason:
            console.print(f"{change}: {reason}; {exact}", **PLAIN_TEXT)
    if model.speed_note:
        console.print(model.speed_note, **PLAIN_TEXT)
    untimed, before = (model.num_timesteps, 0.0) if before is None else (0, before)
    remaining = config.total_timesteps - model.num_timesteps
    if remaining <= 0:
        return Trained(model, before, model.num_timesteps - untimed)
    clock, saver = WallClock(before), CheckpointEvery(folder / "checkpoints", config.checkpoint_every)
    display = RunDisplay(f"{config.memory} {config.algo}", console, before=before)
    console.print(describe_training(model, folder), style="dim", **PLAIN_TEXT)
    callbacks: list[BaseCallback] = [clock, saver]
    if distributed.rank() == 0:
        callbacks += [DescribeRun(config.entries()), *([display] if config.progress else [])]
    if distributed.rank() == 0 and config.panels_every:
        callbacks.append(PicturePanels(config.panels_every))

    def stop(signum: int, frame: Any) -> None:
        if model.stop_requested:
            raise KeyboardInterrupt
        model.stop_requested = True
        console.print("stopping after this iteration; again to stop at once")

    handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        model.set_logger(run_logger(folder, None if checkpoint is None else model.num_timesteps))
        model.learn(remaining, CallbackList(callbacks), reset_num_timesteps=checkpoint is None)
    except Exception as error:
        if isinstance(error, RankLostError):  # torchrun sends SIGTERM, but this error is to be reported
            del handlers[signal.SIGTERM]
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        doing = f"training, after {model.num_timesteps:,} environment steps"
        raise ErrorContext(doing, config.env, folder, describe_saved(folder, config.run_dir)).error(error) from error
    finally:
        display.stop()
        with contextlib.suppress(OSError):  # the disk may be full
            if hasattr(model, "_logger"):  # it may have failed before it had one
                model.logger.close()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    model.stop_requested = distributed.any_rank(model.stop_requested)  # a signal may have come after the last check
    return Trained(model, clock.total, model.num_timesteps - untimed)


def describe_training(model: MemoryOnPolicyAlgorithm, folder: Path) -> str:
    """One line: number of parameters, batch, device, threads, and the command that shows the curves."""
    count = sum(each.numel() for each in model.policy.parameters())
    threads = torch.get_num_threads()
    device = str(model.device)
    if model.device.type == "cpu":
        device += f", {threads} thread{'s' if threads > 1 else ''}"
        if threads == distributed.size() == 1 and idle_cores() > 0.5:
            device += " (idle cores: --threads 2 is faster)"
    batch = f"{model.all_envs} environments × {model.n_steps} steps"  # of all ranks, as --num-envs
    return f"{count:,} parameters · {batch} · {device} · tensorboard --logdir {quoted(folder)}"


def idle_cores() -> float:
    """Idle cores beside the one in use, from the load of the last minute; 0 if it is unknown."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return usable - 1 - os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def score(config: Config, model: MemoryOnPolicyAlgorithm, console: Console) -> Score | None:
    """Scores the trained agent in new episodes, with actions chosen as in training; None if no episodes are
    requested.

    Raises:
        CommandError: the evaluation failed.
    """

    def play_episodes() -> Score | None:
        if not config.eval_episodes:
            return None
        env = config.make_env(min(config.num_envs, config.eval_episodes), model.device)
        seed = config.seed + 1_000_003  # not a seed of training
        console.print(f"{config.eval_episodes} episodes with {config.memory} ...", style="dim", highlight=False)
        return evaluate(model, env, config.eval_episodes, model.learns_from_targets, seed, max_steps=config.eval_steps)

    assert config.run_dir is not None
    try:
        return distributed.from_first(play_episodes)
    except Exception as error:
        doing = f"playing the {config.eval_episodes} episodes after training"
        raise ErrorContext(doing, config.env, config.run_dir, describe_saved(config.run_dir)).error(error) from error


def report(
    config: Config, console: Console, result: Score | None, identity: Score | None, summary: dict[str, Any]
) -> None:
    """Writes `summary.json`, prints the final table and the commands to continue with.

    Raises:
        CommandError: the random actions could not be scored, or a file could not be written.
    """
    folder = config.run_dir
    assert folder is not None
    try:
        replace_file(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
        if result is not None:
            env = config.make_env(config.num_envs)
            chance = random_score(env, config.eval_episodes, config.seed, max_steps=config.eval_steps)
            for run_folder, final in ((folder, result), (folder / "identity", identity)):
                if final is not None and run_folder.is_dir():
                    write_scores(run_folder, {"mean_return": final.mean, **final.metrics}, summary["env_steps"])
    except Exception as error:
        raise ErrorContext("scoring random actions", config.env, folder, describe_saved(folder)).error(error) from error
    if result is not None:
        scores = {} if config.memory == "identity" else {f"{config.memory} (memory)": result}
        scores |= {} if identity is None else {"identity (no memory)": identity}
        print_scores(console, f"{result.episodes} new episodes", {**scores, "random actions": chance})
        if result.cut:
            cut = f"{result.cut} of the {result.episodes} episodes did not end and were cut"
            console.print(f"{cut} after {config.eval_steps:,} steps (--eval-steps)", **PLAIN_TEXT)
    path = quoted(folder)
    evaluate_command = f"{command_for('evaluate')} {path}"
    speed = summary["steps_per_s"]
    timed = "" if speed is None else f" in {format_duration(summary['wall_s'])} ({speed:,.0f} steps/s)"
    lines = [
        f"{summary['env_steps']:,} steps, {summary['episodes']:,} episodes{timed}",
        f"watch it:     {evaluate_command} --watch",
        f"memory used?  {evaluate_command} --ablate",
        f"compare:      {command_for('compare')} {path} OTHER-RUN",
        f"curves:       tensorboard --logdir {path}",
        f"{'scores: ' if result is not None else 'summary:'}      {folder}/summary.json",
        f"checkpoint:   {latest_checkpoint(folder)}",
    ]
    if result is not None and result.metrics and env.groups_answers and env.horizon is not None:
        lines.insert(2, f"errors:       {evaluate_command} --errors")
    console.print("\n".join(lines), **PLAIN_TEXT)
