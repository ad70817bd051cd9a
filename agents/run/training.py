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

from agents import LEARNERS, MemoryOnPolicyAlgorithm, load
from agents.checkpoint import NewEpisodesWarning, latest_checkpoint, take_weights
from agents.common.files import replace_file
from agents.common.invocation import command_for, quoted
from agents.common.terminal import PLAIN
from agents.evaluation import Score, evaluate, random_score
from agents.evaluation.tables import print_scores
from agents.run.callbacks import CheckpointEvery, DescribeRun, PicturePanels, WallClock, git_state
from agents.run.config import Config, load_config
from agents.run.display import RunDisplay, clock
from agents.run.failures import Where
from agents.run.folder import again, checkpoint_folder, folder_of, newest, safe, take
from agents.run.logs import kept_rows, run_logger, wall_before, write_scores
from agents.run.resuming import complete, refuse_changes, replaced, set_aside_later, what_changed
from agents.scale import distributed
from agents.scale.devices import device_of
from agents.scale.distributed import RankLostError
from policies.native.allocator import tune_allocator


@dataclass(frozen=True)
class Start:
    """Facts about a run before its first step."""

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
        with Where("building", config.env).user_errors():
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
        console.print(f"complete; to train for longer: {again(folder)} --total-timesteps N", **PLAIN)
        return 0
    if start.resumed:
        console.print(start.resumed, **PLAIN)
    if config.follows and not (config.init_from or checkpoint):
        easier = f"add --lessons, or train --recipe {config.follows} and then --init-from its folder"
        console.print(f"this task is rarely learned from scratch: {easier}", **PLAIN)

    model, wall = run(config, folder, console, checkpoint)
    if model.stop_requested:
        console.print(f"stopped at {model.num_timesteps:,} steps; continue with: {again(folder)}", **PLAIN)
        return 130
    result = score(config, model, console)
    identity = None
    if config.baseline and config.memory != "identity":
        memoryless = dataclasses.replace(
            config, memory="identity", memory_kwargs={}, precision="float32", init_from=None
        )
        before = distributed.from_first(lambda: newest(folder / "identity") if checkpoint else None)
        identity_model, _ = run(memoryless, folder / "identity", console, before)
        if identity_model.stop_requested:
            console.print(f"results are in {folder}; the identity agent was stopped", **PLAIN)
        else:
            identity = score(memoryless, identity_model, console)
    elif config.memory == "identity":
        identity = result
    summary = {
        "mean_return": None if result is None else result.mean,
        "ci95": None if result is None else result.ci95,
        "identity_mean_return": None if identity is None else identity.mean,
        "metrics": {} if result is None else result.metrics,
        "identity_metrics": {} if identity is None else identity.metrics,
        "env_steps": model.num_timesteps,
        "episodes": model._episode_num,
        "wall_s": round(wall, 2),
        "steps_per_s": round(model.num_timesteps / max(wall, 1e-9), 1),
    }
    distributed.from_first(lambda: report(config, console, result, identity, summary))
    return 0


def prepare(config: Config, checkpoint: Path | None, locks: list[FileLock | None]) -> Start:
    """Creates and locks the run's folder and writes the configuration. Nothing is written before all checks have
    passed."""
    folder = folder_of(config)
    if checkpoint is None:
        taken = not distributed.restarts() and (folder / "config.yaml").exists()
        if not taken:
            build(config)
            folder.mkdir(parents=True, exist_ok=True)
            locks.append(take(folder))
            taken = not distributed.restarts() and (folder / "config.yaml").exists()
        if taken:
            raise ValueError(f"{folder} already holds a run; choose another --run-dir, or --resume {quoted(folder)}")
        resumed = ""
    else:
        home = checkpoint_folder(checkpoint)
        if folder.resolve() != home.resolve():
            raise ValueError(f"--run-dir is {folder}, but --resume continues in {home}: leave out one of the two")
        locks.append(take(folder))
        saved = load_config(folder / "config.yaml")
        refuse_changes(config, saved)
        if complete(folder, config, saved):
            return Start(folder, complete=True)
        model = build(config, checkpoint)
        for name in config.learner.fixed:  # those that are younger than the run are as its checkpoint has them
            setattr(config.learner, name, getattr(model, name, getattr(config.learner, name)))
        kept_rows(folder, model.num_timesteps)
        changed = what_changed(config, saved)
        resumed = f"resuming at step {model.num_timesteps:,}" + (f"; {changed}" if changed else "")
        if aside := set_aside_later(checkpoint):
            resumed += f"; later checkpoints are set aside: {', '.join(path.name for path in aside)}"
    for leftover in folder.glob(".*.partial"):  # of a run that was killed while it wrote
        if leftover.is_file():
            leftover.unlink()
    dataclasses.replace(config, run_dir=folder, resume=None).save(folder / "config.yaml")
    replace_file(folder / "git.txt", git_state() + "\n")
    return Start(folder, resumed)


def build(config: Config, checkpoint: Path | None = None) -> MemoryOnPolicyAlgorithm:
    """This rank's environments and the learner, new or loaded from the checkpoint."""
    device = device_of(config.device)
    given = {} if checkpoint is None else replaced(config, checkpoint)
    env = config.make_env(distributed.share(config.num_envs), device)
    if checkpoint is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NewEpisodesWarning)  # `run` prints it
            return load(checkpoint, env, device=device, fast=config.fast, precision=config.precision, **given)
    try:
        model = LEARNERS[config.algo]("MemoryPolicy", env, device=device, **config.learner_kwargs())
    except TypeError as error:  # arguments that the memory does not take
        raise ValueError(str(error)) from error
    if config.init_from is not None:
        take_weights(model.policy, config.init_from)
    return model


class Trained(NamedTuple):
    """An agent and its training time in seconds, over all resumes."""

    model: MemoryOnPolicyAlgorithm
    wall: float


def run(config: Config, folder: Path, console: Console, checkpoint: Path | None = None) -> Trained:
    """Trains one agent, with logs and checkpoints in `folder`. Returns early after Ctrl-C, on all ranks at the same
    step."""
    with Where("building", config.env).user_errors():
        model = build(config, checkpoint)
        before = 0.0 if checkpoint is None else wall_before(folder, model.num_timesteps)
    exact = "parameters, optimiser and counters continue exactly"
    for what, why in (
        ("environments start new episodes", model.new_episodes),
        ("random generators have new seeds", model.new_generators),
    ):
        if why:
            console.print(f"{what}: {why}; {exact}", **PLAIN)
    if model.speed_note:
        console.print(model.speed_note, **PLAIN)
    remaining = config.total_timesteps - model.num_timesteps
    if remaining <= 0:
        return Trained(model, before)
    clock, saver = WallClock(before), CheckpointEvery(folder / "checkpoints", config.checkpoint_every)
    display = RunDisplay(f"{config.memory} {config.algo}", console, before=before)
    console.print(about(model, folder), style="dim", **PLAIN)
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
        if isinstance(error, RankLostError):  # torchrun sends it to the remaining ranks, which report this first
            del handlers[signal.SIGTERM]
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        doing = f"training, after {model.num_timesteps:,} environment steps"
        raise Where(doing, config.env, folder, safe(folder, config.run_dir)).error(error) from error
    finally:
        display.stop()
        with contextlib.suppress(OSError):  # a full disk is what it may be about
            if hasattr(model, "_logger"):  # it may have been stopped before
                model.logger.close()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    model.stop_requested = distributed.any_rank(model.stop_requested)  # a signal may have come after the last look
    return Trained(model, clock.total)


def about(model: MemoryOnPolicyAlgorithm, folder: Path) -> str:
    """Size, device and threads of a training, and where its curves are."""
    count = sum(each.numel() for each in model.policy.parameters())
    threads = torch.get_num_threads()
    device = str(model.device)
    if model.device.type == "cpu":
        device += f", {threads} thread{'s' if threads > 1 else ''}"
        if threads == distributed.size() == 1 and idle_cores() > 0.5:
            device += " (idle cores: --threads 2 is faster)"
    batch = f"{model.n_envs} environments × {model.n_steps} steps"
    return f"{count:,} parameters · {batch} · {device} · tensorboard --logdir {quoted(folder)}"


def idle_cores() -> float:
    """Cores that a second thread would find idle, by the last minute's load; 0 where the system does not say."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return usable - 1 - os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def score(config: Config, model: MemoryOnPolicyAlgorithm, console: Console) -> Score | None:
    """Scores the trained agent in new episodes, with actions chosen as in training; None if no episodes are
    requested."""

    def played() -> Score | None:
        if not config.eval_episodes:
            return None
        env = config.make_env(min(config.num_envs, config.eval_episodes), model.device)
        seed = config.seed + 1_000_003  # not a seed of training
        console.print(f"{config.eval_episodes} episodes with {config.memory} ...", style="dim", highlight=False)
        return evaluate(model, env, config.eval_episodes, model.learns_from_targets, seed, max_steps=config.eval_steps)

    assert config.run_dir is not None
    try:
        return distributed.from_first(played)
    except Exception as error:
        doing = f"playing the {config.eval_episodes} episodes after training"
        raise Where(doing, config.env, config.run_dir, safe(config.run_dir)).error(error) from error


def report(
    config: Config, console: Console, result: Score | None, identity: Score | None, summary: dict[str, Any]
) -> None:
    """Writes `summary.json`, prints the final table and the commands to continue with."""
    folder = config.run_dir
    assert folder is not None
    try:
        replace_file(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
        if result is not None:
            env = config.make_env(config.num_envs)
            chance = random_score(env, config.eval_episodes, config.seed, max_steps=config.eval_steps)
            for home, each in ((folder, result), (folder / "identity", identity)):
                if each is not None and home.is_dir():
                    write_scores(home, {"mean_return": each.mean, **each.metrics}, summary["env_steps"])
    except Exception as error:
        raise Where("scoring random actions", config.env, folder, safe(folder)).error(error) from error
    if result is not None:
        scores = {} if config.memory == "identity" else {f"{config.memory} (memory)": result}
        scores |= {} if identity is None else {"identity (no memory)": identity}
        print_scores(console, f"{result.episodes} fresh episodes", {**scores, "random actions": chance})
        if result.cut:
            cut = f"{result.cut} of the {result.episodes} episodes did not end and were cut"
            console.print(f"{cut} after {config.eval_steps:,} steps (--eval-steps)", **PLAIN)
    shown = quoted(folder)
    look = f"{command_for('evaluate')} {shown}"
    lines = [
        f"{summary['env_steps']:,} steps, {summary['episodes']:,} episodes in {clock(summary['wall_s'])} "
        f"({summary['steps_per_s']:,.0f} steps/s)",
        f"watch it:     {look} --watch",
        f"memory used?  {look} --ablate",
        f"compare:      {command_for('compare')} {shown} OTHER-RUN",
        f"curves:       tensorboard --logdir {shown}",
        f"scores:       {folder}/summary.json",
        f"checkpoint:   {latest_checkpoint(folder)}",
    ]
    if result is not None and result.metrics and env.groups_answers and env.horizon is not None:
        lines.insert(2, f"errors:       {look} --errors")
    console.print("\n".join(lines), **PLAIN)
