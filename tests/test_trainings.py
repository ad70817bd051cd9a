"""Benchmarks use a run again only if it is the same training, and replace what is published only when told."""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path

import pytest

from agents.run.parsing import parse

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
Training = importlib.import_module("trainings").Training
WORDS = ("--recipe", "maze-ppo", "--memory", "lstm", "--seed", "1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A complete run of `WORDS`, but for its training."""
    config, _ = parse([*WORDS, "--threads", "2"])
    config.save(tmp_path / "config.yaml")
    (tmp_path / "summary.json").write_text('{"mean_return": 1.0}')
    return tmp_path


def test_the_same_training_is_used_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name for path in folder.iterdir()}
    Training(folder, WORDS).train()
    assert f"complete: {folder}" in capsys.readouterr().out
    assert {path.name for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (("--total-timesteps", "64000"), "total_timesteps is 960000, not 64000"),
        (("--memory-kwargs", "hidden_size=8"), "memory_kwargs.hidden_size is None, not 8"),
        (("--learning-rate", "1e-4"), "learning_rate is"),
    ],
)
def test_another_training_is_refused(folder: Path, other: tuple[str, ...], text: str) -> None:
    with pytest.raises(SystemExit, match="has another training") as end:
        Training(folder, (*WORDS, *other)).train()
    assert text in str(end.value)


def test_published_files_are_not_replaced_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "maze-ppo.csv").write_text("published")
    words = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path)]
    script = str(ROOT / "benchmarks" / "learning_curves.py")
    monkeypatch.setattr(sys, "argv", [script, *words])
    with pytest.raises(SystemExit, match=r"maze-ppo\.csv exists"):
        runpy.run_path(script, run_name="__main__")
    assert (tmp_path / "maze-ppo.csv").read_text() == "published"
    assert not (tmp_path / "runs").exists()
