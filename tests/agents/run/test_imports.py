"""`--imports`: memories and learners of a module in the current folder, from training to resuming and evaluation."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import SMALL, command

from agents import CheckpointError, load
from agents.evaluation.command import main as evaluate
from agents.registry import learners
from agents.run.recipes import load_config
from agents.sweep import load_space
from policies.memories.registry import memories

OWN = """
from dataclasses import dataclass
from agents import A2C, A2CConfig, register_learner
from policies.memories.recurrent.gru import GRU
from policies.memories.registry import register_memory

@register_memory("own-gru")
class OwnGRU(GRU):
    '''A GRU of one's own.'''

@dataclass
class OwnConfig(A2CConfig):
    own_coef: float = 0.5
    '''An option of one's own.'''

@register_learner("own-a2c")
class OwnA2C(A2C):
    '''An A2C of one's own.'''
    config_class = OwnConfig
    def __init__(self, *args, own_coef=0.5, **kwargs):
        self.own_coef = own_coef
        super().__init__(*args, **kwargs)
"""
AGENT = ["--imports", "own_module", "--memory", "own-gru", "--algo", "own-a2c", "--own-coef", "0.25"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the module, which no test before has imported."""
    (tmp_path / "own_module.py").write_text(OWN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    forget()


def forget() -> None:
    """As in a new process."""
    sys.modules.pop("own_module", None)
    memories.classes.pop("own-gru", None)
    learners.classes.pop("own-a2c", None)


def test_a_run_with_a_memory_and_a_learner_of_a_module(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder / "run"
    assert command(*SMALL, *AGENT, "--total-timesteps", "32", "--run-dir", run) == 0
    forget()
    config = load_config(run / "config.yaml")
    assert (config.imports, config.memory, config.learner.own_coef) == (["own_module"], "own-gru", 0.25)
    forget()
    assert command("--resume", run, "--total-timesteps", "64", "--no-progress") == 0
    forget()
    evaluate([str(run), "--episodes", "4", "--no-random"])
    assert "own-gru" in capsys.readouterr().out
    assert type(load(run, device="cpu")).__name__ == "OwnA2C"
    forget()
    with pytest.raises(CheckpointError, match="import the module that registers it"):
        load(run, device="cpu")  # a checkpoint alone imports nothing
    assert "own_module" not in sys.modules


def test_a_memoryless_agent_that_cannot_be_built_is_named_before_the_training(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refusal = """
        if kwargs.get("policy_kwargs", {}).get("memory") == "identity":
            raise ValueError("there is no memory to learn")
"""
    (folder / "own_module.py").write_text(OWN.rstrip() + refusal, encoding="utf-8")
    words = [*SMALL, *AGENT, "--total-timesteps", "32", "--run-dir", folder / "run"]
    baseline = [word for word in words if word != "--no-baseline"]
    assert command(*baseline, "--baseline") == 2
    said = capsys.readouterr().err
    assert "the memoryless agent cannot be built: there is no memory to learn; --no-baseline leaves it out" in said
    assert not (folder / "run").exists()
    assert command(*words, "--no-baseline") == 0
    assert command("--resume", folder / "run", "--total-timesteps", "64", "--baseline", "--no-progress") == 2
    assert "--no-baseline leaves it out" in capsys.readouterr().err


def test_help_and_lists_know_the_module(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(*AGENT, "--help") == 0
    assert command("--imports", "own_module", "--list", "memories") == 0
    found = capsys.readouterr().out
    assert "--own-coef" in found
    assert "A GRU of one's own." in found


def test_a_recipe_names_the_modules_and_flags_add_others(folder: Path) -> None:
    (folder / "other_module.py").write_text("", encoding="utf-8")
    (folder / "mine.yaml").write_text("imports: [own_module]\nmemory: own-gru\nalgo: own-a2c\n", encoding="utf-8")
    flags = ["--recipe", "mine.yaml", "--imports", "other_module", "--total-timesteps", "32", "--run-dir", "run"]
    assert command(*[word for word in SMALL if word not in ("--memory", "gru")], *flags) == 0
    assert load_config("run/config.yaml").imports == ["own_module", "other_module"]


def test_a_sweep_searches_memories_of_the_module(folder: Path) -> None:
    space = "fixed: {imports: [own_module]}\nspace: {memory: [own-gru, gru], own_coef: {low: 0, high: 1}}\n"
    (folder / "space.yaml").write_text(space, encoding="utf-8")
    assert load_space("space.yaml").defaults({}).imports == ["own_module"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--imports", "own_modul"], "cannot import 'own_modul' for 'imports': it is not installed"),
        (["--memory", "own-gru"], "a memory of your own: import its module first (train.py --imports)"),
        (["--imports", "broken"], "cannot import 'broken' for 'imports': ZeroDivisionError"),
        (["--recipe", "text.yaml"], "text.yaml: imports is 'own_module', expected a list of modules: [own_module]"),
        (["--sweep", "space.yaml"], "space.yaml: fixed: cannot import 'own_modul' for 'imports'"),
    ],
)
def test_what_cannot_be_imported_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    (folder / "broken.py").write_text("1 / 0", encoding="utf-8")
    (folder / "text.yaml").write_text("imports: own_module\n", encoding="utf-8")
    space = "fixed: {imports: [own_modul]}\nspace: {memory: [gru]}\n"
    (folder / "space.yaml").write_text(space, encoding="utf-8")
    assert command(*words, "--run-dir", "run") == 2
    errors = capsys.readouterr().err
    assert message in " ".join(errors.split())
    assert not (folder / "run").exists()
