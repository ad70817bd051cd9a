"""Atomic file replacement: write beside the target, flush, rename."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def replace_file(file: Path, content: str | bytes) -> None:
    """Replaces the content of `file` atomically: after a crash it holds the old or the new content.

    Raises:
        OSError: the file cannot be written; it still has its old content.
    """
    with replacing(file, f".{file.name}.{os.getpid()}.partial") as partial, open(partial, "wb") as stream:
        stream.write(content.encode() if isinstance(content, str) else content)
        stream.flush()
        os.fsync(stream.fileno())
    sync_folder(file.parent)


@contextlib.contextmanager
def replacing(file: Path, name: str = "") -> Iterator[Path]:
    """Context manager that gives a new file beside `file`, and replaces `file` by it at the end.

    If the block fails, `file` still has its old content.

    Args:
        file: the file to replace.
        name: name of the new file; by default one with the same extension.

    Raises:
        OSError: the file cannot be written.
    """
    partial = file.with_name(name or f".{file.stem}.{os.getpid()}.partial{file.suffix}")
    try:
        yield partial
        os.replace(partial, file)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None and error.errno in _DISK_ERRORS:  # they name no file
            error.filename = str(file)
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def sync_folder(folder: Path) -> None:
    """Flushes a folder's entries to disk, if the system supports it."""
    with contextlib.suppress(OSError):  # Windows opens no folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
