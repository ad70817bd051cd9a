"""Storage of a study: a journal file that several processes append to, or a database."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

START_AGAIN = "or start again with another --run-dir or --storage"


def default_storage(folder: Path) -> str:
    """The journal of a sweep's folder."""
    return str(folder / "study.journal")


def open_storage(where: str) -> BaseStorage:
    """Opens a database (`sqlite:///...`, `postgresql://...`) or a journal file, which is validated line by line.

    A truncated last line of a journal (after a power loss) is removed with a warning; appending to it would make the
    journal unreadable.

    Raises:
        ValueError: it cannot be opened, or is damaged; the message has the file and what to do.
    """
    with readable(where):
        if "://" in where:
            return optuna.storages.get_storage(where)
        if os.path.exists(where) and not os.path.isfile(where):
            raise ValueError(f"{where} is not a regular file; expected a journal file or a database URL in --storage")
        lock = JournalFileOpenLock(where) if os.name == "nt" else None  # symbolic links need special rights there
        backend = JournalFileBackend(where, lock)
        backend._lock.acquire()
        try:
            _mend(Path(where))
        finally:
            backend._lock.release()
        return JournalStorage(backend)


@contextlib.contextmanager
def readable(where: str) -> Iterator[None]:
    """Context manager that turns any error of a storage into a one-line `ValueError` with its name and advice.

    Every database has its own error types, and an inconsistent journal fails an assertion.
    """
    try:
        yield
    except ValueError as error:
        if where in str(error):  # already has the name
            raise
        raise ValueError(_unreadable(where, error)) from error
    except Exception as error:
        raise ValueError(_unreadable(where, error)) from error


def _unreadable(where: str, error: Exception) -> str:
    database = "://" in where
    name = where.split("://")[0] if database and not where.startswith("sqlite") else where  # it may hold a password
    reason = (str(error).splitlines() or [""])[0] or type(error).__name__
    advice = "check that it exists and is intact" if database else "it may be truncated or changed: make a copy of it"
    return f"cannot open the storage {name}: {reason}; {advice}, {START_AGAIN}"


def _mend(file: Path) -> None:
    """Validates every line of a journal."""
    content = file.read_bytes()
    *lines, rest = content.split(b"\n")
    for number, line in enumerate([*lines, rest] if rest and not lines else lines, start=1):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        fits = isinstance(entry, dict) and "op_code" in entry
        if not fits or (number == 1 and entry["op_code"] != 0):  # the first entry creates a study
            raise ValueError(
                f"{file}, line {number}, is not a journal entry: the file was truncated or changed. "
                f"Delete this line and all after it to continue from there, {START_AGAIN}"
            )
    if rest:
        with open(file, "rb+") as journal:
            journal.truncate(len(content) - len(rest))
        warnings.warn(f"{file}: the last entry is incomplete, perhaps after a power loss, and is dropped", stacklevel=2)
