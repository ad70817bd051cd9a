"""One process a run: a lock on the run's folder, which the system releases with the process, also after kill -9."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout


def take(folder: Path) -> FileLock | None:
    """Lock a run's folder until `release` or the end of the process; None where the file system knows no locks.

    Raises:
        ValueError: another process has it.
    """
    lock = FileLock(folder / ".lock", blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"another process is training in {folder}: wait for it, stop it, or choose another --run-dir"
        ) from error
    except NotImplementedError:
        return None
    return lock
