"""Readers of data files, with clear errors for damaged ones; `envs.data.files` finds the files.

Nothing is unpacked to disk or unpickled. Sizes in headers are checked before memory is allocated, and at most `LIMIT`
bytes of a file are read or unpacked. Pipes and devices are refused.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import math
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

Array = np.ndarray[Any, Any]

LIMIT = 1 << 29
"""Maximum size of a file in bytes, compressed or not: six times the largest known one, binarised MNIST."""
ENTRIES = 200_000
"""Maximum number of entries in a folder or archive: six times Omniglot's."""

_ARCHIVE = "a whole zip or tar archive, or a folder"
_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_PACKED: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"\xfd7zXZ\x00": lzma.open, b"BZh": bz2.open}


class DataError(ValueError):
    """A data file is missing, cannot be downloaded, or has the wrong content."""


@contextlib.contextmanager
def reading(path: str | Path, expected: str) -> Iterator[None]:
    """Context manager that turns any error into a `DataError` with the path and the expected format.

    Decompression libraries raise many kinds of errors on damaged files, so all kinds are caught.
    """
    try:
        yield
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(f"{path}: there is not enough memory to read it; expected {expected}") from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: {reason}; expected {expected}") from error


def read_bytes(path: str | Path, expected: str = "a readable file, plain, gzip or xz") -> bytes:
    """A file's content, unpacked where its first bytes say that it is gzip, xz or bzip2, whatever its name.

    Raises:
        DataError: it cannot be read, is not a regular file, is a damaged archive, or has more than `LIMIT` bytes.
    """
    with reading(path, expected):
        with _opened(path) as file:
            raw = _read(file, path)
        for magic, unpacker in _PACKED.items():
            if raw.startswith(magic):
                with unpacker(io.BytesIO(raw)) as stream:
                    raw = _read(stream, path)
                break
    return raw


def _opened(path: str | Path) -> IO[bytes]:
    """Opens a regular file; others might never end."""
    mode = Path(path).stat().st_mode
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise DataError(f"{path} is {kind}, expected a regular file")
    return open(path, "rb")


def _read(stream: IO[bytes], path: str | Path, limit: int | None = None) -> bytes:
    """Reads a stream of at most `limit` bytes in chunks; None: `LIMIT`."""
    parts, left = [], LIMIT if limit is None else limit
    while part := stream.read(1 << 20):
        parts.append(part)
        left -= len(part)
        if left < 0:
            raise _too_large(path)
    return b"".join(parts)


def _too_large(path: str | Path) -> DataError:
    return DataError(f"{path} holds more than {LIMIT >> 20} MiB when it is unpacked, which no known data file does")


def read_idx(path: str | Path) -> Array:
    """An array in the idx format of MNIST, plain or packed: of the shape and type (in native order) that it names.

    MNIST's images are uint8 `[60000, 28, 28]`, 0 paper to 255 ink; its labels uint8 `[60000]`.

    Raises:
        DataError: the magic number is not that of an idx file, or the size is not the one that the header gives.
    """
    with reading(path, "an idx file (such as 00000803)"):
        raw = read_bytes(path)
        if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in _IDX_TYPES or not 0 < raw[3] <= 8:
            raise DataError(f"{path} begins with {raw[:4].hex() or 'nothing'}, expected an idx file (such as 00000803)")
        dtype, start = np.dtype(_IDX_TYPES[raw[2]]), 4 + 4 * raw[3]
        if len(raw) < start:
            raise DataError(f"{path} ends inside its header of {start} bytes, after {len(raw)}")
        shape = tuple(np.frombuffer(raw, ">u4", raw[3], 4).tolist())
        size = math.prod(shape) * dtype.itemsize
        if len(raw) - start != size:
            raise DataError(f"{path} holds {len(raw) - start} bytes, expected {size} for an array of {list(shape)}")
        array = np.frombuffer(raw, dtype, offset=start).astype(dtype.newbyteorder("=")).reshape(shape)
    return array


def read_amat(path: str | Path, columns: int = 784) -> Array:
    """Rows of digits 0 and 1 with blanks between them, plain or packed: uint8 `[rows, columns]`.

    The fixed binarised MNIST is 50,000 training, 10,000 validation and 10,000 test rows of 28 · 28 pixels, row by row.

    Raises:
        DataError: something is neither 0, 1 nor blank, or a row is of another length; with the line.
    """
    with reading(path, "rows of digits 0 and 1"):
        text = np.frombuffer(read_bytes(path), np.uint8)
        digit = (text == ord("0")) | (text == ord("1"))
        blank = (text == ord(" ")) | (text == ord("\n")) | (text == ord("\r"))
        ends = np.flatnonzero(text == ord("\n"))
        bad = ~(digit | blank)
        bad[1:] |= digit[1:] & digit[:-1]  # numbers of two digits
        if bad.any():
            where = int(bad.argmax())
            line = int(np.searchsorted(ends, where)) + 1
            raise DataError(
                f"{path}, line {line}: {chr(text[where])!r} is unexpected: expected 0 or 1, separated by blanks"
            )
        starts = np.concatenate([[0], ends + 1])
        starts = starts[starts < len(text)]
        if not len(starts):
            raise DataError(f"{path} is empty, expected rows of {columns} digits")
        counts = np.add.reduceat(digit, starts, dtype=np.int64)
        filled = counts > 0  # empty lines are skipped
        wrong = filled & (counts != columns)
        if wrong.any() or not filled.any():
            line = int(wrong.argmax())
            raise DataError(f"{path}, line {line + 1}: {counts[line]} digits, expected {columns}")
        rows: Array = text[digit] - np.uint8(ord("0"))
    return rows.reshape(-1, columns)


def read_npz(path: str | Path, key: str) -> Array:
    """The array `key` of a NumPy archive. Object arrays, which need unpickling, are refused.

    Raises:
        DataError: the file is damaged or not an archive, it has no such array, or the array has objects or another size
            than its header claims.
    """
    with reading(f"{path}, array {key!r}", "an .npz archive without objects"), _opened(path) as file:
        if file.read(6) == b"\x93NUMPY":
            raise DataError(f"{path} holds a single array, expected an .npz archive with {key!r}")
        with zipfile.ZipFile(file) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            if key not in names:
                raise DataError(f"{path} holds {sorted(names)[:9]}, expected {key!r}")
            with archive.open(archive.infolist()[names.index(key)]) as member:
                array = _array(_read(member, path))
    return array


def _array(raw: bytes) -> Array:
    """The array of an .npy file."""
    stream = io.BytesIO(raw)
    version = np.lib.format.read_magic(stream)
    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if header is None:
        raise ValueError(f"it is of .npy version {version}")
    shape, by_columns, dtype = header(stream)
    if dtype.hasobject or dtype.kind not in "biuf":
        raise ValueError(f"it holds {dtype}")
    size, found = math.prod(shape) * dtype.itemsize, len(raw) - stream.tell()
    if size != found:
        raise ValueError(f"its header claims {size} bytes for {list(shape)}, but there are {found}")
    array = np.frombuffer(raw, dtype, offset=stream.tell()).reshape(shape, order="F" if by_columns else "C")
    return array.astype(dtype.newbyteorder("="))


def read_png_tree(path: str | Path) -> Array:
    """Pictures of a tree of PNG files, one folder per class: bool `[classes, pictures, H, W]`, True where light.

    Reads Omniglot's `images_background.zip` and `images_evaluation.zip` (964 and 659 characters, 20 drawings of
    105 · 105 pixels each, True = paper), or a folder unpacked from one. Classes and pictures are in the order of
    their paths: alphabet, character, drawing.

    Raises:
        DataError: it is damaged, holds no PNG file, or classes or pictures differ in size.
    """
    from PIL import Image

    classes: dict[str, list[Array]] = {}
    shape: tuple[int, ...] | None = None
    limit = LIMIT
    for name, raw in sorted(read_members(path, "*.png")):
        with (
            reading(f"{path}: {name} is damaged", "a PNG picture"),
            Image.open(io.BytesIO(raw), formats=["PNG"]) as png,
        ):
            limit -= png.width * png.height
            if limit < 0:
                raise _too_large(path)
            picture = np.asarray(png.convert("L")) >= 128
        shape = shape or picture.shape
        if picture.shape != shape:
            raise DataError(f"{path}: {name} is {picture.shape}, expected {shape} like the pictures before it")
        classes.setdefault(name.rpartition("/")[0], []).append(picture)
    if not classes:
        raise DataError(f"{path} holds no .png file, expected folders of them")
    most = max(map(len, classes.values()))
    for folder, pictures in classes.items():
        if len(pictures) != most:
            raise DataError(f"{path}: {folder} holds {len(pictures)} pictures, expected {most} like other folders")
    return np.stack([np.stack(pictures) for pictures in classes.values()])


def read_members(path: str | Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the regular files in a zip, a tar (plain, gzip, xz) or a folder that match a pattern.

    Nothing is written to disk, so names that point outside the archive do no harm. Links are skipped.

    Args:
        path: the archive or folder.
        pattern: shell wildcards for names; `*` also matches slashes. Names begin with the
            folder's own name if `path` is a folder.

    Raises:
        DataError: it cannot be read, is neither, or holds more than `LIMIT` bytes or `ENTRIES` files.
    """
    path, limit = Path(path), LIMIT
    with reading(path, _ARCHIVE):
        for count, (name, size, content) in enumerate(_folder(path) if path.is_dir() else _archive(path)):
            if count >= ENTRIES:
                raise DataError(f"{path} holds more than {ENTRIES:,} files, which no known data set does")
            if content is None or not fnmatchcase(name, pattern):
                continue
            if size > limit:  # according to the archive's header
                raise _too_large(path)
            with content() as stream:
                raw = _read(stream, path, limit)
            limit -= len(raw)
            yield name, raw


_Member = tuple[str, int, Callable[[], IO[bytes]] | None]
"""Name, size in bytes if known, and a function that opens it; None if it is not a regular file."""


def _folder(path: Path) -> Iterator[_Member]:
    for file in sorted(islice(path.rglob("*"), ENTRIES + 1)):
        regular = file.is_file() and not file.is_symlink()
        yield file.relative_to(path.parent).as_posix(), 0, partial(_opened, file) if regular else None


def _archive(path: Path) -> Iterator[_Member]:
    with _opened(path) as file:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                for entry in archive.infolist():
                    yield entry.filename, entry.file_size, None if entry.is_dir() else partial(archive.open, entry)
            return
    raw = read_bytes(path, _ARCHIVE)
    with tarfile.open(fileobj=io.BytesIO(raw), mode="r:") as tar:
        for member in tar:
            yield member.name, member.size, partial(_extracted, tar, member) if member.isreg() else None
        end = raw[tar.offset : tar.offset + 512]
        if len(end) < 512 or end.strip(b"\0"):
            raise tarfile.ReadError(
                "the archive has no end"
            )  # tarfile accepts an archive that is cut between two files


def _extracted(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    content = tar.extractfile(member)
    assert content is not None  # it is a regular file
    return content
