"""Data files: where they are looked for, and readers that say what is wrong with a damaged one.

Files are looked for in the argument `data_dir`, in the directory that the environment variable `ENGRAM_DATA` names and
in the cache (`$XDG_CACHE_HOME/engram`, else `~/.cache/engram`), in this order. Whatever is in none of them is fetched
into the cache and checked, by pooch: `pip install "engram-rl[data]"`. Nothing is unpacked and nothing is unpickled.
"""

from __future__ import annotations

import gzip
import importlib
import io
import lzma
import math
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from envs.data_sources import SOURCES, Source

Array = np.ndarray[Any, Any]

_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_DAMAGED = (EOFError, OSError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError)


class DataError(ValueError):
    """A data file is missing, cannot be fetched, or is not what its name says."""


# -- finding files -----------------------------------------------------------------------------------------------------


def cache_dir() -> Path:
    """Where fetched files go: `$XDG_CACHE_HOME/engram`, else `~/.cache/engram`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "engram"


def find(name: str, data_dir: str | Path | None = None) -> Path:
    """The file or folder called `name` in `envs.data_sources.SOURCES`, fetched if it is nowhere.

    Args:
        name: such as "babi" or "mnist/train-images".
        data_dir: looked into first. Files may lie in it or in the source's folder in it, under any accepted name.

    Raises:
        KeyError: no source has this name.
        DataError: `data_dir` or `ENGRAM_DATA` is not a directory; or the file is nowhere and cannot be fetched, with
            its address and the place to put it.
    """
    source = SOURCES[name]
    places: list[Path] = []
    for origin, given in (("data_dir", data_dir), ("ENGRAM_DATA", os.environ.get("ENGRAM_DATA"))):
        if given:
            place = Path(given).expanduser()
            if not place.is_dir():
                raise DataError(f"{origin} is {str(given)!r}, which is not a directory")
            places.append(place)
    places.append(cache_dir())
    for place in places:
        for folder in (place / source.folder, place):
            for candidate in source.names:
                if (folder / candidate).exists():
                    return folder / candidate
    return _fetch(name, source, places)


def _fetch(name: str, source: Source, places: list[Path]) -> Path:
    target = cache_dir() / source.folder
    advice = f"fetch {source.url} and put it into {places[0] / source.folder}"
    looked = ", ".join(map(str, places))
    try:
        pooch = importlib.import_module("pooch")
    except ModuleNotFoundError:
        raise DataError(f'{name!r} is not in {looked}; {advice}, or pip install "engram-rl[data]"') from None
    try:
        path = pooch.retrieve(source.url, source.checksum, fname=source.names[0], path=target)
    except Exception as error:  # whatever the network, the disk or the checksum has to say
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name!r} is not in {looked} and could not be fetched ({reason[:200]}); {advice}") from error
    return Path(path)


# -- reading files -----------------------------------------------------------------------------------------------------


def read_bytes(path: str | Path) -> bytes:
    """A file's content, unpacked where its first bytes say that it is gzip or xz, whatever it is called.

    Raises:
        DataError: it cannot be read, or is packed and damaged.
    """
    try:
        raw = Path(path).read_bytes()
        if raw[:2] == b"\x1f\x8b":
            return gzip.decompress(raw)
        return lzma.decompress(raw) if raw[:6] == b"\xfd7zXZ\x00" else raw
    except _DAMAGED as error:
        raise DataError(f"{path}: {_reason(error)}; expected a readable file, plain, gzip or xz") from error


def read_idx(path: str | Path) -> Array:
    """An array in the idx format of MNIST, plain or packed: of the shape and type (in native order) that it names.

    MNIST's images are uint8 `[60000, 28, 28]`, 0 paper to 255 ink; its labels uint8 `[60000]`.

    Raises:
        DataError: the magic number is not that of an idx file, or the size is not the one that the header gives.
    """
    raw = read_bytes(path)
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in _IDX_TYPES or raw[3] == 0:
        raise DataError(f"{path} begins with {raw[:4].hex() or 'nothing'}, expected an idx file (such as 00000803)")
    dtype, start = np.dtype(_IDX_TYPES[raw[2]]), 4 + 4 * raw[3]
    if len(raw) < start:
        raise DataError(f"{path} ends inside its header of {start} bytes, after {len(raw)}")
    shape = tuple(np.frombuffer(raw, ">u4", raw[3], 4).tolist())
    size = math.prod(shape) * dtype.itemsize
    if len(raw) - start != size:
        raise DataError(f"{path} holds {len(raw) - start} bytes, expected {size} for an array of {list(shape)}")
    return np.frombuffer(raw, dtype, offset=start).astype(dtype.newbyteorder("=")).reshape(shape)


def read_amat(path: str | Path, columns: int = 784) -> Array:
    """Rows of digits 0 and 1 with blanks between them, plain or packed: uint8 `[rows, columns]`.

    The fixed binarised MNIST is 50,000 training, 10,000 validation and 10,000 test rows of 28 · 28 pixels, row by row.

    Raises:
        DataError: something is neither 0, 1 nor blank, or a row is of another length; with the line.
    """
    text = np.frombuffer(read_bytes(path), np.uint8)
    digit = (text == ord("0")) | (text == ord("1"))
    blank = (text == ord(" ")) | (text == ord("\n")) | (text == ord("\r"))
    ends = np.flatnonzero(text == ord("\n"))
    bad = ~(digit | blank)
    bad[1:] |= digit[1:] & digit[:-1]  # numbers of two digits
    if bad.any():
        where = int(bad.argmax())
        line = int(np.searchsorted(ends, where)) + 1
        raise DataError(f"{path}, line {line}: {chr(text[where])!r} is not a lone 0 or 1 among blanks")
    starts = np.concatenate([[0], ends + 1])
    starts = starts[starts < len(text)]
    if not len(starts):
        raise DataError(f"{path} is empty, expected rows of {columns} digits")
    counts = np.add.reduceat(digit, starts, dtype=np.int64)
    filled = counts > 0  # empty lines are passed over
    wrong = filled & (counts != columns)
    if wrong.any() or not filled.any():
        line = int(wrong.argmax())
        raise DataError(f"{path}, line {line + 1}: {counts[line]} digits, expected {columns}")
    rows: Array = text[digit] - np.uint8(ord("0"))
    return rows.reshape(-1, columns)


def read_npz(path: str | Path, key: str) -> Array:
    """The array `key` of a numpy archive; arrays of objects, which would be unpickled, are refused.

    Raises:
        DataError: it is damaged or no archive, has no such array, or the array holds objects.
    """
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataError(f"{path} holds a single array, expected an .npz archive with {key!r}")
        with archive:
            if key not in archive.files:
                raise DataError(f"{path} holds {sorted(archive.files)}, expected {key!r}")
            return np.asarray(archive[key])
    except DataError:
        raise
    except (*_DAMAGED, ValueError, KeyError) as error:
        raise DataError(f"{path}, array {key!r}: {_reason(error)}; expected an .npz archive without objects") from error


def read_png_tree(path: str | Path) -> Array:
    """Pictures of a tree of PNG files, a class to a folder: bool `[classes, pictures, H, W]`, True where light.

    It takes Omniglot's `images_background.zip` and `images_evaluation.zip` (964 and 659 characters, 20 drawings of
    105 · 105 pixels each, True = paper), or the folder that comes out of one. Classes and pictures are in the order of
    their paths: alphabet, character, drawing.

    Raises:
        DataError: it is damaged, holds no PNG file, or classes or pictures differ in size.
    """
    from PIL import Image, UnidentifiedImageError

    classes: dict[str, list[Array]] = {}
    shape: tuple[int, ...] | None = None
    for name, raw in sorted(read_members(path, "*.png")):
        try:
            with Image.open(io.BytesIO(raw), formats=["PNG"]) as image:
                picture = np.asarray(image.convert("L")) >= 128
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, zlib.error) as error:
            raise DataError(f"{path}: {name} is damaged ({_reason(error)}), expected a PNG picture") from error
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
    """Names and contents of the regular files of a zip, a tar (plain, gzip, xz) or a folder, as far as they fit.

    Contents stay in memory: nothing is written, so a name that points out of the archive leads nowhere. Links are
    passed over, in archives and in folders.

    Args:
        path: the archive or folder.
        pattern: what a name must look like, with the wildcards of a shell; `*` takes in slashes. Names begin with the
            folder's own name where `path` is a folder.

    Raises:
        DataError: it cannot be read, or is neither.
    """
    path = Path(path)
    try:
        if path.is_dir():
            for file in sorted(path.rglob("*")):
                name = file.relative_to(path.parent).as_posix()
                if fnmatchcase(name, pattern) and file.is_file() and not file.is_symlink():
                    yield name, file.read_bytes()
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for entry in archive.infolist():
                    if fnmatchcase(entry.filename, pattern) and not entry.is_dir():
                        yield entry.filename, archive.read(entry)
        else:
            with tarfile.open(path, "r:*") as tar:
                for member in tar:
                    fits = fnmatchcase(member.name, pattern) and member.isreg()
                    content = tar.extractfile(member) if fits else None
                    if content is not None:
                        yield member.name, content.read()
                assert tar.fileobj is not None
                tar.fileobj.seek(tar.offset)
                if tar.fileobj.read(512).strip(b"\0") or tar.fileobj.tell() < tar.offset + 512:
                    raise tarfile.ReadError("the archive has no end")  # tarfile takes a cut between two files for one
    except _DAMAGED as error:
        raise DataError(f"{path}: {_reason(error)}; expected a whole zip or tar archive, or a folder") from error


def _reason(error: Exception) -> str:
    """An error's message in one line."""
    return " ".join(str(error).split()) or type(error).__name__
