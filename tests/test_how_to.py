"""The how-to pages are followed to the letter in a copy of the repository, and the copy's tests pass."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_docs import DOCS, ROOT, blocks

PARTS = ("agents", "benchmarks", "docs", "envs", "policies", "recipes", "results", "tests", "pyproject.toml")
PARTS += ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "train.py", "evaluate.py", "compare.py")


def run(folder: Path, command: str) -> str:
    """A command in the copy, which must import its own modules."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "SDL_VIDEODRIVER": "dummy"}
    words = [sys.executable, *shlex.split(command)[1:], "-p", "no:cacheprovider"]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout


def files_to_touch(page: Path) -> dict[str, str]:
    """The rows of the table of files: each file, and what goes in."""
    rows = re.findall(r"^\| `([\w./]+/[\w./]+)` \| (.*) \|$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: words.replace("\\|", "|") for name, words in rows}


def follow(page: Path, folder: Path, module: str, after: dict[str, str]) -> None:
    """Do what each row says; `after` has, for each file that gets a line, the line it is put after."""
    for name, words in files_to_touch(page).items():
        path = folder / name
        if name.endswith(".csv"):
            continue  # written by a command, when the rest is there
        if path.exists():
            line = re.findall(r"`(.+?)` in", words)[0]
            text = path.read_text(encoding="utf-8")
            assert text.count(after[name]) == 1, f"{name} has no single line {after[name]!r}"
            path.write_text(text.replace(after[name], f"{after[name]}{line}\n"), encoding="utf-8")
        elif name.endswith(".md"):
            path.write_text(blocks(page, "markdown")[0][1], encoding="utf-8")
        else:
            path.write_text(next(code for _, code in blocks(page, "python") if module in code), encoding="utf-8")
    for words in files_to_touch(page).values():
        for command in re.findall(r"`(python -m pytest .+?)`", words):
            run(folder, command)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    ignored = shutil.ignore_patterns("__pycache__", "*.gif", "*.so", ".*")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, tmp_path / part, ignore=ignored)
        else:
            shutil.copy(ROOT / part, tmp_path / part)
    return tmp_path


LISTS = ("agents/test_pretend_gpu.py", "test_cases.py", "test_docs.py", "test_layers.py")
COMPLETE = "has_a_row or budget_has or index or every_memory_and_learner_has or upwards or circle"
"""The tests which notice that something is missing."""


def test_add_a_memory_and_an_environment(copy: Path) -> None:
    """Both pages in one copy: each has rows of its own in the lists, and starting the tests takes longest."""
    lines = {
        "policies/memories/__init__.py": "    stack_rnn,\n",
        "tests/cases.py": "_MEMORIES = [\n",
        "docs/README.md": "| page | memory |\n|---|---|\n",
    }
    follow(DOCS / "add-a-memory.md", copy, '@register_memory("trace")', lines)
    lines = {"envs/__init__.py": "_CLASSES = {\n", "tests/cases.py": "_ENVIRONMENTS = [\n"}
    follow(DOCS / "add-an-environment.md", copy, "class Recall(TensorEnv)", lines)
    tests = ("policies/memories/test_memory_conformance.py", "envs/test_env_conformance.py")
    tests += ("agents/test_cuda_graphs_everywhere.py", *LISTS)
    new = "trace and not VTrace and not vtrace or Recall and not AssociativeRecall and not MnistRecall"
    files = " ".join(f"tests/{name}" for name in tests)
    passed = run(copy, f"python -m pytest -x -rp {files} -k '{new} or {COMPLETE}'")
    for name in ("trace", "Recall"):
        assert len(re.findall(rf"^PASSED .*\b{name}\b", passed, re.MULTILINE)) > 10, passed


def test_add_a_learner_names_every_file_of_its_example() -> None:
    """Its blocks run in test_docs.py; its example is in the tree, so what it touched can be looked up."""
    section = (DOCS / "add-a-learner.md").read_text(encoding="utf-8").split("*In this repository*")[1].split("*In a")[0]
    named = set(re.findall(r"`([\w./]+/[\w./]+)`", section))
    estimator = {"agents/returns.py", "tests/agents/test_returns.py"}  # a function of its own
    texts = [path for part in ("agents", "docs", "tests") for path in (ROOT / part).rglob("*.*")]
    touched = {
        path.relative_to(ROOT).as_posix()
        for path in texts
        if path.suffix in (".py", ".md", ".csv") and "vtrace" in path.read_text(encoding="utf-8").lower()
    }
    assert touched - estimator - {"docs/add-a-learner.md", "tests/test_how_to.py"} == named
