"""Installed from a wheel, without a checkout, in a folder where nothing of it lies: commands, recipes and C kernels."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("setuptools")
ROOT = Path(__file__).resolve().parent.parent
COMPILER = next(filter(shutil.which, ("cc", "gcc", "clang")), None)
PARTS = ("agents", "envs", "policies", "recipes", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the wheel has, as pip unpacks it, console scripts included."""
    source, place = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("place")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    if subprocess.run([*pip, "--version"], capture_output=True).returncode:
        pytest.skip("pip is not there")
    command = [*pip, "install", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(place), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=place)
    assert done.returncode == 0, done.stderr
    return place


def run(installed: Path, folder: Path, *words: str) -> str:
    """What a command prints in `folder`, with the wheel's files before all others; C is compiled anew, unoptimised."""
    environment = os.environ | {
        "PYTHONPATH": str(installed),
        "XDG_CACHE_HOME": str(folder),
        "OMP_NUM_THREADS": "1",
    }
    if COMPILER:
        quick = folder / "quick-cc"
        quick.write_text(f'#!/bin/sh\nexec {COMPILER} "$@" -O0\n')  # the last -O counts
        quick.chmod(0o755)
        environment["CC"] = str(quick)
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_takes_no_names_that_others_use(installed: Path) -> None:
    top = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert top == {"agents", "envs", "policies", "recipes", "bin"}


def test_every_file_that_is_no_python_is_there(installed: Path) -> None:
    """Kernels, recipes, type markers."""
    for part in PARTS[:4]:
        ours = {path.relative_to(ROOT) for path in (ROOT / part).rglob("*") if path.is_file()}
        ours = {path for path in ours if "__pycache__" not in path.parts}
        theirs = {path.relative_to(installed) for path in (installed / part).rglob("*") if path.is_file()}
        assert ours <= theirs


def test_train_evaluate_act_and_compile_from_another_folder(installed: Path, tmp_path: Path) -> None:
    """By the console script, a recipe by its name; the modules that run and the kernels are the installed ones."""
    small = [
        "--total-timesteps",
        "200",
        "--num-envs",
        "2",
        "--eval-episodes",
        "2",
        "--run-dir",
        "mine",
        "--no-progress",
        "--panels-every",
        "0",
    ]
    said = run(installed, tmp_path, str(installed / "bin" / "engram-train"), "--recipe", "copy-ntm", *small)
    assert "mine" in said
    assert (tmp_path / "mine" / "summary.json").is_file()
    script = f"""
import pathlib, torch
import agents, envs, policies
from agents.evaluation.command import main
from policies.native.compiler import library
for module in (agents, envs, policies):
    assert module.__file__.startswith({str(installed)!r}), module.__file__
try:
    main(["mine", "--episodes", "2"])
except SystemExit as ended:
    assert not ended.code
agent = agents.Agent.load("mine", device="cpu")
agent.act(agent.policy.observation_space.sample())
sources = sorted(pathlib.Path(policies.__file__).parent.rglob("*.c"))
assert sources
if {COMPILER is not None}:
    for source in sources:
        assert library(source, torch.float32) is not None, source
"""
    run(installed, tmp_path, "-c", script)
    assert "engram-evaluate" in {path.name for path in (installed / "bin").iterdir()}
    assert "ntm" in run(installed, tmp_path, str(installed / "bin" / "engram-compare"), "mine")
