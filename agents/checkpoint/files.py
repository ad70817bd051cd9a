"""Reading and writing the bytes of a checkpoint: a folder, one uncompressed zip file, or a zip in memory.

Only regular files of bounded size are read; type and size are checked first, so that a pipe, a device or an endless
file is refused. Writing is atomic: a file is complete under its final name, or absent.
"""

from __future__ import annotations

import io
import os
import shutil
import stat
import zipfile
from pathlib import Path
from typing import BinaryIO

from agents.common.files import replace_file, sync_folder

Place = str | os.PathLike[str] | BinaryIO
"""Where a checkpoint is: a path, or a binary file object that holds the zip."""

MANIFEST, TENSORS = "manifest.json", "tensors.safetensors"
MAX_MANIFEST_BYTES = 1 << 26
"""Maximum size of a manifest, in bytes."""


class CheckpointError(RuntimeError):
    """The checkpoint is missing, damaged, of a newer version, or belongs to another agent or environment."""


class Source:
    """Reads the two files of a checkpoint, with checks.

    Args:
        place: a folder, a zip file, or an open binary file with the zip. A path that does not exist is tried with and
            without ".zip", as Stable-Baselines3 does.

    Raises:
        CheckpointError: there is no file, or it cannot be read or is not a zip.
        TypeError: `place` is neither a path nor a binary file object.
    """

    def __init__(self, place: Place) -> None:
        self.path: Path | None = None
        self._archive: bytes | None = None
        if isinstance(place, (str, os.PathLike)):
            try:
                self.path = _existing(Path(place))
                self.name = str(self.path)
                if self.path.is_file():
                    self._archive = _read_regular(self.path, physical_memory())
            except (OSError, ValueError) as error:
                raise CheckpointError(
                    f"no checkpoint at {place}: {getattr(error, 'strerror', None) or error}"
                ) from error
        elif not hasattr(place, "read"):
            raise TypeError(f"the checkpoint is given as {place!r}, expected a path or a binary file object")
        else:
            self.name = str(getattr(place, "name", "the checkpoint in memory"))
            self._archive = place.read()
        if self._archive is not None:
            self._zip = self._opened(self._archive)

    def _opened(self, archive: bytes) -> zipfile.ZipFile:
        if not archive:
            raise CheckpointError(
                f"no checkpoint at {self.name}: it is empty, or was read to its end (call seek(0) first)"
            )
        try:
            opened = zipfile.ZipFile(io.BytesIO(archive))
        except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
            raise CheckpointError(
                f"no checkpoint at {self.name}: expected a folder with {MANIFEST}, or its zip"
            ) from error
        if MANIFEST not in opened.namelist():
            raise CheckpointError(
                f"no checkpoint at {self.name}: the zip has no {MANIFEST}; files of Stable-Baselines3 are "
                "pickles, which are not read"
            )
        return opened

    def where(self, name: str) -> str:
        """The name of one of the two files, for messages."""
        return f"{name} in {self.name}" if self.path is None or self._archive is not None else str(self.path / name)

    def read(self, name: str, max_bytes: int) -> bytes:
        """The bytes of one file.

        Raises:
            FileNotFoundError: the checkpoint has no such file.
            CheckpointError: it is not a regular file, or larger than `max_bytes`.
            OSError: it cannot be read.
        """
        if self._archive is None:
            assert self.path is not None
            return _read_regular(self.path / name, max_bytes)
        try:
            entry = self._zip.getinfo(name)
        except KeyError as error:
            raise FileNotFoundError(name) from error
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or entry.file_size > len(self._archive):
            raise CheckpointError(f"{self.where(name)} is damaged: expected it uncompressed")
        if entry.file_size > max_bytes:
            raise CheckpointError(
                f"{self.where(name)} is damaged: {entry.file_size:,} bytes, expected at most {max_bytes:,}"
            )
        try:
            return self._zip.read(entry)
        except (zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError) as error:
            raise CheckpointError(f"{self.where(name)} is damaged: {error}") from error


def _existing(path: Path) -> Path:
    """`path` if it exists; else the old version left by an interrupted replacement; else the name with or without
    ".zip"."""
    if path.exists():
        return path
    others = [hidden_path(path, "old"), path.with_name(path.name + ".zip")]
    if path.suffix == ".zip":
        others.append(path.with_suffix(""))
    return next((other for other in others if other.exists()), path)


def _read_regular(file: Path, max_bytes: int) -> bytes:
    """The bytes of a regular file of at most `max_bytes` bytes."""
    handle = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise CheckpointError(f"{file} is damaged: it is not a regular file")
        if found.st_size > max_bytes:
            raise CheckpointError(f"{file} is damaged: {found.st_size:,} bytes, expected at most {max_bytes:,}")
        with open(handle, "rb", closefd=False) as stream:
            return stream.read(found.st_size)
    finally:
        os.close(handle)


def physical_memory() -> int:
    """The machine's physical memory in bytes."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 1 << 40


def write(place: Place, contents: dict[str, bytes]) -> None:
    """Writes the files of a checkpoint at `place` atomically; an existing checkpoint is replaced.

    A path that ends in ".zip" becomes one file, any other path a folder. Replacing a folder takes two renames, because
    a folder cannot be renamed onto another. A process that dies between them leaves the old checkpoint in `.NAME.old`,
    where `Source` finds it. Other files in the folder of a checkpoint stay there.

    Raises:
        ValueError: there is a file, or a folder with other files and no checkpoint, such as that of a run.
        OSError: it cannot be written; the old checkpoint is kept.
        TypeError: `place` is neither a path nor a binary file object.
    """
    if not isinstance(place, (str, os.PathLike)):
        if not hasattr(place, "write"):
            raise TypeError(f"the checkpoint is to be saved as {place!r}, expected a path or a binary file object")
        place.write(_zipped(contents))
        return
    target = Path(place)
    if target.suffix == ".zip" and not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_file(target, _zipped(contents))
        return
    others = _other_files(target, contents)
    staging, old = hidden_path(target, "partial"), hidden_path(target, "old")
    remove(staging)
    try:
        staging.mkdir(parents=True)
        for name, content in contents.items():
            _write_file(staging / name, content)
    except BaseException as error:  # such as a full disk
        if isinstance(error, OSError) and error.strerror and error.filename is None:
            error.filename = str(target)
        remove(staging)
        raise
    sync_folder(staging)
    if target.exists():
        remove(old)
        target.rename(old)
    staging.rename(target)
    for name in others:
        (old / name).rename(target / name)
    sync_folder(target.parent)
    remove(old)


def _other_files(target: Path, contents: dict[str, bytes]) -> list[str]:
    """The names in the folder of an existing checkpoint that are not a checkpoint's."""
    if target.is_file():
        raise ValueError(
            f"{target} is a file: expected a new name, the folder of a checkpoint, or a name that ends in .zip"
        )
    others = sorted(path.name for path in target.iterdir() if path.name not in contents) if target.exists() else []
    if others and not (target / MANIFEST).is_file():
        raise ValueError(
            f"{target} is a folder with other files, such as {others[0]}: expected a new name, the folder of a "
            "checkpoint, or a name that ends in .zip"
        )
    return others


def hidden_path(path: Path, word: str) -> Path:
    """The hidden name beside `path` for a version that is being written or removed."""
    path = Path(os.path.abspath(path))  # "." has no name
    return path.with_name(f".{path.name}.{word}")


def remove(path: Path) -> None:
    """Removes a file or folder if it exists. Errors of a folder are ignored."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _zipped(contents: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in contents.items():
            archive.writestr(zipfile.ZipInfo(name), content)  # no date, so that equal agents give equal files
    return buffer.getvalue()


def _write_file(file: Path, content: bytes) -> None:
    with open(file, "wb") as stream:  # with the permissions of the umask, unlike a temporary file
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
