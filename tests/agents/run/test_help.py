"""`--help` and `--list`: every option once, in a group, wrapped by words, with the chosen parts' own arguments."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from agents import LEARNERS
from agents.comparison import command as comparison
from agents.evaluation import command as evaluation
from agents.run.config import Command
from agents.run.parsing import parse
from envs import registered as environments
from policies.memories import registered


def printed(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int = 80
) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    with pytest.raises(SystemExit) as left:
        parse(words)
    assert left.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("algo", LEARNERS)
def test_every_option_is_there_once(
    algo: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(["--algo", algo, "--help"], monkeypatch, capsys, 160)
    found = re.findall(r"^--([a-z-]+)", text[text.index("\nRun\n") :], flags=re.M)
    own = [each.name for each in dataclasses.fields(LEARNERS[algo].config_class)]
    expected = [each.name for each in dataclasses.fields(Command) if each.name != "learner"]
    options = [name for name in found if name not in ("memory-kwargs", "env-kwargs") and not name.startswith("no-")]
    assert sorted([*options, "memory-kwargs", "env-kwargs"]) == sorted(n.replace("_", "-") for n in (*expected, *own))
    groups = re.findall(r"^([A-Z][a-z]+[^.\n]{0,30})$", text, flags=re.M)
    assert groups[:4] == ["Run", "Environment", "Memory and policy", f"Learner: {algo}"]


@pytest.mark.parametrize("width", [80, 120])
def test_lines_are_wrapped_by_words(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(["--memory", "dnc", "-h"], monkeypatch, capsys, width)
    assert max(map(len, text.splitlines())) <= width
    words = set(text.split())
    for word in ("Engram/InvisibleGoalMaze-v0", "gymnasium.wrappers:FlattenObservation", "environments."):
        assert any(word in each for each in words), word


@pytest.mark.parametrize("memory", registered())
def test_the_chosen_memory_shows_its_arguments(
    memory: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(["--memory", memory, "--help"], monkeypatch, capsys, 200)
    assert (f"--memory-kwargs of {memory}" in text) == (memory != "identity")
    if memory != "identity":
        own = text.split(f"--memory-kwargs of {memory}")[1].split("--env-kwargs of")[0]
        for line in own.strip().splitlines():
            assert re.fullmatch(r"[a-z_0-9]+ {2,}.+|\s{4,}.+", line.rstrip()), line  # each has a meaning or a default
    assert "goal_reward" in text  # those of the environment


@pytest.mark.parametrize("command", [evaluation, comparison], ids=["evaluate", "compare"])
def test_the_other_commands_show_every_option_once(
    command: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(command.Arguments)]
    for width in (80, 160):
        monkeypatch.setenv("COLUMNS", str(width))
        command.main(["somewhere", "--help"])
        text = capsys.readouterr().out
        assert max(map(len, text.splitlines())) <= width
    found = re.findall(
        r"^(--(?!no-)[a-z-]+|RUNS? )", text[text.index(f"\n{next(iter(command.GROUPS))}\n") :], flags=re.M
    )
    positional = options.index("--run") if "--run" in options else options.index("--runs")
    options[positional] = f"{options[positional].removeprefix('--').upper()} "
    assert sorted(found) == sorted(options)


def test_lists_have_a_line_each(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for what, names in (
        ("memories", registered()),
        ("envs", environments()),
        ("algos", LEARNERS),
        ("recipes", ["maze-ppo"]),
    ):
        text = printed(["--list", what], monkeypatch, capsys, 300)
        for name in names:
            assert re.search(rf"^{re.escape(name)} +\S.*", text, flags=re.M), name
    with pytest.raises(ValueError, match=r"--list is 'foo', expected one of memories, envs, recipes, algos"):
        parse(["--list", "foo"])
