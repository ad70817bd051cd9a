"""The README's commands work: each is run, with less to do and in an empty folder."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import compare
import evaluate
import train
from agents.sweep import driver
from agents.sweep.space_file import load_space
from agents.view import window as viewer

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
TRAIN_LESS = shlex.split("--num-envs 2 --n-steps 8 --total-timesteps 16 --eval-episodes 2 --panels-every 0")
TRAIN_LESS += ["--device", "cpu", "--no-progress"]
EVALUATE_LESS = shlex.split("--episodes 2 --num-envs 2")
LOOK_SECONDS = 0.5


def commands() -> list[list[str]]:
    """Every command of the README's bash blocks as words, in order; `a && b` is two."""
    text = README.read_text(encoding="utf-8")
    found = []
    for block in re.findall(r"^```bash\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words:
                end = words.index("&&") if "&&" in words else len(words)
                found.append(words[:end])
                words = words[end + 1 :]
    return [command for command in found if command]


def of(script: str) -> list[list[str]]:
    return [command[2:] for command in commands() if command[:2] == ["python", script]]


def exit_status(function: object, *arguments: object) -> object:
    """What `sys.exit` was given; 0 where it was not called."""
    assert callable(function)
    try:
        function(*arguments)
    except SystemExit as finished:
        return finished.code or 0
    return 0


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the first command leaves, having had less to do."""
    folder = tmp_path_factory.mktemp("readme") / "run"
    assert exit_status(train.main, [*TRAIN_LESS, "--run-dir", str(folder)]) == 0
    return folder


def test_the_two_commands_come_first() -> None:
    first = re.findall(r"^```bash\n(.*?)^```$", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)[0]
    assert first.splitlines()[:2] == [
        "python -m pip install -c constraints.txt -e . && python train.py",
        'python -m pip install -c constraints.txt -e ".[test]" && python -m pytest',
    ]


def test_everything_that_is_run_is_there() -> None:
    for command in commands():
        for word in command:
            if word.endswith(".py"):
                assert (ROOT / word).is_file(), shlex.join(command)


@pytest.mark.parametrize("arguments", of("train.py"), ids=shlex.join)
def test_train_commands_run(
    arguments: list[str], finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if "--resume" in arguments:
        arguments = ["--resume", str(finished_run), "--total-timesteps", "32", "--no-baseline", *TRAIN_LESS[-3:]]
        assert exit_status(train.main, arguments) == 0
        assert (finished_run / "checkpoints" / "step_000000000032").is_dir()
        return
    if "--sweep" in arguments:
        monkeypatch.setattr(driver, "load_space", lambda name: dataclasses.replace(load_space(name), seeds=(0,)))
        assert exit_status(train.main, [*arguments, *TRAIN_LESS, "--trials", "1"]) == 0
        assert len(list(tmp_path.glob("runs/*/best.yaml"))) == 1
        return
    runs = 0 if {"--help", "--list"} & {*arguments} else 1
    assert exit_status(train.main, [*arguments, *TRAIN_LESS]) == 0
    assert len(list(tmp_path.glob("runs/*/summary.json"))) == runs
    assert bool(list(tmp_path.glob("runs/*/lessons/*/summary.json"))) == ("--lessons" in arguments)


@pytest.mark.parametrize("arguments", of("evaluate.py"), ids=shlex.join)
def test_evaluate_commands_run(
    arguments: list[str], finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the run just made. A window is looked at for a moment and without a screen; a video has few pictures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    arguments = [str(finished_run) if word.startswith("runs/") else word for word in arguments]
    if "--watch" in arguments or "--play" in arguments:
        seen = []

        def look(self: viewer.Viewer) -> None:
            for _ in range(3):
                self._last -= LOOK_SECONDS
                self.tick()
            seen.append(self.frame)
            self.close()

        monkeypatch.setattr(viewer.Viewer, "run", look)
        less = []
    elif "--video" in arguments:
        less = ["--video-steps", "3"]
    else:
        less = [] if "--saliency" in arguments else EVALUATE_LESS
    monkeypatch.setattr("sys.argv", ["evaluate.py", *arguments, *less, "--device", "cpu"])
    assert exit_status(evaluate.main) == 0
    if "--video" in arguments:
        assert (tmp_path / arguments[arguments.index("--video") + 1]).stat().st_size > 0
    elif "--watch" in arguments or "--play" in arguments:
        assert seen[0] is not None
    else:
        assert (finished_run / "evaluation.json").is_file()


@pytest.mark.parametrize("arguments", of("compare.py"), ids=shlex.join)
def test_compare_commands_run(arguments: list[str], finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(finished_run) if word.startswith("runs") else word for word in arguments]
    assert exit_status(compare.main, words) == 0
    assert "identity" in capsys.readouterr().out
