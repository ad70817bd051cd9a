"""Data files: found, fetched, read, and named when something is wrong with them."""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import os
import sys
import tarfile
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from envs.data import files as data
from envs.data.files import DataError, find, read_amat, read_bytes, read_idx, read_members, read_npz, read_png_tree
from envs.data.sources import SOURCES, Source

REAL = os.environ.get("ENGRAM_DATA")
real = pytest.mark.skipif(REAL is None, reason="ENGRAM_DATA names no directory with the published files")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no ENGRAM_DATA."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("ENGRAM_DATA", raising=False)
    return tmp_path / "xdg" / "engram"


def put(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# -- finding -----------------------------------------------------------------------------------------------------------


def test_places_are_searched_in_order(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, named = tmp_path / "given", tmp_path / "named"
    name = "train-images-idx3-ubyte"
    cached = put(cache / "mnist" / (name + ".gz"))
    assert find("mnist/train-images") == cached
    in_named = put(named / name)  # without the folder, and unpacked
    monkeypatch.setenv("ENGRAM_DATA", str(named))
    assert find("mnist/train-images") == in_named
    in_given = put(given / "mnist" / (name + ".gz"))
    assert find("mnist/train-images", given) == in_given
    assert find("mnist/train-images", str(named)) == in_named


def test_the_cache_follows_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data.cache_dir() == tmp_path / ".cache" / "engram"


def test_without_a_home_folder_the_error_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", home)
    for place in (None, tmp_path):
        with pytest.raises(DataError, match=r"no home folder: set data_dir, ENGRAM_DATA or XDG_CACHE_HOME, or fetch"):
            find("babi", place)
    assert find("babi", put(tmp_path / "tasks_1-20_v1-2.tar.gz").parent).name == "tasks_1-20_v1-2.tar.gz"
    with pytest.raises(DataError, match="data_dir is '~nobody-of-this-name"):
        find("babi", "~nobody-of-this-name/data")


def test_a_directory_that_is_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"data_dir is '.*nowhere'"):
        find("babi", tmp_path / "nowhere")
    monkeypatch.setenv("ENGRAM_DATA", str(put(tmp_path / "file")))
    with pytest.raises(DataError, match="ENGRAM_DATA is"):
        find("babi")


def test_every_source_has_an_address_and_a_checksum_of_the_right_length() -> None:
    for source in SOURCES.values():
        algorithm, digits = source.checksum.split(":")
        assert len(digits) == len(hashlib.new(algorithm).hexdigest())
        assert source.url.startswith(("http://", "https://"))
        assert source.url.endswith(source.names[0])


def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, checksum: str) -> None:
    """A source "thing" at an address of this machine's disk."""
    pooch = pytest.importorskip("pooch")
    place = put(tmp_path / "server" / "thing.bin", content)

    def copy(url: str, output_file: str, *_: Any, **__: Any) -> None:
        if url != "http://there/thing.bin":
            raise ConnectionError("no route")
        Path(output_file).write_bytes(place.read_bytes())

    retrieve = pooch.retrieve
    monkeypatch.setattr(pooch, "retrieve", lambda *args, **kwargs: retrieve(*args, downloader=copy, **kwargs))
    monkeypatch.setitem(SOURCES, "thing", Source("things", ("thing.bin",), "http://there/thing.bin", checksum))
    monkeypatch.setitem(SOURCES, "lost", Source("things", ("lost.bin",), "http://nowhere/lost.bin", checksum))


def test_a_missing_file_is_fetched_into_the_cache_once(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served(tmp_path, monkeypatch, b"content", f"sha256:{hashlib.sha256(b'content').hexdigest()}")
    path = find("thing")
    assert path == cache / "things" / "thing.bin"
    assert path.read_bytes() == b"content"
    (tmp_path / "server" / "thing.bin").unlink()
    assert find("thing") == path


def test_a_wrong_checksum_and_a_dead_address_are_errors(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served(tmp_path, monkeypatch, b"content", f"md5:{hashlib.md5(b'other').hexdigest()}")
    with pytest.raises(DataError, match=r"(?i)could not be fetched .*hash.*http://there/thing.bin and put it into"):
        find("thing")
    assert not (cache / "things" / "thing.bin").exists()
    with pytest.raises(DataError, match=r"\(no route\); fetch http://nowhere/lost.bin") as caught:
        find("lost")
    assert "\n" not in str(caught.value)


def test_without_pooch_the_error_says_what_to_do(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(DataError) as caught:
        find("omniglot/background", tmp_path)
    message = str(caught.value)
    for part in (str(tmp_path), str(cache), SOURCES["omniglot/background"].url, "engram-rl[data]"):
        assert part in message
    assert "\n" not in message


def test_pooch_gets_address_checksum_and_place(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def retrieve(url: str, known_hash: str, fname: str, path: Path) -> str:
        assert (url, known_hash) == (SOURCES["babi"].url, SOURCES["babi"].checksum)
        return str(path / fname)

    monkeypatch.setitem(sys.modules, "pooch", types.SimpleNamespace(retrieve=retrieve))
    assert find("babi") == cache / "babi" / "tasks_1-20_v1-2.tar.gz"


# -- packed files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress])
def test_files_are_unpacked_by_content(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    content = bytes(range(256)) * 50
    assert read_bytes(put(tmp_path / "any.name", pack(content))) == content


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_damaged_packed_files_are_named(tmp_path: Path, pack: Callable[[bytes], bytes], damage: str) -> None:
    packed = bytearray(pack(os.urandom(5000)))
    if damage == "cut":
        del packed[2000:]
    else:
        packed[2000] ^= 255
    with pytest.raises(DataError, match=r"bad\.gz"):
        read_bytes(put(tmp_path / "bad.gz", bytes(packed)))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.gz"):
        read_bytes(tmp_path / "gone.gz")


# -- idx ---------------------------------------------------------------------------------------------------------------


def idx(array: np.ndarray[Any, Any], code: int) -> bytes:
    header = bytes([0, 0, code, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.mark.parametrize(("code", "dtype"), [(8, "u1"), (9, "i1"), (11, "i2"), (12, "i4"), (13, "f4"), (14, "f8")])
def test_idx_files_of_every_type(tmp_path: Path, code: int, dtype: str) -> None:
    array = (np.arange(24).reshape(2, 3, 4) * 5 - 3).astype(dtype)
    read = read_idx(put(tmp_path / "a.gz", gzip.compress(idx(array, code))))
    assert read.dtype == np.dtype(dtype)
    assert read.dtype.isnative
    assert (read == array).all()
    read[0] = 0  # it is the caller's own


def test_damaged_idx_files_are_named(tmp_path: Path) -> None:
    good = idx(np.zeros((3, 2, 2), np.uint8), 8)
    for bad, message in (
        (b"PK\3\4....", r"begins with 504b0304, expected an idx file"),
        (b"", "begins with nothing"),
        (good[:2] + b"\7" + good[3:], "begins with 00000703"),
        (good[:9], "ends inside its header of 16 bytes, after 9"),
        (good[:-1], r"holds 11 bytes, expected 12 for an array of \[3, 2, 2\]"),
        (good + b"\0", "holds 13 bytes, expected 12"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            read_idx(put(tmp_path / "broken-idx3", bad))
        assert "broken-idx3" in str(caught.value)


# -- amat --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["\n", " \n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_amat_rows(tmp_path: Path, ending: str, last: bool) -> None:
    rows = np.random.default_rng(0).integers(0, 2, (5, 784))
    text = ending.join(" ".join(map(str, row)) for row in rows) + ending * last
    read = read_amat(put(tmp_path / "a.amat.xz", lzma.compress(text.encode())))
    assert read.dtype == np.uint8
    assert (read == rows).all()


def test_damaged_amat_files_are_named(tmp_path: Path) -> None:
    for bad, message in (
        (b"0 1 0\n0 1 2\n", "line 2: '2' is unexpected: expected 0 or 1"),
        (b"0 1 0\n0 10\n", "line 2: '0' is unexpected: expected 0 or 1"),
        (b"0 1 0\n1 1\n", "line 2: 2 digits, expected 3"),
        (b"0 1 0\n1 1 1 1", "line 2: 4 digits, expected 3"),
        (b"", "is empty"),
        (b"\n\n", "0 digits, expected 3"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            read_amat(put(tmp_path / "broken.amat", bad), columns=3)
        assert "broken.amat" in str(caught.value)
    assert read_amat(put(tmp_path / "a.amat", b"0 1 0\n\n1 1 1\n"), columns=3).tolist() == [[0, 1, 0], [1, 1, 1]]


# -- npz ---------------------------------------------------------------------------------------------------------------


def test_npz_arrays_without_pickles(tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((3, 4)) > 0.5
    path = tmp_path / "a.npz"
    np.savez_compressed(path, images=images, objects=np.array([{}], dtype=object))
    assert (read_npz(path, "images") == images).all()
    with pytest.raises(DataError, match=r"holds \['images', 'objects'\], expected 'labels'"):
        read_npz(path, "labels")
    with pytest.raises(DataError, match=r"'objects': .*without objects"):
        read_npz(path, "objects")
    whole = path.read_bytes()
    for bad in (whole[:100], whole[:-40], b"nothing of the kind"):
        with pytest.raises(DataError, match=r"cut\.npz"):
            read_npz(put(tmp_path / "cut.npz", bad), "images")
    np.save(tmp_path / "one.npy", images)
    with pytest.raises(DataError, match="single array"):
        read_npz(tmp_path / "one.npy", "images")


# -- trees and archives ------------------------------------------------------------------------------------------------


def png(value: np.ndarray[Any, Any]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(value).convert("1").save(stream, "PNG")  # one bit a pixel, as Omniglot's
    return stream.getvalue()


def drawings() -> dict[str, tuple[np.ndarray[Any, Any], bytes]]:
    generator = np.random.default_rng(0)
    tree = {}
    for place in ("B/character01", "A/character02", "A/character01"):
        for drawing in (2, 1):
            bits = generator.random((5, 4)) > 0.3
            tree[f"images/{place}/00_{drawing:02}.png"] = bits, png(np.where(bits, 255, 0).astype(np.uint8))
    return tree


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("packed", [True, False])
def test_png_trees(tmp_path: Path, packed: bool) -> None:
    tree = drawings()
    if packed:
        path = zipped(tmp_path / "images.zip", {name: content for name, (_, content) in tree.items()} | {"a.txt": b""})
    else:
        path = tmp_path / "images"
        for name, (_, content) in tree.items():
            put(tmp_path / name, content)
    read = read_png_tree(path)
    assert read.shape == (3, 2, 5, 4)
    assert read.dtype == bool
    assert (read.reshape(6, 5, 4) == np.stack([tree[name][0] for name in sorted(tree)])).all()


def test_damaged_png_trees_are_named(tmp_path: Path) -> None:
    tree = {name: content for name, (_, content) in drawings().items()}
    one = "images/A/character01/00_01.png"
    for change, message in (
        ({one: tree[one][:40]}, f"{one} is damaged"),
        ({one: b"GIF89a"}, f"{one} is damaged"),
        ({one: png(np.zeros((9, 9), np.uint8))}, r"00_02.png is \(5, 4\), expected \(9, 9\)"),
        ({"images/B/character01/00_03.png": tree[one]}, "holds 2 pictures, expected 3"),
    ):
        with pytest.raises(DataError, match=message):
            read_png_tree(zipped(tmp_path / "broken.zip", {**tree, **change}))
    with pytest.raises(DataError, match=r"holds no \.png file"):
        read_png_tree(zipped(tmp_path / "empty.zip", {"a.txt": b""}))
    whole = zipped(tmp_path / "whole.zip", tree).read_bytes()
    with pytest.raises(DataError, match=r"cut\.zip.*expected a whole zip"):
        read_png_tree(put(tmp_path / "cut.zip", whole[: len(whole) // 2]))


def tarred(path: Path, mode: str, members: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    return path


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_members_of_a_tar_are_read_in_memory(tmp_path: Path, mode: str) -> None:
    members = {"t/en/a.txt": b"one", "../../evil.txt": b"two", "/etc/evil.txt": b"three", "t/en/a.md": b"four"}
    path = tarred(tmp_path / "a.tar", mode, members, {"l.txt": "/etc/hosts"})
    before = sorted(tmp_path.rglob("*"))
    found = dict(read_members(path, "*.txt"))
    assert found == {name: content for name, content in members.items() if name.endswith(".txt")}
    assert sorted(tmp_path.rglob("*")) == before
    assert not (tmp_path.parent.parent / "evil.txt").exists()


def test_members_of_a_folder(tmp_path: Path) -> None:
    put(tmp_path / "t" / "en" / "a.txt", b"one")
    put(tmp_path / "t" / "hn" / "a.txt", b"two")
    (tmp_path / "t" / "en" / "link.txt").symlink_to(put(tmp_path / "secret.txt"))
    assert dict(read_members(tmp_path / "t", "*/en/*.txt")) == {"t/en/a.txt": b"one"}


def test_damaged_archives_are_named(tmp_path: Path) -> None:
    whole = tarred(tmp_path / "a.tar.gz", "w:gz", {"a.txt": os.urandom(9000), "b.txt": os.urandom(9000)}).read_bytes()
    plain = gzip.decompress(whole)
    for bad in (whole[:5000], plain[:5000], plain[: 512 + 9216 + 100], b"not an archive at all", b""):
        with pytest.raises(DataError, match=r"cut\.tar\.gz: .*expected a whole zip or tar"):
            list(read_members(put(tmp_path / "cut.tar.gz", bad), "*"))
    with pytest.raises(DataError, match="gone"):
        list(read_members(tmp_path / "gone", "*"))


# -- the published files -----------------------------------------------------------------------------------------------


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Finds a published file in ENGRAM_DATA; skips where that directory has it not."""
    monkeypatch.setitem(sys.modules, "pooch", None)

    def look(name: str) -> Path:
        try:
            return find(name, REAL)
        except DataError as error:
            pytest.skip(str(error))

    return look


@real
def test_the_published_files(published: Callable[[str], Path]) -> None:
    images, labels = (read_idx(published(f"mnist/test-{kind}")) for kind in ("images", "labels"))
    assert images.shape == (10000, 28, 28)
    assert labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert images.mean() == pytest.approx(33.79, abs=0.01)
    binary = read_amat(published("binarized_mnist/valid"))
    assert binary.shape == (10000, 784)
    assert binary.mean() == pytest.approx(0.13113, abs=1e-5)
    path = published("omniglot/evaluation")
    drawn = read_npz(path, "images") if path.suffix == ".npz" else read_png_tree(path)
    assert drawn.shape == (659, 20, 105, 105)
    assert drawn.dtype == bool
    assert drawn.mean() > 0.8  # True is paper


@real
@pytest.mark.parametrize("name", [name for name in SOURCES if name.startswith(("mnist", "binarized"))])
def test_checksums_are_those_of_the_published_files(name: str, published: Callable[[str], Path]) -> None:
    source, path = SOURCES[name], published(name)
    content = path.read_bytes() if path.name == source.names[0] else read_bytes(path)
    assert f"md5:{hashlib.md5(content).hexdigest()}" == source.checksum
