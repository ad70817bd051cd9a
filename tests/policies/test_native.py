"""C libraries in the cache: kept, found out when they are damaged, and done without where nothing can be kept."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

from policies.native import compiler as native
from policies.native.loops import MAX_LAYERS, struct

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
pytestmark = pytest.mark.skipif(COMPILER is None or os.name != "posix", reason="there is no C compiler")
uncached = native.library.__wrapped__
POLICIES = Path(native.__file__).resolve().parents[1]


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library of one function that gives 7, and an empty cache in `tmp_path / "xdg"`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("CC", raising=False)
    file = tmp_path / "seven.c"
    file.write_text("REAL NAME(seven)(void) { return 7; }\n", encoding="utf-8")
    return file


def gives_seven(library: ctypes.CDLL | None) -> bool:
    assert library is not None
    library.seven.restype = ctypes.c_float
    return bool(library.seven() == 7)


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "xdg" / "engram" / "native").iterdir())


def test_a_library_is_compiled_once(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gives_seven(uncached(source, torch.float32))
    (file,) = kept(tmp_path)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("compiled again"))
    assert gives_seven(uncached(source, torch.float32))
    assert kept(tmp_path) == [file]


def test_another_checkout_finds_it_compiled(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gives_seven(uncached(source, torch.float32))
    other = tmp_path / "other"
    shutil.copytree(native._HEADERS, other / "native")
    monkeypatch.setattr(native, "_HEADERS", other / "native")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("compiled again"))
    assert gives_seven(uncached(Path(shutil.copy(source, other)), torch.float32))
    header = next((other / "native").glob("*.h"))
    header.write_text(header.read_text() + "\n")
    with pytest.raises(pytest.fail.Exception, match="compiled again"):
        uncached(other / source.name, torch.float32)


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "flipped", "folder", "hole"])
def test_a_damaged_library_is_made_anew(source: Path, tmp_path: Path, damage: str) -> None:
    """In a process of its own: a cut library that is mapped ends the process with SIGBUS."""
    assert gives_seven(uncached(source, torch.float32))
    (file,) = kept(tmp_path)
    whole = file.read_bytes()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    bad = {"cut": whole[:2000], "empty": b"", "garbage": b"\x7fELF" + bytes(5000), "flipped": bytes(changed)}
    file.unlink()
    if damage == "folder":
        (file / "inside").mkdir(parents=True)
    elif damage == "hole":  # what a file system may leave of a file that was renamed but never written
        file.write_bytes(bytes(len(whole)))
    else:
        file.write_bytes(bad[damage])
    process = os.fork()
    if not process:
        with contextlib.suppress(BaseException):
            os._exit(0 if gives_seven(uncached(source, torch.float32)) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    if damage != "folder":
        assert [path.read_bytes() for path in kept(tmp_path)] == [whole]


def test_several_processes_at_once_leave_one_library(source: Path, tmp_path: Path) -> None:
    assert gives_seven(uncached(source, torch.float32))
    (file,) = kept(tmp_path)
    whole = file.read_bytes()
    file.unlink()  # this process has it mapped
    file.write_bytes(whole[:3000])  # all find it damaged
    processes = []
    for _ in range(8):
        process = os.fork()
        if not process:
            with contextlib.suppress(BaseException), warnings.catch_warnings():
                warnings.simplefilter("error")
                os._exit(0 if gives_seven(uncached(source, torch.float32)) else 1)
            os._exit(2)
        processes.append(process)
    assert [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes] == [0] * 8
    assert gives_seven(uncached(source, torch.float32))
    assert [path.read_bytes() for path in kept(tmp_path)] == [whole]


@pytest.mark.parametrize("stands_in_the_way", ["no home", "a file", "read-only"])
def test_without_a_cache_a_library_lives_as_long_as_the_process(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stands_in_the_way: str
) -> None:
    native._temporary_folder.cache_clear()
    native._warn_not_cached.cache_clear()
    if stands_in_the_way == "no home":

        def home() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", home)
    elif stands_in_the_way == "a file":
        (tmp_path / "xdg").write_text("")
    else:
        folder = tmp_path / "xdg" / "engram" / "native"
        folder.mkdir(parents=True)
        folder.chmod(0o500)
        if os.access(folder, os.W_OK):
            pytest.skip("this user may write everywhere")
    with pytest.warns(UserWarning, match="compiled for this process only; set XDG_CACHE_HOME"):
        assert gives_seven(uncached(source, torch.float32))
    folder = Path(native._temporary_folder(os.getpid()).name)
    assert len(list(folder.iterdir())) == 1
    assert folder.stat().st_mode & 0o077 == 0  # nobody else may put a library there
    native._temporary_folder.cache_clear()


@pytest.mark.parametrize("wrapped", ["{cc} -O1", "env LC_ALL=C {cc}", "'{cc}'"])
def test_cc_may_hold_arguments(source: Path, monkeypatch: pytest.MonkeyPatch, wrapped: str) -> None:
    monkeypatch.setenv("CC", wrapped.format(cc=COMPILER))
    assert gives_seven(uncached(source, torch.float32))


@pytest.mark.parametrize(
    ("words", "message"),
    [("gcc 'unclosed", "CC is .*is not a command"), ("true", "cannot be compiled or loaded"), ("false", "status 1")],
)
def test_a_broken_cc_is_said_in_one_line(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, message: str
) -> None:
    monkeypatch.setenv("CC", words)
    with pytest.warns(UserWarning, match=message) as caught:
        assert uncached(source, torch.float32) is None
    assert "\n" not in str(caught[0].message)


def test_a_compiler_that_hangs_is_given_up(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tmp_path / "slow"
    slow.write_text(f"#!{sys.executable} -SE\nimport time; time.sleep(60)\n")
    slow.chmod(0o700)
    monkeypatch.setenv("CC", str(slow))
    monkeypatch.setattr(native, "_COMPILE_S", 0.1)
    with pytest.warns(UserWarning, match=r"did not compile seven\.c within"):
        assert uncached(source, torch.float32) is None


def test_what_a_killed_build_left_is_removed_later(source: Path, tmp_path: Path) -> None:
    old, new = (tmp_path / "xdg" / "engram" / "native" / name for name in (".build-old", ".build-new"))
    for folder in (old, new):
        (folder / "made.o").mkdir(parents=True)
    os.utime(old, (time.time() - 3600,) * 2)
    assert gives_seven(uncached(source, torch.float32))
    assert not old.exists()
    assert new.exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("file", sorted(POLICIES.rglob("*.c")), ids=lambda file: f"{file.parent.name}/{file.name}")
def test_every_loop_compiles(file: Path, dtype: torch.dtype) -> None:
    """Elsewhere a memory whose loop does not is only slower, and its tests are skipped."""
    assert native.library(file, dtype) is not None


def test_a_struct_is_read_from_its_c_file(tmp_path: Path) -> None:
    """Numbers, pointers and lists, in their order; C computes the same size."""
    file = tmp_path / "tape.c"
    file.write_text(
        f"#include <stdint.h>\n#define MAX_LAYERS {MAX_LAYERS}\n"
        "typedef struct { int x; } Other;\n"
        "typedef struct {\n"
        "    int64_t batch, size; /* B; n, even; and more */\n"
        "    double decay;\n"
        "    const uint8_t *starts;\n"
        "    REAL *w[MAX_LAYERS], *out;\n"
        "    int64_t sizes[MAX_LAYERS + 1];\n"
        "} Tape;\n"
        "int64_t NAME(size)(void) { return sizeof(Tape); }\n"
    )
    tape = struct(file)
    assert [name for name, *_ in tape._fields_] == ["batch", "size", "decay", "starts", "w", "out", "sizes"]
    filled = tape(2, 3, 0.5)
    assert (filled.batch, filled.decay, filled.out, len(filled.w)) == (2, 0.5, None, MAX_LAYERS)
    library = uncached(file, torch.float32)
    library.size.restype = ctypes.c_int64
    assert library.size() == ctypes.sizeof(tape)
