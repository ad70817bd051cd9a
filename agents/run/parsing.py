"""Parses the command line on top of its defaults: a recipe, a resumed run, or a sweep."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, TypeVar, get_type_hints

import tyro

from agents import latest_checkpoint
from agents.common.arguments import read
from agents.common.invocation import quoted
from agents.common.signals import terminable
from agents.common.terminal import make_console, replace_unprintable
from agents.environments import import_modules
from agents.run.config import Command, Config, known_entries, run_entries
from agents.run.failures import CommandError, ErrorContext
from agents.run.folder import checkpoint_folder, newest_checkpoint
from agents.run.help import show_help, show_list, show_options
from agents.run.options import read_options
from agents.run.recipes import base_config, load_config
from agents.scale import distributed

T = TypeVar("T")
Parsed = TypeVar("Parsed", tuple[Command, Path | None], tuple[Command, Path | None] | None)

DESCRIPTION = """Train an agent with a memory, such as --env CartPole-v1 --memory lstm --algo ppo.

Without arguments, an MNM agent learns the invisible-goal maze on the CPU. docs/metrics.md explains every logged number.
`torchrun --nproc-per-node=2 train.py ...` trains one agent with two processes; see docs/distributed.md."""


def parse(arguments: list[str]) -> tuple[Command, Path | None]:
    """The configuration, and with `--resume` the checkpoint to resume from.

    Flags override the recipe's values, and these the defaults. A resumed run starts from its own `config.yaml`, and a
    sweep from the fixed values of its file. A run that `torchrun` has restarted after a failure resumes automatically.

    Raises:
        ValueError: options contradict each other, or a value, a recipe or a module of `--imports` is wrong.
        CheckpointError: there is no checkpoint to resume from.
    """
    refuse_empty(arguments)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("recipe", "resume", "sweep", "env", "algo", "memory", "device", "list"):
        first.add_argument(f"--{name}")
    first.add_argument("--imports", nargs="*", default=[])
    first.add_argument("-h", "--help", action="store_true")
    first.add_argument("--run-dir", "--run_dir", type=Path)
    given, _ = first.parse_known_args(arguments)
    import_modules(given.imports)
    if given.list:
        show_list(make_console(report=False), given.list)
        sys.exit(0)
    if distributed.restarts() and given.run_dir and newest_checkpoint(given.run_dir):
        given.resume = given.run_dir
    checkpoint = None
    if given.sweep and given.resume:
        raise ValueError("--sweep and --resume exclude each other: to continue a sweep, repeat its command")
    if given.sweep and distributed.size() > 1:
        raise ValueError("--sweep starts its own processes: expected python train.py, not torchrun")
    if given.sweep:
        from agents.sweep import load_space

        defaults = load_space(given.sweep).defaults(vars(given))
    elif given.resume:
        checkpoint = latest_checkpoint(given.resume)
        run_dir = Path(given.resume) if checkpoint != Path(given.resume) else checkpoint_folder(checkpoint)
        if not (run_dir / "config.yaml").exists():
            advice = f"start a new run with its options and --init-from {quoted(checkpoint)}"
            raise ValueError(f"{run_dir} has no config.yaml, so it cannot be resumed: {advice}")
        defaults = load_config(run_dir / "config.yaml")
        defaults.run_dir = run_dir
    else:
        defaults = base_config(given.recipe, given.env, given.algo, given.memory, given.device)
    refuse_foreign(defaults, arguments)
    kind = type(defaults.learner)
    learner = ("learner", Annotated[kind, tyro.conf.arg(name="")], dataclasses.field(default=None))
    command: type[Command] = dataclasses.make_dataclass("Command", [learner], bases=(Command,))
    default = command(**vars(defaults))
    if given.help:
        default.memory, default.env = given.memory or default.memory, given.env or default.env
        show_help(make_console(report=False), DESCRIPTION, command, default)
        sys.exit(0)
    parsed = read_options(command, arguments, default=default, description=DESCRIPTION)
    config = Command(**vars(parsed))  # a class that can be pickled for other ranks
    config.imports = [*dict.fromkeys([*defaults.imports, *config.imports])]
    config.env_kwargs = defaults.env_kwargs | config.env_kwargs
    config.memory_kwargs = defaults.memory_kwargs | config.memory_kwargs
    config.fit()
    refuse_unused(config, arguments)
    return config, checkpoint


def parsed_by_first(parse_command: Callable[[], Parsed]) -> Parsed:
    """What rank 0 parses, on every rank. The others first import its modules, whose classes it may hold.

    Args:
        parse_command: returns what `parse` returns, or None; called on rank 0 only.
    """
    parsed: list[Parsed] = []

    def imports() -> list[str]:
        parsed.append(parse_command())
        return [] if parsed[0] is None else parsed[0][0].imports

    import_modules(distributed.from_first(imports))
    return distributed.from_first(lambda: parsed[0])


def refuse_foreign(defaults: Config, arguments: list[str]) -> None:
    """Refuses options of other learners.

    Raises:
        ValueError: there is one.
    """
    own = {*run_entries(), *vars(defaults.learner)}
    for name in named_options(arguments):
        entry = name.removeprefix("no_")
        if entry not in own and entry in known_entries():
            raise ValueError(f"--{name.replace('_', '-')} has no effect on {defaults.algo}: leave it out")


def refuse_unused(config: Command, arguments: list[str]) -> None:
    """Refuses options that have no effect here.

    Raises:
        ValueError: there is one.
    """
    for name in ("trials", "jobs", "storage", "launcher"):
        if name in named_options(arguments) and not config.sweep:
            raise ValueError(f"--{name} has no effect without --sweep")
    if config.fast == "graph" and not config.device.startswith(("cuda", "auto")):
        raise ValueError(f"--fast is graph, but --device is {config.device}: only CUDA has graphs")


def run_command(
    command: type[T],
    intro: str,
    groups: Mapping[str, str],
    arguments: list[str],
    run: Callable[[T], None],
    needs: Mapping[str, str],
) -> None:
    """Parses the command line of evaluate.py or compare.py and runs it; exits with one line on an error.

    Args:
        command: dataclass of the options.
        intro, groups: as in `show_options`.
        arguments: of the command line.
        run: called with the parsed options.
        needs: option → options of which at least one must be given for it to have an effect.
    """
    replace_unprintable()
    try:
        with ErrorContext("reading the command").user_errors():
            refuse_empty(arguments)
            if {"-h", "--help"} & {*arguments}:
                show_options(make_console(report=False), intro, command, groups)
                return
            hints = get_type_hints(command, include_extras=True)
            arguments = with_switch_values(arguments, [name for name in hints if hints[name] == bool | None])
            options = read_options(command, arguments)
            for name, hint in hints.items():
                setattr(options, name, read(f"--{name.replace('_', '-')}", getattr(options, name), hint))
            for name in named_options(arguments):
                needed = needs.get(name, "").split()
                if needed and not any(getattr(options, other) for other in needed):
                    words = " or ".join(f"--{other}" for other in needed)
                    raise ValueError(f"--{name.replace('_', '-')} has no effect without {words}")
        with terminable():  # before pygame, which leaves it alone then
            run(options)
    except KeyboardInterrupt:
        sys.exit(130)
    except CommandError as error:
        error.show()
        sys.exit(2)


def with_switch_values(arguments: list[str], switches: list[str]) -> list[str]:
    """Arguments with `--x` and `--no-x` as `--x True` and `--x False`.

    Args:
        arguments: of the command line.
        switches: options that are true, false or not given, for which tyro expects a value.
    """
    spelled: list[str] = []
    for word, after in zip_longest(arguments, arguments[1:]):
        name = word.removeprefix("--").replace("-", "_") if word.startswith("--") else ""
        if name in switches and after not in ("True", "False", "None"):
            spelled += [word, "True"]
        elif name.startswith("no_") and name.removeprefix("no_") in switches:
            spelled += [f"--{name.removeprefix('no_')}", "False"]
        else:
            spelled.append(word)
    return spelled


def named_options(arguments: list[str]) -> list[str]:
    """The options of a command line, by the names of their configuration entries."""
    return [word.split("=")[0].removeprefix("--").replace("-", "_") for word in arguments if word.startswith("--")]


def given_parts(arguments: list[str]) -> dict[str, str | None]:
    """Recipe, environment, learner and memory that a command line names."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("recipe", "env", "algo", "memory"):
        parser.add_argument(f"--{name}")
    return vars(parser.parse_known_args(arguments)[0])


def refuse_empty(arguments: list[str]) -> None:
    """Refuses empty options: most likely a shell variable is not set.

    Raises:
        ValueError: there is one.
    """
    option = ""
    for word in arguments:
        if not word or (word.startswith("--") and word.endswith("=") and word.count("=") == 1):
            name = option if not word else word.rstrip("=")
            raise ValueError(f"{name or 'an argument'} is empty, expected a value: is a shell variable unset?")
        option = word if word.startswith("--") else option
