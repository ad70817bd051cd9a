"""The command `python evaluate.py`, `engram-evaluate`, `python -m agents.evaluation`; see evaluate.py for examples.

What is printed is also written to RUN/evaluation.json. Wrong input gets one line and exit code 2.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import tyro
from rich.console import Console

from agents.common.arguments import Count, Positive, Range, Seed
from agents.common.files import replace_file, replacing
from agents.common.terminal import PLAIN_TEXT, make_console
from agents.environments import Vector
from agents.evaluation.ablation import ablate, as_json, print_ablation
from agents.evaluation.breakdown import Breakdown, Row
from agents.evaluation.loaded import LoadedAgent
from agents.evaluation.scores import MAX_STEPS, Score, check_spaces, evaluate, random_score
from agents.evaluation.tables import print_errors, print_scores
from agents.run.config import Config, Pairs
from agents.run.failures import CommandError, ErrorContext
from agents.run.parsing import run_command
from agents.scale.devices import device_of
from envs import registered
from envs.tensor_env import TensorEnv

if TYPE_CHECKING:
    from agents.view.session import Session

INTRO = """Compare the scores of a trained, a memoryless and a random agent: evaluate.py runs/my-run. With --watch,
--play, --video or --saliency, show a single episode instead.

The scores are also written to RUN/evaluation.json."""
GROUPS = {
    "Run": "run episodes num_envs max_steps deterministic seed",
    "Environment": "env env_kwargs wrappers data_dir",
    "Baselines": "identity random",
    "Memory": "ablate ablate_every memory_kwargs saliency saliency_steps errors",
    "Viewer": "watch play video video_steps fps",
    "Speed": "device threads",
}
"""Options by group, for `--help`."""
NEEDS = {"ablate_every": "ablate", "saliency_steps": "saliency", "video_steps": "video", "fps": "watch play video"}
"""Options that have an effect only with one of others."""
_FOR_SCORES = ("ablate", "errors", "episodes", "num_envs", "max_steps", "identity", "random")
_DEVICE_ENVS, _HOST_ENVS = 256, 16  # maximum default of --num-envs


@dataclass
class Arguments:
    """Score a trained agent, watch it, record it, or play the task yourself."""

    run: tyro.conf.Positional[Path | None] = None
    """A run's folder (its newest checkpoint is used) or a checkpoint. Optional with --play."""
    episodes: Count = 256
    """Episodes per score."""
    num_envs: Count | None = None
    """Number of parallel environments. Default: the number of episodes, at most 256 (16 for host environments)."""
    max_steps: Count = MAX_STEPS
    """Maximum length of an episode in steps; longer ones are cut."""
    env: str | None = None
    """Evaluate in this environment instead of the training environment; the spaces must be the same."""
    env_kwargs: Pairs = field(default_factory=dict)
    """Environment arguments, NAME=VALUE; each replaces the run's."""
    wrappers: list[str] | None = None
    """Wrappers of each single environment, as for train.py. Default: the run's."""
    data_dir: Path | None = None
    """Folder of the data files that some tasks need. Default: the environment variable ENGRAM_DATA, else a cache
    folder."""
    deterministic: bool | None = None
    """Act greedily instead of sampling. Default: as in training, that is, greedily only for supervised agents."""
    seed: Seed = 10_000
    """Random seed of environments and actions. The default differs from the training seed."""
    device: str = "cpu"
    """Device of environments and policy: cpu, cuda, cuda:1, ... or auto."""
    threads: Annotated[int, Range(1, 256)] = 1
    """CPU threads. Two help if a core is idle and the model is large; on a busy machine one is best."""
    identity: bool = True
    """Also score the memoryless agent that was trained with this one."""
    random: bool = True
    """Also score a uniformly random agent."""
    ablate: bool = False
    """Also score the agent with its memory frozen, reset, and swapped with another episode's. If the score does not
    fall, the memory is not used."""
    ablate_every: Count = 8
    """With --ablate: steps between two resets of the memory."""
    memory_kwargs: Pairs = field(default_factory=dict)
    """Arguments of the memory, NAME=VALUE, that replace those of the training, such as slots=256. The weights must
    fit."""
    saliency: Path | None = None
    """Play one episode and write a .png: how much each earlier observation affects the chosen action and the value."""
    saliency_steps: Count = 200
    """With --saliency: maximum length of the episode in steps."""
    errors: bool = False
    """Also show errors by position in the sequence and by the groups that the task defines."""

    watch: bool = False
    """Open a window. Space pauses, right arrow steps, + and - change the speed, R restarts, Q quits."""
    play: bool = False
    """Play the task yourself with arrow or number keys; you see the agent's observations."""
    video: Path | None = None
    """Record to this .mp4 or .gif; needs no display."""
    video_steps: Count | None = None
    """Frames in the video. Default: one episode."""
    fps: Positive = 8.0
    """Steps per second of window and video."""


def main(arguments: list[str] | None = None) -> None:
    """Runs the command with these arguments (default: `sys.argv`); exits on errors."""
    run_command(Arguments, INTRO, GROUPS, sys.argv[1:] if arguments is None else arguments, _run, NEEDS)


def _run(arguments: Arguments) -> None:
    with ErrorContext("reading the command").user_errors():
        _check(arguments)
        device = str(device_of(arguments.device))
    torch.set_num_threads(arguments.threads)
    if arguments.data_dir is not None:
        os.environ["ENGRAM_DATA"] = str(arguments.data_dir)
    with ErrorContext(f"loading {arguments.run}").user_errors():
        agent = None if arguments.run is None else LoadedAgent.open(arguments.run, device, arguments.memory_kwargs)
    if arguments.deterministic is None:
        arguments.deterministic = agent is not None and agent.model.learns_from_targets
    env_id = arguments.env or (agent.config.env if agent else "")
    if not env_id:
        raise CommandError(f"{arguments.run} has no config.yaml: give its environment with --env")
    config = agent.config if agent else Config()
    env_kwargs = {**(config.env_kwargs if env_id == config.env else {}), **arguments.env_kwargs}
    wrappers = config.wrappers if arguments.wrappers is None else arguments.wrappers
    shows = arguments.watch or arguments.play or arguments.video is not None
    max_envs = _DEVICE_ENVS if env_id in registered() else _HOST_ENVS
    single = shows or arguments.saliency is not None
    vector: Vector = "sync" if single else config.vector  # a single environment gains nothing in another process
    config = dataclasses.replace(config, env=env_id, env_kwargs=env_kwargs, wrappers=wrappers, vector=vector)
    num_envs = 1 if single else arguments.num_envs or min(arguments.episodes, max_envs)
    with ErrorContext("building", env_id).user_errors():
        try:
            env = config.make_env(num_envs, device, **({"render_mode": "rgb_array"} if shows else {}))
        except ValueError as error:
            if not shows or "unexpected keyword argument 'render_mode'" not in str(error):
                raise
            env = config.make_env(num_envs, device)  # it cannot draw: everything else is shown
        if agent is not None:
            try:
                check_spaces(agent.model.policy, env)
            except ValueError as error:
                raise ValueError(f"{agent.checkpoint} does not fit: {error}") from error
        if arguments.errors:
            Breakdown(env)
    try:
        if shows:
            _show(arguments, agent, env, env_id)
        elif arguments.saliency is not None:
            assert agent is not None
            _saliency(arguments, agent, env, env_id)
        else:
            assert agent is not None
            _score(arguments, agent, env, config)
    except CommandError:
        raise
    except Exception as error:
        raise ErrorContext("playing", env_id).error(error) from error


def _check(arguments: Arguments) -> None:
    if arguments.run is None and not (arguments.play and arguments.env):
        raise CommandError("expected a run's folder or a checkpoint, or --play --env ID")
    modes = arguments.watch + arguments.play + (arguments.video is not None) + (arguments.saliency is not None)
    if modes > 1:
        raise CommandError("expected at most one of --watch, --play, --video and --saliency")
    for name in _FOR_SCORES:
        value = getattr(arguments, name)
        if modes and value != getattr(Arguments, name):
            option = f"--{'no-' if value is False else ''}{name.replace('_', '-')}"
            raise CommandError(f"{option} is for scores, which --watch, --play, --video and --saliency do not make")
    if arguments.memory_kwargs and arguments.run is None:
        raise CommandError("--memory-kwargs changes the memory of a run: expected one")
    if arguments.saliency is not None and (arguments.run is None or arguments.saliency.suffix.lower() != ".png"):
        raise CommandError(f"--saliency {arguments.saliency}: expected a run and a name that ends in .png")
    if arguments.video is not None and arguments.video.suffix.lower() not in (".mp4", ".gif"):
        raise CommandError(f"--video {arguments.video}: expected a name that ends in .mp4 or .gif")


@dataclass
class _Results:
    """What `evaluate.py RUN` has played."""

    scores: dict[str, Score] = field(default_factory=dict)
    """By agent: "agent", "identity", "random"."""
    breakdowns: dict[str, Breakdown] = field(default_factory=dict)
    """By agent; empty without --errors."""
    ablated: dict[str, Score] = field(default_factory=dict)
    """By ablation; empty without --ablate."""
    remark: str = ""
    """Why a score is missing."""

    def errors(self) -> dict[str, dict[str, list[Row]]]:
        """The tables of each agent's breakdown, by group."""
        return {name: each.tables() for name, each in self.breakdowns.items()}


def _score(arguments: Arguments, agent: LoadedAgent, env: TensorEnv, config: Config) -> None:
    console, env_id = make_console(), config.env
    console.print(
        f"{arguments.episodes} episodes of {env_id} on {env.num_envs} environments at once ...",
        style="dim",
        **PLAIN_TEXT,
    )
    with console.status("playing"):
        results = _play(arguments, agent, env)
    env.close()
    _print_results(console, arguments, agent, env_id, results)
    folder = _folder_to_write(console, arguments, agent)
    if folder is not None:
        summary = {
            "checkpoint": str(agent.checkpoint),
            "env_steps": agent.model.num_timesteps,
            "env": env_id,
            "env_kwargs": config.env_kwargs,
            "wrappers": config.wrappers,
            "max_steps": arguments.max_steps,
            "num_envs": env.num_envs,
            "seed": arguments.seed,
            "deterministic": arguments.deterministic,
            "memory_kwargs": agent.model.policy.memory_kwargs,
            **_as_json(results),
        }
        file = folder / "evaluation.json"
        replace_file(file, json.dumps(summary, indent=2) + "\n")
        console.print(f"written to {file}", style="dim", **PLAIN_TEXT)


def _folder_to_write(console: Console, arguments: Arguments, agent: LoadedAgent) -> Path | None:
    """The run's folder; None for a checkpoint, and, after a line that says so, if it is read-only."""
    if agent.folder != arguments.run:
        return None
    if agent.folder is not None and not os.access(agent.folder, os.W_OK):
        console.print(f"not written to {agent.folder}, which is read-only", style="dim", **PLAIN_TEXT)
        return None
    return agent.folder


def _play(arguments: Arguments, agent: LoadedAgent, env: TensorEnv) -> _Results:
    """Plays the episodes of the agent, of its ablations, and of the memoryless and the random agent."""
    results = _Results()
    episodes, seed, max_steps = arguments.episodes, arguments.seed, arguments.max_steps
    greedy, policy = bool(arguments.deterministic), agent.model.policy

    def breakdown(name: str) -> Breakdown | None:
        return results.breakdowns.setdefault(name, Breakdown(env)) if arguments.errors else None

    scores, baseline = results.scores, None
    if arguments.identity and policy.memory_name != "identity":  # opened first: a damaged one costs no episodes
        baseline, results.remark = agent.baseline(arguments.device)
    scores["agent"] = evaluate(agent.model, env, episodes, greedy, seed, breakdown("agent"), max_steps)
    if baseline is not None:
        scores["identity"] = evaluate(baseline, env, episodes, greedy, seed, breakdown("identity"), max_steps)
    if arguments.ablate and not policy.initial_state(1):
        results.remark = f"{results.remark}\n--ablate: {policy.memory_name} has no state".lstrip()
    elif arguments.ablate:
        results.ablated = ablate(
            policy,
            scores["agent"],
            env.num_envs,
            arguments.ablate_every,
            lambda: evaluate(policy, env, episodes, greedy, seed, max_steps=max_steps),
        )
    if arguments.random:
        scores["random"] = random_score(env, episodes, seed, breakdown("random"), max_steps)
    return results


def _print_results(console: Console, arguments: Arguments, agent: LoadedAgent, env_id: str, results: _Results) -> None:
    score, memory = results.scores["agent"], agent.model.policy.memory_name
    title = f"{env_id}  {agent.description}, {score.episodes} episodes"
    names = {"agent": memory}
    print_scores(console, title, {names.get(name, name): each for name, each in results.scores.items()}, details=True)
    if score.cut:
        cut = f"{score.cut} episodes did not end and were cut after {arguments.max_steps:,} steps (--max-steps)"
        console.print(cut, **PLAIN_TEXT)
    if results.remark:
        console.print(results.remark, highlight=False)
    if results.ablated:
        print_ablation(console, memory, results.ablated)
    errors = results.errors()
    if arguments.errors and not errors["agent"]:
        console.print("errors: all answers belong to one group, so there is no breakdown", highlight=False)
    for group in errors.get("agent", ()):
        rows = {names.get(name, name): tables.get(group, []) for name, tables in errors.items()}
        print_errors(console, results.breakdowns["agent"].metric, group, rows)


def _as_json(results: _Results) -> dict[str, Any]:
    """For evaluation.json."""
    entries: dict[str, Any] = {"scores": {name: score.as_dict() for name, score in results.scores.items()}}
    if results.ablated:
        entries["ablation"] = as_json(results.ablated)
    if errors := results.errors():
        entries["errors"] = {
            name: {group: [row._asdict() for row in rows] for group, rows in tables.items()}
            for name, tables in errors.items()
        }
    return entries


def _saliency(arguments: Arguments, agent: LoadedAgent, env: TensorEnv, env_id: str) -> None:
    from agents.evaluation.saliency import figure, play_episode, saliency  # matplotlib

    file, policy = arguments.saliency, agent.model.policy
    assert file is not None
    if not file.parent.is_dir():
        raise CommandError(f"--saliency {file}: the folder {file.parent} does not exist")
    torch.manual_seed(arguments.seed + 1)
    console = make_console()
    with console.status("playing and differentiating ..."):
        episode = play_episode(policy, env, arguments.saliency_steps, bool(arguments.deterministic), arguments.seed)
        result = saliency(policy, episode, critic=not agent.model.learns_from_targets)
    picture = figure(result, f"{env_id} · {agent.description}")
    with replacing(file) as partial:
        picture.savefig(partial, dpi=150)
    folder = _folder_to_write(console, arguments, agent)
    if folder is not None:
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(folder)) as writer:
            writer.add_figure("saliency", picture, agent.model.num_timesteps)
    share, age = result.earlier_share(), result.median_age()
    old = f"; half of it to observations at least {age} {'step' if age == 1 else 'steps'} earlier" if age else ""
    line = f"{100 * share:.0f} % of the gradient norm of the actions belongs to earlier observations{old}"
    console.print(line, highlight=False)
    console.print(f"written to {file}", style="dim", **PLAIN_TEXT)


def _show(arguments: Arguments, agent: LoadedAgent | None, env: TensorEnv, env_id: str) -> None:
    from agents.view.session import Session  # pictures need pygame and matplotlib, scores do not

    policy = None
    if agent is not None and not arguments.play:
        policy = agent.model.policy
        check_spaces(policy, env)
    title = env_id.removeprefix("Engram/") + (f" · {policy.memory_name}" if policy is not None else "")
    subtitle = agent.description if agent else ""
    torch.manual_seed(arguments.seed + 1)  # the environment's seed would draw the same numbers
    critic = agent is not None and not agent.model.learns_from_targets
    session = Session(env, policy, title, subtitle, bool(arguments.deterministic), arguments.seed, critic)
    if arguments.video is not None:
        _record(arguments, session)
        return

    from agents.view.window import Viewer, ViewerError

    try:
        Viewer(session, arguments.fps).run()
    except ViewerError as error:
        raise CommandError(str(error)) from error
    if session.returns:
        mean = sum(session.returns) / len(session.returns)
        print(f"{'you' if arguments.play else 'agent'}: mean return {mean:.3f} over {len(session.returns)} episodes")


def _record(arguments: Arguments, session: Session) -> None:
    from agents.view.window import record

    file = arguments.video
    assert file is not None
    if not file.parent.is_dir():
        raise CommandError(f"--video {file}: the folder {file.parent} does not exist")
    with make_console().status("recording ...") as status:
        count = record(
            session,
            file,
            arguments.fps,
            arguments.video_steps,
            lambda done: status.update(f"recording: {done} pictures"),
        )
    print(f"{file}: {count} pictures, {count / arguments.fps:.1f} s, {os.path.getsize(file) / 1e6:.1f} MB")
