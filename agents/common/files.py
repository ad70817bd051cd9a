"""Atomic file replacement: write beside the target, flush, rename."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def replace_file(file: Path, content: str | bytes) -> None:
    """Replaces the content of `file` atomically: after a crash it holds the old or the new content.

    Raises:
        OSError: the file cannot be written; it still has its old content.
    """
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, file)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:  # a full disk names no file
            error.filename = str(file)
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    sync_folder(file.parent)


def sync_folder(folder: Path) -> None:
    """Flushes a folder's entries to disk, if the system supports it."""
    with contextlib.suppress(OSError):  # Windows opens no folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
