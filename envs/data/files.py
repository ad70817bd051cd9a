"""Finds or downloads data files, and checks whether they are the published ones.

Files are looked for in the argument `data_dir`, in the directory that the environment variable `ENGRAM_DATA` names and
in the cache (`$XDG_CACHE_HOME/engram`, else `~/.cache/engram`), in this order. A missing file is downloaded into the
cache and verified by pooch: `pip install "engram-rl[data]"`. `envs.data.readers` reads the files.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import warnings
from pathlib import Path

import numpy as np

from envs.data.readers import (
    Array,
    DataError,
    read_amat,
    read_bytes,
    read_idx,
    read_members,
    read_npz,
    read_png_tree,
    reading,
)
from envs.data.sources import SOURCES, Source

__all__ = [
    "DataError",
    "cache_dir",
    "check_known",
    "digest",
    "find",
    "read_amat",
    "read_bytes",
    "read_idx",
    "read_members",
    "read_npz",
    "read_png_tree",
    "warn_changed",
]


def cache_dir() -> Path:
    """The cache for downloads: `$XDG_CACHE_HOME/engram`, else `~/.cache/engram`.

    Raises:
        DataError: there is neither.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "engram"
    except RuntimeError as error:  # no HOME, and no entry in passwd
        raise DataError("this user has no home folder: set data_dir, ENGRAM_DATA or XDG_CACHE_HOME") from error


def find(name: str, data_dir: str | Path | None = None) -> Path:
    """The path of the file or folder `name` in `envs.data.sources.SOURCES`; downloaded if missing.

    Args:
        name: such as "babi" or "mnist/train-images".
        data_dir: searched first. Files may be in it or in the source's sub-folder, under any accepted name.

    Raises:
        KeyError: no source has this name.
        DataError: `data_dir` or `ENGRAM_DATA` is not a directory; or the file is missing and cannot be downloaded (the
            message gives its address and where to put it).
    """
    source = SOURCES[name]
    places: list[Path] = []
    for origin, given in (("data_dir", data_dir), ("ENGRAM_DATA", os.environ.get("ENGRAM_DATA"))):
        if given:
            with reading(f"{origin} is {str(given)!r}", "a directory"):
                place = Path(given).expanduser()
                is_folder = place.is_dir()
            if not is_folder:
                raise DataError(f"{origin} is {str(given)!r}, which is not a directory")
            places.append(place)
    with contextlib.suppress(DataError):
        places.append(cache_dir())
    for place in places:
        for folder in (place / source.folder, place):
            for candidate in source.names:
                with reading(folder / candidate, "a folder that can be read"):
                    found = (folder / candidate).exists()
                if found:
                    return folder / candidate
    return _fetch(name, source, places)


def _fetch(name: str, source: Source, places: list[Path]) -> Path:
    place = places[0] / source.folder if places else f"a folder {source.folder} in a data_dir"
    advice = f"fetch {source.url} and put it into {place}"
    looked = ", ".join(map(str, places)) or "any folder"
    try:
        target = cache_dir() / source.folder
    except DataError as error:
        raise DataError(f"{name!r} is not in {looked}; {error}, or {advice}") from error
    try:
        pooch = importlib.import_module("pooch")
    except ModuleNotFoundError:
        raise DataError(f'{name!r} is not in {looked}; {advice}, or pip install "engram-rl[data]"') from None
    try:
        path = pooch.retrieve(source.url, source.checksum, fname=source.names[0], path=target)
    except Exception as error:  # of the network, the disk or the checksum
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name!r} is not in {looked} and could not be fetched ({reason[:200]}); {advice}") from error
    return Path(path)


# -- comparison with the published content -----------------------------------------------------------------------------


def check_known(name: str, path: Path, content: bytes | Array) -> None:
    """Compares file content with the published content, however it is compressed; warns about differences.

    Args:
        name: for example "mnist/train-images".
        path: the file that was read.
        content: the bytes or the array that was read.

    Raises:
        DataError: it is not the published content, and published results depend on this source.
    """
    source = SOURCES[name]
    if source.content:
        same = digest(content) == source.content
    else:  # repacked files cannot be compared
        algorithm, _, digits = source.checksum.partition(":")
        published = path.name == source.names[0]
        same = not published or hashlib.new(algorithm, path.read_bytes(), usedforsecurity=False).hexdigest() == digits
    if not same:
        warn_changed(name, str(path))


def warn_changed(name: str, what: str) -> None:
    """Warns that the content differs from the published content of source `name`, or refuses it.

    Raises:
        DataError: published results depend on this source.
    """
    source = SOURCES[name]
    line = f"{what} is not the published content of {source.url}"
    if source.fixed:
        raise DataError(f"{line}, which published results need: download it and put it there")
    warnings.warn(f"{line}; results are not comparable with those on it", stacklevel=3)


def digest(content: bytes | Array) -> str:
    """The first 16 digits of the sha256 of bytes, of numbers in row-major order, or of bools packed into bytes."""
    if not isinstance(content, bytes):
        content = (np.packbits(content) if content.dtype == bool else np.ascontiguousarray(content)).tobytes()
    return hashlib.sha256(content).hexdigest()[:16]
