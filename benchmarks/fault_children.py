"""Runs commands in processes forked from a warm process, with limits of memory and time, and checks their outcomes.

A try is *passed* if the command works, or ends with a one-line error that names the cause, a non-zero exit status and
no loss of data. `complaint` describes a violation.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train

MEMORY = 4 << 30
"""Bytes of address space that a child may use beyond those of this process."""

Must = Literal["work", "refuse", "either"]


@dataclass(frozen=True)
class Outcome:
    """How a child ended."""

    status: int | None
    """Exit status; negative: the signal that ended the child; None: it reached its time limit."""
    output: str
    """Standard output and error."""
    seconds: float


@dataclass(frozen=True)
class Try:
    """One line of the campaign's record."""

    block: str
    what: str
    """The input."""
    wrong: str
    """The violation; empty if there is none."""
    seconds: float = 0.0


class Child:
    """A running child.

    Args:
        call: the function to run; it returns the exit status.
        cwd: its folder.
        memory: bytes of address space beyond those of this process; 0: no limit.
        file_size: maximum bytes of a file; 0: no limit.
    """

    def __init__(self, call: Callable[[], object], cwd: Path, memory: int = MEMORY, file_size: int = 1 << 30) -> None:
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (until `wait`)
        self._started, self._status = time.monotonic(), 0
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            _be_child(call, cwd, memory, file_size, self._output.fileno())

    def ended(self) -> bool:
        """Whether the child has ended."""
        if self.pid > 0:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid, self._status = -1, os.waitstatus_to_exitcode(status)
        return self.pid < 0

    def send(self, number: int) -> None:
        """Sends a signal to the child only."""
        if not self.ended():
            os.kill(self.pid, number)

    def wait(self, limit_s: float) -> Outcome:
        """Waits for the outcome; at the time limit the child and its own children are killed."""
        pause, late = 0.002, False
        while not self.ended():
            if time.monotonic() - self._started > limit_s:
                late = True
                with contextlib.suppress(ProcessLookupError):  # the child is not a group leader yet
                    os.killpg(self.pid, signal.SIGKILL)
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                self.pid = -1
                break
            time.sleep(pause)
            pause = min(0.05, 1.3 * pause)
        self._output.seek(0)
        text = self._output.read(1 << 20).decode("utf-8", "replace")
        self._output.close()
        return Outcome(None if late else self._status, text, time.monotonic() - self._started)


def _be_child(call: Callable[[], object], cwd: Path, memory: int, file_size: int, output: int) -> None:
    status = 1
    try:
        os.setsid()
        os.chdir(cwd)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if file_size:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
        if memory:
            pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else 0
            limit = pages * os.sysconf("SC_PAGE_SIZE") + memory
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        result = call()
        status = result if isinstance(result, int) else 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1 if end.code else 0
        if isinstance(end.code, str):  # as Python does
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)


def command(words: Sequence[str], cwd: Path, limit_s: float = 60.0) -> Outcome:
    """The outcome of `python train.py WORDS`."""
    return Child(lambda: train.main(list(words)), cwd).wait(limit_s)


def warm(folder: Path) -> None:
    """Imports and compiles everything that a training needs, before the first fork."""
    torch.set_num_threads(1)
    for memory in ("gru", "mnm-p"):
        words = quick(folder / f"warm-{memory}", "--memory", memory)
        with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing), contextlib.suppress(SystemExit):
            train.main(words)


def quick(run_dir: Path, *more: str) -> list[str]:
    """The arguments of a training of a fraction of a second; later ones override earlier ones."""
    return [
        *("--env", "Engram/RepeatFirst-v0", "--env-kwargs", "length=5", "--memory", "gru", "--num-envs", "4"),
        *("--n-steps", "8", "--n-minibatches", "2", "--n-epochs", "1", "--total-timesteps", "64", "--eval-episodes"),
        *("4", "--panels-every", "0", "--no-baseline", "--no-progress", "--run-dir", str(run_dir), *more),
    ]


_ERROR = re.compile(r"^(rank \d+: )?error: ", re.MULTILINE)
_TRACE = "Traceback (most recent call last)"


def complaint(
    outcome: Outcome, must: Must = "either", names: Sequence[str] = (), users: str = "", limit: int = 1200
) -> str:
    """The violation in an outcome; empty if there is none.

    Args:
        outcome: of the command.
        must: the expected kind of outcome.
        names: the message must contain one of these.
        users: a file whose code may be seen in a traceback after the line, since it is the user's and failed.
        limit: maximum characters of the line.
    """
    text = outcome.output
    last = (text.strip().splitlines() or [""])[-1][:160]
    if outcome.status is None:
        return "no end"
    if outcome.status < 0:
        return f"ended by signal {-outcome.status}"
    if _TRACE in text and not (users and users in text[text.index(_TRACE) :] and _ERROR.search(text)):
        return f"traceback: {last}"
    if outcome.status == 0:
        return "accepted" if must == "refuse" else ""
    if must == "work":
        return f"refused: {last}"
    found = list(_ERROR.finditer(text))
    boxed = "\u256d\u2500" in text  # tyro's frame around a parsing error and the option's help
    if not boxed and len(found) != 1:
        return f"{len(found)} error lines: {last}"
    said = re.sub(r"[\u2502\s]+", " ", text) if boxed else text[found[0].start() :]
    if not boxed and not users and (len(said.strip().splitlines()) > 1 or len(said) > limit):
        return f"more than one line: {said[:160]!r}"
    if names and not any(name.lower() in said.lower() for name in names):
        return f"names none of {', '.join(names)}: {said[:160]!r}"
    return ""


def fingerprint(folder: Path) -> str:
    """A digest of all names and contents below a folder."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        digest.update(f"{file.relative_to(folder)} {file.is_file()}\n".encode())
        if file.is_file():
            digest.update(file.read_bytes())
    return digest.hexdigest()
