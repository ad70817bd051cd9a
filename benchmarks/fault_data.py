"""Damaged and malicious data files: changes are refused or reported, and no code runs and no file is written.

Small files replace the published ones, with their own digests, so that the campaign needs no data.
"""

from __future__ import annotations

import functools
import gzip
import io
import lzma
import os
import pickle
import random
import shutil
import struct
import sys
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from fault_children import Child, Try, complaint

from envs.data.files import digest
from envs.data.sources import SOURCES
from envs.tasks.babi import known as babi_known
from envs.tasks.babi import stories as babi_stories
from envs.tasks.graphs.worlds import underground
from envs.tasks.images.data import load_images

MEMORY = 3 << 29
"""Additional memory of a child in bytes: more than three times the maximum size of a file."""
LIMIT_S = 40.0

_STATIONS = '"id","latitude","longitude","name","zone"\n' + "".join(
    f'{n},{51.5 + 0.01 * (n % 3)},{-0.1 - 0.02 * (n // 3)},"Station {n}",{1 if n < 8 else 2.5}\n' for n in range(1, 10)
)
_LINES = '"line","name"\n1,"Red Line"\n2,"Blue Line"\n13,"Docklands Light Railway"\n'
_PAIRS = [(1, 2, 1), (2, 3, 1), (3, 6, 1), (1, 4, 2), (4, 5, 2), (5, 6, 2), (6, 7, 2), (5, 2, 1), (7, 8, 1), (8, 9, 13)]
_TRACK = '"station1","station2","line","time"\n' + "".join(f"{a},{b},{line},1\n" for a, b, line in _PAIRS)
_STORY = (
    "1 John went to the office.\n2 Where is John? \toffice\t1\n"
    "1 Mary got the milk there.\n2 What is Mary carrying? \tmilk\t1\n"
)


class Bomb:
    """Creates a file when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch canary",)


def idx(array: np.ndarray[Any, Any], code: int = 8) -> bytes:
    """The idx form of an array."""
    kind = {8: ">u1", 9: ">i1", 13: ">f4", 14: ">f8"}[code]
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape) + array.astype(kind).tobytes()


def npz(**arrays: Any) -> bytes:
    """An archive of arrays."""
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def tar(mode: str, members: dict[str, bytes | str]) -> bytes:
    """A tar archive; a text is the target of a link."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    """A zip archive."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return stream.getvalue()


@functools.cache
def bomb(kind: str) -> bytes:
    """A small file that decompresses to at least 600 MiB of zeros."""
    part = bytes(1 << 20)
    if kind == "gzip":
        return gzip.compress(part, mtime=0) * 600
    if kind == "xz":
        return lzma.compress(part) * 600
    if kind == "tar":
        member = tarfile.TarInfo("t/en-valid/qa1_test.txt")
        member.size = 600 << 20
        return (
            gzip.compress(member.tobuf(), mtime=0)
            + gzip.compress(part, mtime=0) * 600
            + gzip.compress(bytes(1024), mtime=0)
        )
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in (
            ("images.npy",) if kind == "npz" else ("a/b.png",) if kind == "zip" else [f"{n}/b.png" for n in range(10)]
        ):
            with archive.open(name, "w") as member:
                for _ in range(60 if kind == "zip of many" else 600):
                    member.write(part)
    return stream.getvalue()


def png(bits: np.ndarray[Any, Any]) -> bytes:
    """An image with one bit per pixel."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray((255 * bits).astype(np.uint8)).convert("1").save(stream, "PNG")
    return stream.getvalue()


# -- what stands for the published files -------------------------------------------------------------------------------


def stand_ins() -> dict[str, bytes]:
    """Small files of every source and form, by their path in a data directory."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (36, 28, 28)), rng.integers(0, 10, 36)
    rows = "\n".join(" ".join(map(str, row)) for row in rng.integers(0, 2, (4, 784))).encode()
    paper = rng.random((5, 3, 40, 40)) > 0.3
    drawings = {f"images_evaluation/A/c{c}/{d}.png": png(paper[c, d]) for c in range(5) for d in range(3)}
    story = {f"tasks_1-20_v1-2/en-valid/qa1_{split}.txt": _STORY.encode() for split in ("train", "valid", "test")}
    tube = {"stations": _STATIONS, "lines": _LINES, "connections": _TRACK}
    return {
        "mnist/t10k-images-idx3-ubyte.gz": gzip.compress(idx(images), mtime=0),
        "mnist/t10k-labels-idx1-ubyte.gz": gzip.compress(idx(labels), mtime=0),
        "mnist/train-images-idx3-ubyte": idx(images),
        "mnist/train-labels-idx1-ubyte": idx(labels),
        "binarized_mnist/binarized_mnist_test.amat.xz": lzma.compress(rows),
        "binarized_mnist/binarized_mnist_valid.amat": rows,
        "omniglot/images_background.npz": npz(images=paper),
        "omniglot/images_evaluation.zip": zipped(drawings),
        "babi/tasks_1-20_v1-2.tar.gz": gzip.compress(tar("w", {**story}), mtime=0),
        **{f"graphs/london-underground/london.{name}.csv": text.encode() for name, text in tube.items()},
    }


LOADS: dict[str, Callable[[Path], Any]] = {
    "mnist/t10k": lambda folder: load_images("mnist", "test", data_dir=folder),
    "mnist/train": lambda folder: load_images("mnist", "train", data_dir=folder),
    "binarized_mnist/binarized_mnist_test": lambda folder: load_images("binarized-mnist", "test", data_dir=folder),
    "binarized_mnist/binarized_mnist_valid": lambda folder: load_images("binarized-mnist", "valid", data_dir=folder),
    "omniglot/images_background": lambda folder: load_images("omniglot", "train", data_dir=folder),
    "omniglot/images_evaluation": lambda folder: load_images("omniglot", "test", data_dir=folder),
    "babi": lambda folder: babi_stories.load("en-valid", "test", [1], folder),
    "graphs": underground,
}
"""The function that reads a file, by the prefix of its path."""


def publish() -> None:
    """Replaces the published files by the small ones; for a child process."""
    import hashlib

    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (36, 28, 28)).astype(np.uint8), rng.integers(0, 10, 36).astype(np.uint8)
    rows = rng.integers(0, 2, (4, 784)).astype(np.uint8)
    contents: dict[str, Any] = {f"mnist/{part}-images": images for part in ("test", "train")}
    contents |= {f"mnist/{part}-labels": labels for part in ("test", "train")}
    contents |= {f"binarized_mnist/{part}": rows for part in ("test", "valid")}
    tube = {"stations": _STATIONS, "lines": _LINES, "connections": _TRACK}
    contents |= {f"london-underground/{name}": text.encode() for name, text in tube.items()}
    for name, content in contents.items():
        SOURCES[name] = SOURCES[name]._replace(content=digest(content))
    archive = hashlib.md5(stand_ins()["omniglot/images_evaluation.zip"], usedforsecurity=False).hexdigest()
    SOURCES["omniglot/evaluation"] = SOURCES["omniglot/evaluation"]._replace(checksum=f"md5:{archive}")
    babi_known.DIGESTS["en-valid", "test", 1] = digest(_STORY.encode())[:8]
    os.environ.pop("ENGRAM_DATA", None)
    os.environ["XDG_CACHE_HOME"] = "/nowhere"
    sys.modules["pooch"] = None  # type: ignore[assignment]  # nothing is fetched


def same(one: Any, other: Any) -> bool:
    """Whether two loads returned equal data."""
    if isinstance(one, tuple) and hasattr(one, "pixels"):
        return all(
            (a is None and b is None)
            or (a is not None and b is not None and a.shape == b.shape and bool((a == b).all()))
            for a, b in zip(one, other, strict=True)
        )
    return bool(one == other)


def load(path: str, folder: Path, whole: Path) -> int:
    """In a child: loads the data of `path` and compares it with the undamaged; returns the exit status."""
    publish()
    reads = next(read for begin, read in LOADS.items() if path.startswith(begin))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        expected = reads(whole)
        if any("published" in str(one.message) for one in said):
            print("the undamaged files are not taken for the published ones")
            return 7
        try:
            found = reads(folder)
        except ValueError as error:  # the commands print it behind this word
            print(f"error: {error}")
            return 2
    if not same(found, expected) and not any("is not the published content" in str(one.message) for one in said):
        print("it was loaded, other than the published content, and nothing was said")
        return 0
    return 3


# -- inputs ------------------------------------------------------------------------------------------------------------


def damaged(rng: random.Random, content: bytes) -> tuple[bytes, str]:
    """A file with one bit changed, the end cut off, or a part removed or overwritten."""
    kind = rng.choice(("flip", "flip", "flip", "cut", "cut", "hole", "zeros", "doubled"))
    place = rng.randrange(len(content))
    if kind == "flip":
        bit = rng.randrange(8)
        return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :], f"bit {bit} of byte {place}"
    if kind == "cut":
        return content[:place], f"cut to {place} bytes"
    size = min(rng.randrange(1, 600), len(content) - place)
    if kind == "hole":
        return content[:place] + content[place + size :], f"{size} bytes left out at {place}"
    if kind == "zeros":
        return content[:place] + bytes(size) + content[place + size :], f"{size} zeros at {place}"
    return content[: place + size] + content[place:], f"{size} bytes doubled at {place}"


Case = tuple[str, str, Any]
"""Path, description, and content or the function that makes it."""


def handmade() -> list[Case]:
    """The cases made by hand."""
    return [*_of_every_path(), *_idx_files(), *_omniglot_files(), *_archives(), *_graph_files()]


def _of_every_path() -> Iterator[Case]:
    """What may be in the place of any file."""
    contents: dict[str, Any] = {
        "a web page": b"<!DOCTYPE html><html><body>404: Not Found</body></html>",
        "empty": b"",
        "a pipe": os.mkfifo,
        "endless": lambda place: place.symlink_to("/dev/zero"),
        "a link to itself": lambda place: place.symlink_to(place),
        "a folder": Path.mkdir,
        "sparse, 1 TiB": lambda place: (place.touch(), os.truncate(place, 1 << 40)),
        "gzip bomb": lambda place: place.write_bytes(bomb("gzip")),
        "pickle": pickle.dumps(Bomb()),
        "zip of another kind": zipped({"a.txt": b"x"}),
    }
    for what, content in contents.items():
        for path in stand_ins():
            yield path, what, content


def _idx_files() -> Iterator[Case]:
    """MNIST's format: wrong values, counts, types and headers."""
    labels, images = np.zeros(36, np.uint8), np.zeros((36, 28, 28), np.uint8)
    bad = np.where(np.arange(36) == 3, 200, labels)
    files = {
        "mnist/t10k-labels-idx1-ubyte.gz": [idx(bad), idx(labels[:35]), idx(np.full(36, np.nan), 13), idx(images)],
        "mnist/train-labels-idx1-ubyte": [
            idx(bad),
            idx(labels[:0]),
            idx(labels - 5, 9),
            struct.pack(">BBBBI", 0, 0, 8, 1, 2**32 - 1),
        ],
        "mnist/t10k-images-idx3-ubyte.gz": [
            idx(images[:, :20]),
            idx(np.full((36, 28, 28), np.nan), 13),
            idx(images[:0]),
            idx(images.reshape(36, -1)),
            struct.pack(">BBBB3I", 0, 0, 8, 3, *[2**32 - 1] * 3),
            struct.pack(">BBBB200I", 0, 0, 8, 200, *[1] * 200) + b"a",
        ],
    }
    for path, contents in files.items():
        yield from ((path, f"idx {number}", content) for number, content in enumerate(contents))


def _omniglot_files() -> Iterator[Case]:
    """Arrays and trees of pictures: wrong types, shapes and headers, and bombs."""
    background, evaluation = "omniglot/images_background.npz", "omniglot/images_evaluation.zip"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|b1", "fortran_order": False, "shape": (10**5, 10**6)})
    arrays = [
        npz(images=np.full((5, 3, 4, 4), np.nan)),
        npz(images=np.array([{}], object)),
        npz(images=np.zeros((5, 3, 4, 4)) + 0.5),
        npz(images=np.zeros((0, 3, 4, 4), bool)),
        npz(images=np.zeros((5, 3, 0, 4), bool)),
        npz(images=np.zeros((5, 4), bool)),
        npz(images=np.array(["a"])),
        npz(pictures=np.zeros(3)),
        zipped({"images.npy": header.getvalue() + b"abc"}),
        zipped({"images.npy": b"\x93NUMPY\x01\x00\xff\xff{"}),
        zipped({"images.npy": b"\x93NUMPY\x09\x00\x00\x00{}"}),
        zipped({"images.npy": b"not an array"}),
        zipped({"images.npy": pickle.dumps(Bomb())}),
    ]
    yield from ((background, f"npz {number}", content) for number, content in enumerate(arrays))
    drawing = png(np.ones((8, 8)))
    wide = b"IHDR" + struct.pack(">IIBBBBB", 1 << 20, 1 << 20, 1, 0, 0, 0, 0)
    trees = [
        {"a/b.png": drawing, "a/c.png": b"GIF89a"},
        {"a/b.png": drawing, "c/d.png": png(np.ones((9, 9)))},
        {"a/b.png": drawing, "a/c.png": drawing, "d/e.png": drawing},
        {"../../evil.png": drawing},
        {"a/b.png": b"\x89PNG\r\n\x1a\n\0\0\0\r" + wide + struct.pack(">I", 0)},
    ]
    yield from ((evaluation, f"zip {number}", zipped(members)) for number, members in enumerate(trees))
    yield background, "npz bomb", lambda place: place.write_bytes(bomb("npz"))
    yield evaluation, "zip bomb", lambda place: place.write_bytes(bomb("zip"))
    yield evaluation, "zip bomb of many", lambda place: place.write_bytes(bomb("zip of many"))


def _archives() -> Iterator[Case]:
    """bAbI's archive: paths and links out of it, bombs, and other text than stories."""
    archive = "babi/tasks_1-20_v1-2.tar.gz"
    story, published = "t/en-valid/qa1_test.txt", "tasks_1-20_v1-2/en-valid/qa1_test.txt"
    evil = {"../../evil.txt": b"x", published: _STORY.encode(), "/etc/evil": b"x"}
    yield archive, "paths out of the archive", tar("w:gz", evil)
    yield archive, "a link for a file", tar("w:gz", {published: "/etc/passwd"})
    yield archive, "xz bomb", lambda place: place.write_bytes(bomb("xz"))
    yield archive, "a member of 600 MiB", lambda place: place.write_bytes(bomb("tar"))
    yield archive, "other words", tar("w:gz", {story: _STORY.replace("milk", "football").encode()})
    yield archive, "no words of bAbI", tar("w:gz", {story: b"1 Nobody expects.\n"})
    yield archive, "bytes that are no text", tar("w:gz", {story: bytes(range(256))})
    yield archive, "a carriage return", tar("w:gz", {story: _STORY.replace("to the", "to\rthe").encode()})


def _graph_files() -> Iterator[Case]:
    """The tables of the Underground, with changed text."""
    place = "graphs/london-underground/london.{}.csv"
    for name, text in (("stations", _STATIONS), ("lines", _LINES), ("connections", _TRACK)):
        changes = [text.replace(",", ",\r", 1), text.replace("1", "7", 1), text[: text.rindex("\n", 0, -1) + 1]]
        changes += [text + text, text.replace("1", "x"), text.replace('"', "'"), text.upper(), "id,name\n"]
        changes += [text.replace("\n", "\r")]
        yield from ((place.format(name), f"csv {number}", change.encode()) for number, change in enumerate(changes))


def data(seed: int, count: int, folder: Path) -> Iterator[Try]:
    """Half of the files damaged at random, half made by hand."""
    rng = random.Random(seed)
    files, whole, place = stand_ins(), folder / "whole", folder / "data"
    _lay_out(files, whole)
    made = handmade()
    chosen = rng.sample(made, min(len(made), count // 2))
    cases = list(chosen)
    paths = list(files)
    for number in range(count - len(chosen)):
        path = paths[number % len(paths)]
        content, what = damaged(rng, files[path])
        cases.append((path, what, content))
    for path, what, content in cases:
        shutil.rmtree(place, ignore_errors=True)
        _lay_out({name: one for name, one in files.items() if name != path}, place)
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            (place / path).write_bytes(content)
        else:
            content(place / path)
        out = Child(lambda path=path: load(path, place, whole), folder, MEMORY).wait(LIMIT_S)
        wrong = complaint(out, names=[Path(path).name.split(".")[0], path.split("/")[0]])
        if out.status == 0:
            wrong = out.output.strip().splitlines()[-1]
        elif out.status == 3:
            wrong = ""
        if (
            any(folder.parent.rglob("canary"))
            or any(folder.parent.parent.glob("evil*"))
            or any(folder.parent.glob("evil*"))
        ):
            wrong = "something was run or written"
        yield Try("data files", f"{path}: {what}", wrong, out.seconds)


def _lay_out(files: dict[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
