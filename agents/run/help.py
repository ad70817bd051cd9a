"""`--help` and `--list`: options in groups, and the arguments of the chosen memory, environment and learner."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import docstring_parser
import gymnasium
import tyro
from gymnasium.envs.registration import load_env_creator
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import envs
from agents.registry import learner_class, learners
from agents.run.config import Config
from agents.run.recipes import RECIPES
from policies.memories import memory_class, registered

GROUPS = {
    "Run": "imports recipe total_timesteps num_envs seed run_dir resume init_from lessons follows baseline "
    "eval_episodes eval_steps",
    "Environment": "env env_kwargs wrappers vector data_dir",
    "Memory and policy": "memory memory_kwargs encoder encoder_kwargs net_arch normalize_images bptt_segment",
    "Learner": "algo anneal",
    "Speed": "device threads fast precision",
    "Output": "progress checkpoint_every panels_every",
    "Sweep": "sweep trials jobs storage launcher",
}
"""Options of `train.py` by group; those of the learner follow its name."""
LISTS = ("memories", "envs", "recipes", "algos")


def show_help(console: Console, intro: str, command: type, defaults: Config) -> None:
    """`train.py --help`: all options, then the chosen memory's and environment's own arguments.

    Args:
        console: where to print.
        intro: as in `show_options`.
        command: dataclass of the options.
        defaults: from the recipe and from other flags.
    """
    kind = type(defaults.learner)
    hints, texts = get_type_hints(kind, include_extras=True), _texts(kind)
    learner = [_row(name, hints[name], texts.get(name, ""), value) for name, value in vars(defaults.learner).items()]
    title = f"Learner: {defaults.algo}"
    groups = {title if name == "Learner" else name: names for name, names in GROUPS.items()}
    show_options(console, intro, command, groups, vars(defaults), {title: learner})
    memory = _arguments(memory_class(defaults.memory), defaults.memory_kwargs)
    _print(console, f"--memory-kwargs of {defaults.memory}", memory)
    if (environment := _env_class(defaults.env)) is not None:
        _print(console, f"--env-kwargs of {defaults.env}", _arguments(environment, defaults.env_kwargs))
    console.print(
        f"Defaults are in brackets. --list {'|'.join(LISTS)} shows what is available.", markup=False, highlight=False
    )


def show_options(
    console: Console,
    intro: str,
    command: type,
    groups: Mapping[str, str],
    defaults: Mapping[str, Any] = MappingProxyType({}),
    more: Mapping[str, list[tuple[str, str]]] = MappingProxyType({}),
) -> None:
    """Prints a command's options in groups with their defaults.

    Args:
        console: where to print.
        intro: what the command does; paragraphs are wrapped at the console's width.
        command: dataclass of the options.
        groups: the options of each group; others are not shown.
        defaults: replace the dataclass's.
        more: further rows of a group.
    """
    for paragraph in intro.split("\n\n"):
        console.print(" ".join(paragraph.split()), markup=False, highlight=False, end="\n\n")
    hints, texts = get_type_hints(command, include_extras=True), _texts(command)
    known = {each.name: each.default for each in dataclasses.fields(command)} | {**defaults}
    for title, names in groups.items():
        rows = [_row(name, hints[name], texts.get(name, ""), known[name]) for name in names.split()]
        _print(console, title, [*rows, *more.get(title, [])])


def show_list(console: Console, what: str) -> None:
    """Prints names with a line each.

    Raises:
        ValueError: `what` is not in `LISTS`.
    """
    if what not in LISTS:
        raise ValueError(f"--list is {what!r}, expected one of {', '.join(LISTS)}")
    rows: Iterable[tuple[str, str]]
    if what == "memories":
        rows = ((name, _first(memory_class(name))) for name in registered())
    elif what == "algos":
        rows = ((name, _first(learner_class(name))) for name in learners.names())
    elif what == "envs":
        rows = ((name, _first(_env_class(name))) for name in envs.registered())
    else:
        rows = ((file.stem, _recipe(file)) for file in sorted(RECIPES.glob("*.yaml")))
    _print(console, what.capitalize(), rows)


def _texts(owner: type) -> dict[str, str]:
    """The docstrings under a dataclass's fields, by field."""
    texts: dict[str, str] = {}
    for base in reversed(owner.__mro__[:-1]):
        try:
            texts |= {each.arg_name: each.description or "" for each in docstring_parser.parse_from_object(base).params}
        except (OSError, TypeError):  # made at run time, without a source
            continue
    return texts


def _row(name: str, hint: Any, text: str, default: Any) -> tuple[str, str]:
    option = f"--{name.replace('_', '-')}"
    if get_origin(hint) is Annotated and tyro.conf.Positional in get_args(hint)[1:]:
        return f"{name.upper()} ..." if _kind(hint).endswith("...") else name.upper(), " ".join(text.split())
    kind = _kind(hint)
    label = f"{option}, --no-{option[2:]}" if kind == "" else f"{option} {kind}"
    return label, f"{' '.join(text.split())}{_shown(default)}"


def _kind(hint: Any) -> str:
    """What an option takes, as one word; "" for a switch."""
    origin = get_origin(hint)
    if origin is Annotated:
        return _kind(get_args(hint)[0])
    if origin is Literal:
        return "|".join(map(str, get_args(hint)))
    if origin in (Union, types.UnionType):
        return _kind(next(each for each in get_args(hint) if each is not type(None)))
    if origin in (list, tuple):
        return f"{_kind(get_args(hint)[0])} ..."
    if hint is bool:
        return ""
    if origin is dict:
        return "NAME=VALUE ..."
    return {str: "NAME", Path: "PATH", int: "N", float: "X"}.get(hint, "VALUE")


def _shown(value: Any) -> str:
    """A default in brackets; nothing where there is none."""
    if value is dataclasses.MISSING:
        return ""
    if isinstance(value, bool):
        return f" ({'on' if value else 'off'})"
    if isinstance(value, dict):
        value = [f"{name}={each}" for name, each in value.items()]
    if isinstance(value, (list, tuple)):
        value = " ".join(map(str, value)) or None
    return "" if value in (None, "") else f" ({value})"


def _arguments(owner: type, given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Constructor arguments with their docstrings and defaults. `given`: the recipe's values; they replace defaults."""
    texts: dict[str, str] = {}
    for base in reversed(owner.__mro__[:-1]):  # a family of memories describes its arguments once
        for each in docstring_parser.parse(base.__doc__ or "").params:  # one text may describe several: "a, b: ..."
            texts |= dict.fromkeys(each.arg_name.split(", "), each.description or "")
    hidden = {"self", "input_size", "queries", "num_envs", "device", "render_mode"}
    for name, parameter in inspect.signature(owner.__init__).parameters.items():  # type: ignore[misc]
        if name not in hidden and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            default = given.get(name, parameter.default)
            shown = " (required)" if default is parameter.empty else _shown(default)
            yield name, f"{' '.join(texts.get(name, '').split())}{shown}"


def _env_class(env_id: str) -> Any:
    """The class of an environment of this project; None for others."""
    if env_id not in envs.registered():
        return None
    return load_env_creator(str(gymnasium.spec(env_id).vector_entry_point))


def _first(owner: Any) -> str:
    """The first sentence of a docstring."""
    return _sentence((inspect.getdoc(owner) or "").split("\n\n")[0])


def _recipe(file: Path) -> str:
    """The first sentence of a recipe's first comment."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), file.read_text(encoding="utf-8").splitlines())
    return _sentence(" ".join(line.removeprefix("#") for line in lines))


def _sentence(text: str) -> str:
    return re.split(r"(?<=[.?])\s+(?=[A-Z`\"])", " ".join(text.split()))[0]


def _print(console: Console, title: str, rows: Iterable[tuple[str, str]]) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(overflow="fold", max_width=30)
    table.add_column()
    for label, text in rows:
        table.add_row(escape(label), escape(text))
    if table.row_count:
        console.print(f"[bold]{escape(title)}[/]", highlight=False)
        console.print(table, highlight=False)
        console.print()
