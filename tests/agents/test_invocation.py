"""Advice names commands that exist where the user is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from agents.common import invocation
from agents.common.invocation import command_for

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.parametrize(
    ("called", "folder", "scripts", "train", "evaluate"),
    [
        (ROOT / "train.py", ROOT, True, "python train.py", "python evaluate.py"),
        ("evaluate.py", ROOT, False, "python train.py", "python evaluate.py"),
        (ROOT / "train.py", "/", False, f"python {ROOT}/train.py", f"python {ROOT}/evaluate.py"),
        ("/usr/bin/engram-train", ROOT, True, "engram-train", "engram-evaluate"),
        ("/x/agents/run/__main__.py", "/", False, "python -m agents.run", "python -m agents.evaluation"),
        ("notebook", "/", True, "engram-train", "engram-evaluate"),
    ],
)
def test_the_command_as_it_was_called(
    monkeypatch: pytest.MonkeyPatch, called: str | Path, folder: str, scripts: bool, train: str, evaluate: str
) -> None:
    monkeypatch.setattr(sys, "argv", [str(called)])
    monkeypatch.setattr(invocation.shutil, "which", lambda name: f"/bin/{name}" if scripts else None)
    monkeypatch.chdir(folder)
    found = [command_for(name).replace("\\", "/") for name in ("train", "evaluate")]
    if folder == "/":  # relative names are shown only below the current folder
        found = [words.replace(f" {str(ROOT).lstrip('/')}", f" {ROOT}") for words in found]
    assert found == [train, evaluate]
