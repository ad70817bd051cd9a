"""Wrong options get one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import command

from agents.evaluation.command import main as evaluate
from agents.run.options import one_line


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--vector", "foo"], "--vector is 'foo', expected one of 'sync', 'async'"),
        (["--total-timestep", "5"], "unknown: --total-timestep 5; did you mean --total-timesteps?"),
        (
            ["--memroy", "gru", "--nnum-envs=3"],
            "unknown: --memroy gru --nnum-envs=3; did you mean --memory or --num-envs?",
        ),
        (["--xyzzy"], "unknown: --xyzzy; --help lists all options"),
        (["--num-envs", "x"], "--num-envs is 'x', expected a whole number"),
        (["--num-envs"], "--num-envs has no value, expected one"),
        (["--env-kwargs", "size"], "--env-kwargs: 'size': expected NAME=VALUE"),
        (["--net-arch", "3", "x"], "--net-arch is ['3', 'x'], expected {None}|{[INT [INT ...]]}"),
    ],
)
def test_a_wrong_option_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], line: str
) -> None:
    """Whatever the width of the terminal."""
    for columns in ("40", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        assert command(*words, "--run-dir", tmp_path / "run") == 2
        assert capsys.readouterr().err == f"error: {line}\n"
    assert not (tmp_path / "run").exists()


def test_of_an_evaluation(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        evaluate(["runs/x", "--episodes", "many"])
    assert capsys.readouterr().err == "error: --episodes is 'many', expected a whole number\n"


def test_other_texts_of_the_parser_are_kept() -> None:
    assert one_line("something else\n  is wrong\n") == "something else is wrong"
