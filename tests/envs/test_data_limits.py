"""Data files that claim too much, become too much, or never end: refused before memory or time is spent on them."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.data import readers as data_files
from envs.data.files import DataError, read_amat, read_bytes, read_idx, read_members, read_npz, read_png_tree


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files may hold 1 MiB."""
    monkeypatch.setattr(data_files, "LIMIT", 1 << 20)


def bomb(kind: str, path: Path) -> Path:
    """A small file that 3 MiB come out of."""
    zeros = bytes(3 << 20)
    if kind in ("zip", "zip of many"):
        parts = [zeros] if kind == "zip" else [zeros[: 3 << 18]] * 4
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for number, part in enumerate(parts):
                archive.writestr(f"t/{number}.png", part)
    elif kind.startswith("tar"):
        with tarfile.open(path, "w:" + kind[4:]) as tar:  # type: ignore[call-overload]
            member = tarfile.TarInfo("t/a.png")
            member.size = len(zeros)
            tar.addfile(member, io.BytesIO(zeros))
    elif kind == "sparse":
        with open(path, "wb") as file:
            file.truncate(1 << 40)
    else:
        return put(path, {"gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress}[kind](zeros))
    return path


@pytest.mark.parametrize("kind", ["gz", "xz", "bz2", "sparse", "zip", "zip of many", "tar:gz", "tar:xz", "tar:bz2"])
def test_little_that_becomes_much_is_refused(tmp_path: Path, small_limit: None, kind: str) -> None:
    path = bomb(kind, tmp_path / "bomb")
    with pytest.raises(DataError, match="bomb holds more than 1 MiB"):
        read_png_tree(path) if kind.startswith(("zip", "tar")) else read_bytes(path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_headers_that_claim_more_than_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is allocated for the 100 GB that they speak of."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (100_000, 10**6)})
    for name, content, message in (
        (
            "images.npy",
            header.getvalue() + b"abc",
            r"claims 100000000000 bytes for \[100000, 1000000\], but there are 3",
        ),
        ("images.npy", header.getvalue().replace(b"(100000", b"(-10000"), "claims"),
        ("images.npy", b"\x93NUMPY\x01\x00\xff\xff{", "npz"),
        ("images.npy", b"\x93NUMPY\x03\x00\x00\x00\x00\x00", r"version \(3, 0\)"),
        ("images.npy", b"GIF89a", "npz"),
    ):
        path = zipped(tmp_path / "a.npz", {name: content})
        with pytest.raises(DataError, match=rf"a\.npz, array 'images': .*{message}"):
            read_npz(path, "images")
    giant = bytes([0, 0, 8, 3]) + b"\xff" * 12 + b"abc"
    with pytest.raises(DataError, match="a-idx3 holds 3 bytes, expected 79228162458924105385300197375 for an array"):
        read_idx(put(tmp_path / "a-idx3", giant))
    many = bytes([0, 0, 8, 200]) + b"\0\0\0\1" * 200 + b"a"
    with pytest.raises(DataError, match="expected an idx file"):
        read_idx(put(tmp_path / "b-idx3", many))
    for side, message in ((1 << 20, "a PNG picture"), (30_000, "a PNG picture"), (12_000, "holds more than 64 MiB")):
        monkeypatch.setattr(data_files, "LIMIT", 1 << 26)
        part = b"IHDR" + struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
        wide = b"\x89PNG\r\n\x1a\n\0\0\0\r" + part + struct.pack(">I", zlib.crc32(part)) + b"\0\0\0\0IDAT5\xaf\x06\x1e"
        with pytest.raises(DataError, match=rf"picture\.zip.*{message}"):
            read_png_tree(zipped(tmp_path / "picture.zip", {"t/a/b.png": wide}))


def test_memory_that_is_not_there_is_no_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise MemoryError

    path = put(tmp_path / "a.amat", b"0 1 0\n")
    monkeypatch.setattr(np, "flatnonzero", full)
    with pytest.raises(DataError, match=r"a\.amat: there is not enough memory to read it"):
        read_amat(path, columns=3)


def test_pipes_devices_and_folders_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    for place in ("pipe", "endless", "."):
        for read in (read_bytes, read_idx, read_amat, lambda path: read_npz(path, "images")):
            with pytest.raises(DataError, match="expected a regular file"):
                read(tmp_path / place)
    for place in ("pipe", "endless"):
        with pytest.raises(DataError, match="is a pipe, socket or device"):
            list(read_members(tmp_path / place, "*"))
    folder = tmp_path / "t"
    put(folder / "a.txt", b"one")
    os.mkfifo(folder / "b.txt")
    assert dict(read_members(folder, "*.txt")) == {"t/a.txt": b"one"}


def test_a_folder_without_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_files, "ENTRIES", 3)
    for name in "abcd":
        put(tmp_path / "t" / name, b"x")
    with pytest.raises(DataError, match="t holds more than 3 files"):
        list(read_members(tmp_path / "t", "*.png"))
    with pytest.raises(DataError, match="holds more than 3 files"):
        list(read_members(zipped(tmp_path / "t.zip", dict.fromkeys("abcd", b"")), "*.png"))


def test_an_encrypted_archive_is_named(tmp_path: Path) -> None:
    raw = bytearray(zipped(tmp_path / "a.zip", {"t/a.png": b"x"}).read_bytes())
    raw[6] |= 1  # the flag of the local header and that of the directory
    raw[raw.index(b"PK\1\2") + 8] |= 1
    with pytest.raises(DataError, match=r"a\.zip: .*encrypted"):
        list(read_members(put(tmp_path / "a.zip", bytes(raw)), "*"))
