"""Files that are whole whenever somebody looks: written beside, flushed, renamed."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def replace_file(file: Path, content: str | bytes) -> None:
    """Give `file` new content, all or nothing: after a crash it has the old or the new one.

    Raises:
        OSError: it cannot be written; the old content stands.
    """
    beside = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        with open(beside, "wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(beside, file)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:  # a full disk names no file
            error.filename = str(file)
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    sync_folder(file.parent)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder survive a power cut, where the system can."""
    with contextlib.suppress(OSError):  # Windows opens no folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
