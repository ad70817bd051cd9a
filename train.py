"""Train an agent with a memory: `python train.py`, or `python train.py --env CartPole-v1 --memory lstm --algo ppo`.

With no argument it runs the main job: an MNM agent learns the invisible-goal maze on the CPU. `--help` explains every
option; docs/metrics.md explains every number that is logged. `torchrun --nproc-per-node=2 train.py ...` shares the work
between two processes; see docs/distributed.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.markup import escape
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.utils import get_device

from agents import (
    LEARNERS,
    CheckpointError,
    MemoryOnPolicyAlgorithm,
    NonFiniteError,
    distributed,
    latest_checkpoint,
    load,
    make_env,
)
from agents.callbacks import CheckpointEvery, DescribeRun, PicturePanels, RunDisplay, git_state
from agents.checkpoint import take_weights
from agents.config import Command, Config, base_config, find_recipe, load_config
from agents.distributed import RankLostError
from agents.evaluation import Score, evaluate, random_score
from agents.logs import run_logger
from agents.score_table import print_scores
from policies.allocator import tune_allocator


def parse(arguments: list[str]) -> tuple[Command, Path | None]:
    """The configuration, and the checkpoint to go on from where `--resume` is given.

    Flags go before the recipe's values, and these before the defaults; a resumed run starts from its own `config.yaml`,
    and a sweep from what its file fixes. A run that `torchrun` has started anew after a failure resumes without being
    told.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("recipe", "resume", "sweep", "env", "algo", "memory"):
        first.add_argument(f"--{name}")
    first.add_argument("--run-dir", "--run_dir", type=Path)
    given, _ = first.parse_known_args(arguments)
    if distributed.restarts() and given.run_dir and newest(given.run_dir):
        given.resume = given.run_dir
    checkpoint = None
    if given.sweep and distributed.size() > 1:
        raise ValueError("--sweep starts processes of its own, expected python train.py and not torchrun")
    if given.sweep:
        from agents.sweep import load_space

        defaults = load_space(given.sweep).defaults(vars(given))
    elif given.resume:
        checkpoint = latest_checkpoint(given.resume)
        run_dir = Path(given.resume) if checkpoint != Path(given.resume) else checkpoint.parent.parent
        defaults = load_config(run_dir / "config.yaml")
        defaults.run_dir = run_dir
    else:
        defaults = base_config(given.recipe, given.env, given.algo, given.memory)
    config = tyro.cli(Command, default=Command(**vars(defaults)), args=arguments, description=__doc__)
    config.env_kwargs = defaults.env_kwargs | config.env_kwargs
    config.memory_kwargs = defaults.memory_kwargs | config.memory_kwargs
    return config, checkpoint


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint in a run's folder, None where there is none."""
    try:
        return latest_checkpoint(folder)
    except CheckpointError:
        return None


def build(config: Config, checkpoint: Path | None = None) -> MemoryOnPolicyAlgorithm:
    """This rank's environments and the learner, new or as the checkpoint left it."""
    if config.algo not in LEARNERS:
        raise ValueError(f"unknown algorithm {config.algo!r}; known are {', '.join(LEARNERS)}")
    device = get_device(config.device)
    env = make_env(config.env, distributed.share(config.num_envs), device, **config.env_kwargs)
    if checkpoint is not None:
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
    if model.new_episodes:
        exact = "parameters, optimiser and counters go on exactly"
        console.print(
            f"environments start new episodes: {model.new_episodes}; {exact}", highlight=False, soft_wrap=True
        )
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


def again(folder: Path) -> str:
    """The command that goes on with a run."""
    ranks = distributed.size()
    return f"{'python' if ranks == 1 else f'torchrun --nproc-per-node={ranks}'} train.py --resume {folder}"


def score(config: Config, model: MemoryOnPolicyAlgorithm) -> Score:
    """Fresh episodes with the trained agent, its actions chosen as in training."""
    env = make_env(config.env, min(config.num_envs, config.eval_episodes), model.device, **config.env_kwargs)
    seed = config.seed + 1_000_003  # not a seed of training
    return evaluate(model, env, config.eval_episodes, model.learns_from_targets, seed)


def main(arguments: list[str] | None = None) -> None:
    """The command; see the top of this file."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        with distributed.session():
            config, checkpoint = distributed.from_first(lambda: parse(words))
            console = Console(quiet=distributed.rank() > 0)
            if config.lessons:
                status = course(config, words, console)
            elif config.sweep:
                status = sweep(config, words, console)
            else:
                status = train(config, checkpoint, console)
    except (ValueError, CheckpointError, NonFiniteError, RankLostError) as error:
        who = f"rank {distributed.rank()}: " if distributed.rank() else ""
        Console(stderr=True).print(f"{who}[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        status = 2
    except KeyboardInterrupt:
        Console(stderr=True).print("stopped at once; the last checkpoint stands")
        status = 130
    sys.exit(status)


def folder_of(config: Config) -> Path:
    """Where a run goes: as it was told, else a name of its own."""
    if config.run_dir is None and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")):
        raise ValueError("torchrun --max-restarts was given without --run-dir, where a restart finds the checkpoint")
    parts = [config.env.split("/")[-1], config.memory, config.algo, str(config.seed), time.strftime("%Y%m%d-%H%M%S")]
    return config.run_dir or Path("runs") / "-".join(parts)


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


def course(config: Command, words: list[str], console: Console) -> int:
    """A recipe after the lessons it follows, each with the weights of the one before; gives the exit status.

    Lessons are runs in `lessons/` of the recipe's folder, and every flag goes for them too. What is done or begun there
    is used again.
    """
    if not config.follows or config.init_from or config.resume or config.sweep:
        raise ValueError("--lessons is for a recipe that follows another, without --init-from, --resume and --sweep")
    folder = distributed.from_first(lambda: folder_of(config))
    lessons, easier = [], config.follows
    while easier:
        if easier in lessons:
            raise ValueError(f"recipe {easier} follows itself: expected lessons that begin with one that follows none")
        lessons.insert(0, easier)
        easier = load_config(find_recipe(easier)).follows
    places = [*(folder / "lessons" / Path(lesson).stem for lesson in lessons), folder]

    def enrol(number: int) -> tuple[Command, Path | None] | None:
        """A lesson's configuration and the checkpoint to go on from; None where it is done."""
        place = places[number]
        if (place / "summary.json").exists():
            return None
        flags = [*words, "--run-dir", str(place)]
        if number < len(lessons):
            flags += ["--recipe", lessons[number], "--no-baseline"]
        if number:
            flags += ["--init-from", str(places[number - 1])]
        return parse([*flags, "--resume", str(place)] if newest(place) else flags)

    for number, place in enumerate(places):
        console.rule(f"lesson {number + 1} of {len(places)}")
        given = distributed.from_first(partial(enrol, number))
        if given is None:
            console.print(f"done before: {place}", highlight=False, soft_wrap=True)
        elif status := train(*given, console):
            rest = f"this lesson alone; with all that is left: the same command as before, --run-dir {folder}"
            console.print(rest, highlight=False, soft_wrap=True)
            return status
    return 0


def sweep(config: Command, flags: list[str], console: Console) -> int:
    """Many trainings, to find good hyper-parameters; gives the exit status. See docs/sweep.md."""
    try:
        from agents.sweep.driver import command
    except ImportError as error:
        raise ValueError(f'--sweep needs Optuna ({error}): python -m pip install "engram-rl[sweep]"') from error
    return command(config, flags, console)


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
        f"watch it:   python evaluate.py {folder} --watch\n"
        f"curves:     tensorboard --logdir {folder}",
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()
