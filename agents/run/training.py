"""One run: from its configuration to its folder, its training and its score."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.utils import get_device

from agents import LEARNERS, MemoryOnPolicyAlgorithm, NonFiniteError, distributed, load, make_env
from agents.checkpoint import NewEpisodesWarning, take_weights
from agents.distributed import RankLostError
from agents.evaluation import Score, evaluate, random_score
from agents.evaluation.tables import print_scores
from agents.invocation import command_for
from agents.run.callbacks import CheckpointEvery, DescribeRun, PicturePanels, RunDisplay, git_state
from agents.run.config import Config
from agents.run.folder import again, folder_of, newest
from agents.run.logs import run_logger
from policies.allocator import tune_allocator


def train(config: Config, checkpoint: Path | None, console: Console) -> int:
    """The whole command on a parsed configuration; gives the exit status."""
    torch.set_num_threads(config.threads)
    if config.data_dir is not None:
        os.environ["ENGRAM_DATA"] = str(config.data_dir)
    tune_allocator()
    distributed.take_device(get_device(config.device))
    folder = config.run_dir = distributed.from_first(lambda: prepare(config, checkpoint))
    parts = [f"recipe {config.recipe}" if config.recipe else "default values", str(folder)]
    if distributed.size() > 1:
        parts.append(f"{distributed.size()} ranks")
    if distributed.restarts() and checkpoint:
        parts.append(f"restarted from {checkpoint.name}")
    title = f"[bold]{config.memory}[/] with {config.algo} on {config.env}"
    console.print(" · ".join([title, *parts]), highlight=False, soft_wrap=True)
    if config.follows and not (config.init_from or checkpoint):
        easier = f"add --lessons, or train --recipe {config.follows} and then --init-from its folder"
        console.print(f"from scratch it may learn nothing: {easier}", highlight=False, soft_wrap=True)

    started = time.perf_counter()
    model = run(config, folder, console, checkpoint)
    wall = time.perf_counter() - started
    if model.stop_requested:
        console.print(f"stopped at {model.num_timesteps:,} steps; go on with: {again(folder)}", soft_wrap=True)
        return 130
    result = distributed.from_first(lambda: score(config, model))
    identity = None
    if config.baseline and config.memory != "identity":
        memoryless = dataclasses.replace(
            config, memory="identity", memory_kwargs={}, precision="float32", init_from=None
        )
        before = distributed.from_first(lambda: newest(folder / "identity") if checkpoint else None)
        identity_model = run(memoryless, folder / "identity", console, before)
        if identity_model.stop_requested:
            console.print(f"the result stands in {folder}; the identity agent was stopped")
        else:
            identity = distributed.from_first(lambda: score(config, identity_model))
    elif config.memory == "identity":
        identity = result
    steps = model.num_timesteps
    summary = {
        "mean_return": result.mean,
        "ci95": result.ci95,
        "identity_mean_return": None if identity is None else identity.mean,
        "metrics": result.metrics,
        "identity_metrics": {} if identity is None else identity.metrics,
        "env_steps": steps,
        "episodes": model._episode_num,
        "wall_s": round(wall, 2),
        "steps_per_s": round((steps - model._num_timesteps_at_start) / wall, 1),
    }
    distributed.from_first(lambda: report(config, console, result, identity, summary))
    return 0


def prepare(config: Config, checkpoint: Path | None) -> Path:
    """The run's folder, with its configuration; wrong names and arguments come out before anything is written."""
    folder = folder_of(config)
    if checkpoint is None and not distributed.restarts() and (folder / "config.yaml").exists():
        raise ValueError(f"{folder} already holds a run; choose another --run-dir, or --resume {folder}")
    config.run_dir, config.resume = folder, None
    build(config if checkpoint is None else dataclasses.replace(config, init_from=None))
    folder.mkdir(parents=True, exist_ok=True)
    config.save(folder / "config.yaml")
    (folder / "git.txt").write_text(git_state() + "\n", encoding="utf-8")
    return folder


def build(config: Config, checkpoint: Path | None = None) -> MemoryOnPolicyAlgorithm:
    """This rank's environments and the learner, new or as the checkpoint left it."""
    if config.algo not in LEARNERS:
        raise ValueError(f"unknown algorithm {config.algo!r}; known are {', '.join(LEARNERS)}")
    device = get_device(config.device)
    env = make_env(config.env, distributed.share(config.num_envs), device, **config.env_kwargs)
    if checkpoint is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NewEpisodesWarning)  # `run` prints it
            return load(checkpoint, env, device=device, fast=config.fast, precision=config.precision)
    try:
        model = LEARNERS[config.algo]("MemoryPolicy", env, device=device, **config.learner_kwargs())
    except TypeError as error:  # arguments that the memory does not take
        raise ValueError(str(error)) from error
    if config.init_from is not None:
        take_weights(model.policy, config.init_from)
    return model


def run(config: Config, folder: Path, console: Console, checkpoint: Path | None = None) -> MemoryOnPolicyAlgorithm:
    """Train one agent, with its log and checkpoints in `folder`; returns early after Ctrl-C, on all ranks alike."""
    model = build(config, checkpoint)
    exact = "parameters, optimiser and counters go on exactly"
    for what, why in (
        ("environments start new episodes", model.new_episodes),
        ("random generators are seeded anew", model.new_generators),
    ):
        if why:
            console.print(f"{what}: {why}; {exact}", highlight=False, soft_wrap=True)
    if model.speed_note:
        console.print(model.speed_note, highlight=False)
    model.set_logger(run_logger(folder, resume_at=model.num_timesteps))
    saver = CheckpointEvery(folder / "checkpoints", config.checkpoint_every)
    display = RunDisplay(f"{config.memory} {config.algo}", console)
    callbacks: list[BaseCallback] = [saver]
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
        remaining = config.total_timesteps - model.num_timesteps
        model.learn(remaining, CallbackList(callbacks), reset_num_timesteps=checkpoint is None)
    except NonFiniteError as error:
        raise NonFiniteError(f"{error}; the last good checkpoint is {saver.last}") from error
    except RankLostError as error:
        del handlers[signal.SIGTERM]
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it to whoever is left, who has this to say first
        raise RankLostError(f"{error}; the checkpoints are whole, go on with: {again(folder)}") from error
    finally:
        display.stop()
        model.logger.close()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    model.stop_requested = distributed.any_rank(model.stop_requested)  # a signal may have come after the last look
    return model


def score(config: Config, model: MemoryOnPolicyAlgorithm) -> Score:
    """Fresh episodes with the trained agent, its actions chosen as in training."""
    env = make_env(config.env, min(config.num_envs, config.eval_episodes), model.device, **config.env_kwargs)
    seed = config.seed + 1_000_003  # not a seed of training
    return evaluate(model, env, config.eval_episodes, model.learns_from_targets, seed)


def report(config: Config, console: Console, result: Score, identity: Score | None, summary: dict[str, Any]) -> None:
    """`summary.json`, the table at the end, and what to do next."""
    assert config.run_dir is not None
    (config.run_dir / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    chance = random_score(make_env(config.env, config.num_envs, **config.env_kwargs), config.eval_episodes, config.seed)
    scores = {} if config.memory == "identity" else {f"{config.memory} (memory)": result}
    scores |= {} if identity is None else {"identity (no memory)": identity}
    print_scores(console, f"{result.episodes} fresh episodes", {**scores, "random actions": chance})
    folder = config.run_dir
    console.print(
        f"{summary['env_steps']:,} steps, {summary['episodes']:,} episodes in {summary['wall_s']:.0f} s "
        f"({summary['steps_per_s']:,.0f} steps/s) · {folder}/summary.json\n"
        f"watch it:   {command_for('evaluate')} {folder} --watch\n"
        f"curves:     tensorboard --logdir {folder}",
        highlight=False,
        soft_wrap=True,
    )
