"""Every failure says what, where and what is safe."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import odd_envs  # noqa: F401 - registers the environment
import pytest
import torch
from command_line import SMALL, command
from safetensors import SafetensorError

import agents
from agents.common.files import replace_file
from agents.evaluation.command import main as evaluate

ROOT = Path(__file__).resolve().parents[3]
ODD = [*SMALL[4:], "--env", "Odd-v0", "--total-timesteps", 64]


@pytest.mark.parametrize(
    ("way", "says", "theirs"),
    [
        (
            "value",
            "environment Odd-v0 failed while training, after 20 environment steps: ValueError: bad joint state",
            True,
        ),
        ("key", "environment Odd-v0 failed while training, after 20 environment steps: KeyError: 'joint 3'", True),
        (
            "disk",
            "environment Odd-v0 failed while training, after 20 environment steps: OSError: [Errno 28] No space",
            True,
        ),
        ("tuple", "after 20 environment steps: step returned 4 values, expected 5", False),
        ("shape", "environment Odd-v0 failed while training, after 20", False),
        ("reward", "environment Odd-v0 failed while training, after 20", False),
    ],
)
def test_an_environment_that_fails_is_named_with_step_and_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], way: str, says: str, theirs: bool
) -> None:
    run = tmp_path / "run"
    assert command(*ODD, "--env-kwargs", f"way={way}", "--run-dir", run) == 2
    *trace, line = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert says in line
    assert f"; the last good checkpoint is {run / 'checkpoints' / 'step_000000000016'}; continue with: python" in line
    assert agents.load(agents.latest_checkpoint(run)).num_timesteps == 16
    files = [words.strip() for words in trace if words.strip().startswith("File ")]
    assert bool(files) == theirs  # the traceback of their code, and nothing of ours; the line says it all elsewhere
    assert all("odd_envs.py" in file for file in files)


@pytest.mark.parametrize("way", ["reset", "init"])
def test_before_the_first_step_there_is_no_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], way: str
) -> None:
    run = tmp_path / "run"
    assert command(*ODD, "--env-kwargs", f"way={way}", "--run-dir", run) == 2
    said = capsys.readouterr().err
    assert "the last good checkpoint" not in said
    line = said.strip().splitlines()[-1]
    if way == "init":
        assert line == "error: environment 'Odd-v0' cannot be built: RuntimeError: no licence"
        assert "odd_envs.py" in said
        assert not run.exists()
    else:
        assert line.startswith("error: environment Odd-v0 failed while training, after 0 environment steps: ")
        assert "no checkpoint was written yet" in line
        assert all("odd_envs.py" in words for words in said.splitlines() if words.strip().startswith("File "))


def test_an_episode_without_an_end_is_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    words = ["--env-kwargs", "way=endless", "--eval-episodes", 6, "--eval-steps", 40, "--run-dir", run]
    assert command(*ODD, *words) == 0
    said = capsys.readouterr().out
    assert "6 episodes with gru" in said
    assert "4 of the 4 episodes did not end and were cut after 40 steps (--eval-steps)" in said
    assert '"mean_return": 40.0' in (run / "summary.json").read_text()
    evaluate([str(run), "--episodes", "3", "--max-steps", "16", "--no-random"])
    said = capsys.readouterr().out
    assert "3 episodes of Odd-v0 on 3 environments" in said
    assert "3 episodes did not end and were cut after 16 steps" in said


def fails_at(step: int, error: BaseException) -> Any:
    save = agents.MemoryOnPolicyAlgorithm.save

    def failing(self: agents.MemoryOnPolicyAlgorithm, path: Any) -> None:
        if self.num_timesteps >= step:
            raise error
        save(self, path)

    return failing


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x/y"), "cannot read or write while training, after 32"),
        (SafetensorError("I/O error: No space left on device"), "I/O error: No space left on device (in"),
        (MemoryError(), "out of memory while training, after 32 environment steps"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"), "use fewer --num-envs"),
    ],
)
def test_a_full_disk_or_memory_names_the_last_good_checkpoint(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    says: str,
) -> None:
    monkeypatch.setattr(agents.MemoryOnPolicyAlgorithm, "save", fails_at(32, error))
    run = tmp_path / "run"
    assert command(*SMALL, "--total-timesteps", 64, "--run-dir", run) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert says in said
    assert f"the last good checkpoint is {run / 'checkpoints' / 'step_000000000016'}; continue with: " in said


def test_what_nobody_expected_keeps_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(agents.MemoryOnPolicyAlgorithm, "save", fails_at(32, ValueError("from a callback")))
    assert command(*SMALL, "--total-timesteps", 64, "--run-dir", tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert said.startswith("Traceback")
    assert "error: ValueError: from a callback while training, after 32 environment steps" in said
    assert "the last good checkpoint" in said


@pytest.mark.skipif(os.name == "nt", reason="other permissions")
@pytest.mark.parametrize("where", ["file/run", "/proc/x/run", "/dev/null", "n" * 300])
def test_folders_that_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert command(*SMALL, "--total-timesteps", 16, "--run-dir", where) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert where.removesuffix("/run")[:60] in said


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "mps", "xla", "meta", "tpu", "cuda:x"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is an accelerator")
def test_a_device_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], device: str) -> None:
    assert command(*SMALL, "--device", device, "--run-dir", tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: --device {device}: ")
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


RECIPES = {
    "learning_rate: 1e-3x": "learning_rate is '1e-3x', expected a number from 0 to 10",
    "total_timesteps: x": "total_timesteps is 'x', expected a whole number of at least 1",
    "fast: maybe": "fast is 'maybe', expected auto, off, compile or graph",
    'num_envs: "four"': "num_envs is 'four'",
    "seed: null": "seed is null, expected",
    "threads: 0": "threads is 0, expected a whole number from 1 to 256",
    "target_kl: x": "target_kl is 'x', expected a number above 0 or null",
    "eval_episodes: -1": "eval_episodes is -1",
    "5: 1\nzzz: 1": "5 is an unknown entry",
    "learning-rate: 1": "learning-rate is an unknown entry; did you mean learning_rate?",
    "env_kwargs: [1]": "env_kwargs is [1], expected NAME: VALUE entries",
    "env: [": "expected the node content",
    "env: &a x\nmemory: *a": "aliases",
    "env: !!python/name:os.system": "could not determine a constructor",
    "gamma: 0.9\ngamma: 0.8": "the entry 'gamma' is given twice",
    "- 1": "is not a configuration",
    "": "is not a configuration",
    "device: null": "device is null, expected text",
    "progress: 1": "progress is 1, expected true or false",
    "algo: dqn": "no learner is called 'dqn'; known: a2c",
}


@pytest.mark.parametrize("text", RECIPES)
def test_a_recipe_that_is_wrong_gets_one_line_with_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(text)
    assert command("--recipe", recipe, "--run-dir", tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {recipe}")
    assert said.count("\n") == 1
    assert RECIPES[text] in said
    assert not (tmp_path / "run").exists()


def test_numbers_and_words_as_people_write_them(tmp_path: Path) -> None:
    recipe, run = tmp_path / "mine.yaml", tmp_path / "run"
    recipe.write_text(
        "env: Engram/RepeatFirst-v0\nenv_kwargs:\nmemory: gru\nmemory_kwargs: {hidden_size: 8.0}\nlearning_rate: 1e-3\n"
        "total_timesteps: 1e2\nnum_envs: '4'\nn_steps: 4\nfast: off\nbaseline: no\nprogress: off\neval_episodes: 4\n"
    )
    assert command("--recipe", recipe, "--run-dir", run) == 0
    again = tmp_path / "again"
    assert command("--recipe", run / "config.yaml", "--run-dir", again) == 0  # a run's configuration is a recipe
    one, other = ((folder / "config.yaml").read_text().splitlines() for folder in (run, again))
    changed = {line.split(":")[0] for line in set(one) ^ set(other)}
    assert changed == {"run_dir", "recipe"}
    assert "learning_rate: 0.001" in one
    assert "total_timesteps: 100" in one


@pytest.mark.parametrize("encoding", ["ascii", "cp932", "latin-1"])
def test_output_degrades(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    """What the encoding has not becomes a question mark."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    run = tmp_path / "run"
    assert command(*SMALL, "--total-timesteps", 16, "--run-dir", run) == 0
    assert command("--resume", run, "--total-timesteps", 32, "--learning-rate", "1e-5") == 0
    stream.flush()
    said = stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert "resuming at step 16; learning_rate 0.0003" in said
    assert "mean return" in said


def with_closed_pipe(*words: object) -> tuple[int, str]:
    """Runs `train.py` with a pipe that nobody reads as its output; returns its exit status and standard error."""
    program = f"import sys; sys.path[:0] = [{str(ROOT)!r}]; from agents.run.command import main; main(sys.argv[1:])"
    reading, writing = os.pipe()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program, *map(str, words)]
    process = subprocess.Popen(command, stdout=writing, stderr=subprocess.PIPE, env=environment)
    os.close(writing)
    os.close(reading)
    said = process.communicate(timeout=120)[1].decode()
    return process.returncode, said


@pytest.mark.skipif(os.name == "nt", reason="pipes of another kind")
def test_a_closed_pipe_does_not_end_a_training(tmp_path: Path) -> None:
    run = tmp_path / "run"
    status, said = with_closed_pipe(*SMALL, "--total-timesteps", 16, "--run-dir", run)
    assert "standard output can no longer be written" in said
    assert status == 0, said
    assert (run / "summary.json").exists()


@pytest.mark.skipif(os.name == "nt", reason="pipes of another kind")
def test_a_reader_of_the_help_may_stop_early() -> None:
    """As in `python train.py --help | head -3`."""
    assert with_closed_pipe("--help") == (0, "")


@pytest.mark.parametrize("step", [0, 32])
def test_what_is_said_of_a_stop_at_once_is_true(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], step: int
) -> None:
    """Ctrl-C twice, or SIGTERM where nothing is in training."""
    monkeypatch.setattr(agents.MemoryOnPolicyAlgorithm, "save", fails_at(step, KeyboardInterrupt()))
    run = tmp_path / "run"
    assert command(*SMALL, "--total-timesteps", 64, "--run-dir", run) == 130
    kept = f"the last good checkpoint is {run / 'checkpoints' / 'step_000000000016'}; continue with: "
    expected = kept if step else "no checkpoint was written yet"
    assert f"stopped at once; {expected}" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM for one process")
def test_sigterm_in_evaluation_says_what_is_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("agents.run.training.evaluate", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    run = tmp_path / "run"
    assert command(*SMALL, "--total-timesteps", 64, "--run-dir", run) == 130
    assert f"the last good checkpoint is {run / 'checkpoints' / 'step_000000000064'}" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before
    monkeypatch.undo()
    assert command("--resume", run) == 0  # only the score was missing
    assert (run / "summary.json").exists()


def test_a_file_that_cannot_be_written_is_named_and_keeps_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "summary.json"
    replace_file(file, "old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as error:
        replace_file(file, "new")
    assert error.value.filename == str(file)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("script", ["train.py", "evaluate.py", "compare.py"])
def test_ctrl_c_while_torch_is_loaded_shows_no_traceback(tmp_path: Path, script: str) -> None:
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt")
    end = subprocess.run(
        [sys.executable, str(ROOT / script), "runs"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (end.returncode, end.stdout, end.stderr) == (130, "", "")
