"""Turns exceptions into one-line errors, with a traceback only if the user's own code failed."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import gymnasium
import numpy
import stable_baselines3
import torch
from safetensors import SafetensorError

from agents.checkpoint import CheckpointError
from agents.common.terminal import PLAIN_TEXT, make_console
from agents.environments.copies import ContractError
from agents.environments.hosts import Host
from agents.environments.processes import ProcessEndedError
from agents.metrics.non_finite import NonFiniteError
from agents.scale.distributed import RankLostError
from envs.checks import TensorEnvError
from envs.tensor_env import TensorEnv
from policies.heads import DivergedError

_ROOT = Path(__file__).resolve().parents[2]
_PROJECT = tuple(_ROOT / name for name in ("agents", "envs", "policies", "train.py", "evaluate.py", "compare.py"))
_LIBRARIES = [Path(str(package.__file__)).parent for package in (gymnasium, stable_baselines3, torch, numpy)]
_PROJECT_AND_LIBRARIES = (*_PROJECT, *_LIBRARIES)
_LIBRARY_ENVIRONMENTS = [
    Path(str(gymnasium.__file__)).parent / "envs" / name for name in ("box2d", "classic_control", "mujoco")
]
_STANDARD_LIBRARY = [Path(sysconfig.get_paths()[name]) for name in ("stdlib", "platstdlib")]
_INSTALLED = [Path(sysconfig.get_paths()[name]) for name in ("purelib", "platlib")]
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "storage size calculation overflowed",
)
_COMPLETE_MESSAGES = (NonFiniteError, DivergedError, RankLostError, CheckpointError)
USER_ERRORS = (ValueError, CheckpointError, OSError, gymnasium.error.Error, RankLostError, NonFiniteError)
"""Exceptions that mean a wrong argument, name, file or number while a command is parsed and built."""


class CommandError(Exception):
    """A command that cannot continue; the message is one line."""

    def __init__(self, line: str, user_traceback: str = "") -> None:
        super().__init__(" ".join(line.split()))
        self.user_traceback = user_traceback
        """Traceback of the user's code, shown before the line; empty if the line is sufficient."""

    def show(self, prefix: str = "") -> None:
        """Prints it to standard error. `prefix`: the name of the rank, if there are several."""
        console = make_console(stderr=True)
        if self.user_traceback:
            console.print(self.user_traceback.rstrip(), **PLAIN_TEXT)
        console.print(f"{prefix}[bold red]error:[/] ", end="", highlight=False)
        console.print(str(self), **PLAIN_TEXT)


@dataclass(frozen=True)
class ErrorContext:
    """What the command was doing, for the error line."""

    doing: str
    """For example "training"."""
    env: str = ""
    """The environment's id."""
    folder: Path | None = None
    """Folder that the command writes to."""
    saved: str = ""
    """What was saved, and how to continue."""

    def __str__(self) -> str:
        return f"{self.doing} on {self.env}" if self.env else self.doing

    def error(self, error: Exception) -> CommandError:
        """Converts `error` to a `CommandError`."""
        message = " ".join(str(error).split()) or type(error).__name__
        named = f"{type(error).__name__}: {message}" if str(error) else message
        shown_traceback, whole_traceback = "", "".join(traceback.format_exception(error))
        if isinstance(error, _COMPLETE_MESSAGES) or _raised_by_project(error):
            line = message
        elif out_of_memory(error):
            advice = "use fewer --num-envs, --n-steps or smaller sizes"
            line = f"out of memory while {self.doing} ({message[:200]}): {advice}"
        elif (env := _environment_of(error)) is not None and not type(env).__module__.startswith("envs."):
            complete = isinstance(error, (ContractError, ProcessEndedError, TensorEnvError))  # say what is wrong
            shown_traceback = "" if complete else _user_traceback(error)
            line = f"environment {self.env} failed while {self.doing}: {message if complete else named}"
            if not complete and not shown_traceback and not _raised_in_subprocess(error):
                shown_traceback = "" if _raised_in_library(error) else whole_traceback
                step = "step gives observation, reward, terminated, truncated, info"
                line += f" (reset gives observation and info; {step})"
        elif isinstance(error, (OSError, SafetensorError)):
            line = f"cannot read or write while {self.doing}: {_message_of(error)}"
            if self.folder is not None and str(self.folder) not in line:
                line += f" (in {self.folder})"
        else:
            shown_traceback, line = whole_traceback, f"{named} while {self}"
        return CommandError(f"{line}; {self.saved}" if self.saved else line, shown_traceback)

    @contextmanager
    def user_errors(self) -> Iterator[None]:
        """Context manager for parsing and building: errors are most likely wrong arguments or files."""
        try:
            yield
        except CommandError:
            raise
        except Exception as error:
            raise self.user_error(error) from error

    def user_error(self, error: Exception) -> CommandError:
        """As `error`, while the command is parsed and built: most likely an argument is wrong."""
        origin: BaseException = error
        while origin.__cause__ is not None:
            origin = origin.__cause__
        user_traceback = _user_traceback(origin) if _raised_in_user_file(origin) else ""
        if isinstance(error, USER_ERRORS) and not out_of_memory(origin):
            named = f"{type(error).__name__} while {self}: " if user_traceback and origin is error else ""
            return CommandError(f"{named}{_message_of(error)}", user_traceback)
        if user_traceback:
            return CommandError(f"{type(error).__name__} while {self}: {error}", user_traceback)
        return self.error(error)


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on the host or on a device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY)


def _message_of(error: Exception) -> str:
    """An error's message; of an `OSError` without the error number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def _frames(error: BaseException) -> list[FrameType]:
    return [frame for frame, _ in traceback.walk_tb(error.__traceback__)]


def _environment_of(error: BaseException) -> TensorEnv | Host | None:
    """The environment in whose `step` or `reset` an exception was raised.

    Before the first step, learners reset environments on the host without their `TensorEnv`.
    """
    for frame in _frames(error):
        if frame.f_code.co_name in ("step", "reset"):
            env = frame.f_locals.get("self")
            if isinstance(env, (TensorEnv, Host)):
                return env
    return None


def _raised_in_library(error: BaseException) -> bool:
    """Whether a library below this project raised it, for example when arrays of different shapes are stacked."""
    frames = _frames(error)
    return bool(frames) and any(Path(frames[-1].f_code.co_filename).is_relative_to(place) for place in _LIBRARIES)


def _raised_in_subprocess(error: BaseException) -> bool:
    """Whether it was raised and printed in a process of `AsyncVectorEnv`, and is raised here again."""
    frames = _frames(error)
    return bool(frames) and frames[-1].f_code.co_name == "_raise_if_errors"


def _raised_by_project(error: BaseException) -> bool:
    """Whether this project raised it with a message of its own, for example about an environment.

    Errors of C code (`int("x")`) also come from a line of this project, but not from one that begins with `raise`.
    """
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or not isinstance(error, ValueError) or isinstance(error, ContractError):
        return False
    in_project = any(Path(frames[-1].filename).is_relative_to(part) for part in _PROJECT)
    return in_project and str(frames[-1].line).startswith("raise ")


def _is_user_code(file: str) -> bool:
    """Whether code belongs neither to this project nor to the libraries below it."""

    def within(folders: Iterable[Path]) -> bool:
        return any(Path(file).is_relative_to(folder) for folder in folders)

    if file.startswith("<") or (within(_PROJECT_AND_LIBRARIES) and not within(_LIBRARY_ENVIRONMENTS)):
        return False
    return within(_INSTALLED) or not within(_STANDARD_LIBRARY)


def _raised_in_user_file(error: BaseException) -> bool:
    """Whether it was raised in the user's own file, not in an installed package."""
    frames = _frames(error)
    if not frames:
        return False
    file = frames[-1].f_code.co_filename
    return _is_user_code(file) and not {"site-packages", "dist-packages"} & {*Path(file).parts}


def _user_traceback(error: BaseException) -> str:
    """The traceback without the frames of this project and of the libraries below it; may be empty."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_user_code(frame.filename)]
    if not frames:
        return ""
    lines = [*traceback.format_list(frames), *traceback.format_exception_only(error)]
    return "".join(["Traceback (most recent call last):\n", *lines])
