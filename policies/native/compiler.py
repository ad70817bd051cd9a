"""Optional C loops for CPUs, compiled on first use and cached between runs.

They fuse loops for which separate torch operations would miss the processor's cache. Every loop has a reference
implementation in torch, which is used without a C compiler, or if the environment variable `ENGRAM_NATIVE` is 0.

A cached library's name ends in the digest of its content, so that a damaged file is detected and compiled again. `CC`
names the compiler and may hold arguments (`ccache gcc`).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

FLAGS = (
    *("-O3", "-march=native", "-std=gnu11", "-fPIC", "-shared", "-ffp-contract=fast"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math"),
)
"""Flags that allow vectorisation. Not -ffast-math: a library linked with it makes the whole process flush denormals to
zero."""

NAMES = {torch.float32: "float", torch.float64: "double"}

_HEADERS = Path(__file__).parent

_COMPILE_S = 300.0
"""Timeout of the compiler in seconds, and the age from which a build folder is a leftover."""


@functools.cache
def library(source: Path, dtype: torch.dtype) -> ctypes.CDLL | None:
    """Compiles `source` with REAL for `dtype`; None if that fails, with one warning."""
    if dtype not in NAMES:
        return None
    try:
        compiler = shlex.split(os.environ.get("CC", "")) or [*filter(shutil.which, ("cc", "gcc", "clang"))][:1]
    except ValueError as error:
        _say(f"CC is {os.environ['CC']!r}, which is not a command: {error}")
        return None
    if not compiler:
        _say(f"no C compiler was found for {source.name}")
        return None
    command = [*compiler, *FLAGS, f"-I{_HEADERS}", f"-DREAL={NAMES[dtype]}", "-DNAME(x)=x"]
    why = f"{source.name}: no folder for compiled libraries is writable: set XDG_CACHE_HOME to one that is"
    try:
        parts = [source, *sorted(_HEADERS.glob("*.h")), *sorted(source.parent.glob("*.h"))]
        made_for = repr(([part.read_bytes() for part in parts], command, platform.machine(), _processor())).encode()
        stem = f"{source.stem}-{NAMES[dtype]}-{hashlib.sha256(made_for).hexdigest()[:16]}"
        for folder in _folders():
            try:
                found = _kept(folder, stem) or _built(folder, stem, [*command, str(source), "-lm"])
                if folder.name != "native":
                    _say_not_kept(os.getpid())
                return found
            except (OSError, subprocess.SubprocessError) as error:  # a full disk, a folder from which nothing may run
                why = _why(error, source, shlex.join(compiler))
    except OSError as error:
        why = _why(error, source, shlex.join(compiler))
    _say(why)
    return None


def _why(error: OSError | subprocess.SubprocessError, source: Path, compiler: str) -> str:
    """An error of a build in one line."""
    if isinstance(error, subprocess.CalledProcessError):
        lines = error.stderr.strip().splitlines() or [f"exit status {error.returncode}"]
        return f"{compiler} cannot compile {source.name}: {lines[-1]}"
    if isinstance(error, subprocess.TimeoutExpired):
        return f"{compiler} did not compile {source.name} within {_COMPILE_S:.0f} s"
    return f"{source.name} cannot be compiled or loaded: {error}"


def _folders() -> Iterator[Path]:
    """Folders for libraries, best first: the cache, then a temporary folder of this process."""
    root = os.environ.get("XDG_CACHE_HOME")
    with contextlib.suppress(OSError, RuntimeError):  # nothing can be written; no HOME and no entry in passwd
        cache = (Path(root) if root else Path.home() / ".cache") / "engram" / "native"
        cache.mkdir(parents=True, exist_ok=True)
        yield cache
    with contextlib.suppress(OSError):
        yield Path(_own_folder(os.getpid()).name)


@functools.cache
def _own_folder(process: int) -> tempfile.TemporaryDirectory[str]:
    """A private temporary folder: files in a shared folder could be replaced by other users."""
    return tempfile.TemporaryDirectory(prefix="engram-native-", ignore_cleanup_errors=True)


@functools.cache
def _say_not_kept(process: int) -> None:
    why = "no cache folder is writable: C loops are compiled for this process only"
    warnings.warn(f"{why}; set XDG_CACHE_HOME to keep them", stacklevel=4)


def _kept(folder: Path, stem: str) -> ctypes.CDLL | None:
    """The library of an earlier build, if intact; a damaged one is deleted."""
    for file in folder.glob(f"{stem}-*.so"):
        with contextlib.suppress(OSError):  # another process may have deleted it
            if file.is_file() and file.name == _name(stem, file.read_bytes()):
                return ctypes.CDLL(str(file))
            file.unlink()
    return None


def _built(folder: Path, stem: str, command: list[str]) -> ctypes.CDLL:
    """Compiles the library and puts it into `folder`.

    It is loaded from the build folder, so that no other process can delete it in between.

    Raises:
        subprocess.SubprocessError: the compiler fails or hangs.
        OSError: there is no such compiler, no folder is writable, or the compiled library cannot be loaded.
    """
    for old in folder.glob(".build-*"):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > 2 * _COMPILE_S:
                shutil.rmtree(old, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".build-", ignore_cleanup_errors=True) as place:
        fresh = Path(place) / "made.so"
        subprocess.run(
            [*command, "-o", str(fresh)],
            check=True,
            timeout=_COMPILE_S,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
        )
        loaded = ctypes.CDLL(str(fresh))
        with contextlib.suppress(OSError):  # it is loaded; where it cannot be kept, that costs only time
            with open(fresh, "rb+") as file:
                content = file.read()
                os.fsync(file.fileno())
            fresh.replace(folder / _name(stem, content))
        return loaded


def _name(stem: str, content: bytes) -> str:
    return f"{stem}-{hashlib.sha256(content).hexdigest()[:16]}.so"


def off() -> bool:
    """Whether C loops are off: by the user, or while torch operations are being captured."""
    watched = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0
    return watched or os.environ.get("ENGRAM_NATIVE", "1") == "0"


def shared_out(call: Callable[[int, int], Any], count: int) -> None:
    """Runs `call(begin, end)` over `count` entries on torch's number of threads; ctypes releases the GIL."""
    threads = min(torch.get_num_threads(), count)
    if threads <= 1:
        call(0, count)
        return
    bounds = [count * part // threads for part in range(threads + 1)]
    others = [_pool(os.getpid()).submit(call, *bounds[part : part + 2]) for part in range(1, threads)]
    call(*bounds[:2])
    for other in others:
        other.result()


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads do not survive a fork, so each process has its own."""
    return ThreadPoolExecutor(max_workers=max(1, (os.cpu_count() or 1) - 1), thread_name_prefix="engram-native")


def _processor() -> str:
    """The processor's features; a home directory may be shared by several machines."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return platform.processor()


def _say(why: str) -> None:
    warnings.warn(f"{why}; using torch's operations, which are slower", stacklevel=3)
