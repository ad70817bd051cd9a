"""Optional C loops for CPUs, compiled on first use and cached between runs.

They fuse operations whose intermediate tensors would not fit into the processor's cache. Every loop has a reference
implementation in torch, which is used without a C compiler, or if the environment variable `ENGRAM_NATIVE` is 0.

A cached library's name ends in the digest of its content, so that a damaged file is detected and compiled again. `CC`
is the compiler's command and may contain arguments (`ccache gcc`).
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
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

FLAGS = (
    *("-O3", "-march=native", "-std=gnu11", "-fPIC", "-shared", "-ffp-contract=fast"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math"),
)
"""Flags that allow vectorisation. Not -ffast-math: a library linked with it makes the whole process flush denormals to
zero."""

NAMES = {torch.float32: "float", torch.float64: "double"}

_HEADERS = Path(__file__).parent

_COMPILE_S = 300.0
"""Timeout of the compiler in seconds; build folders older than twice this are deleted."""


@functools.cache
def library(source: Path, dtype: torch.dtype) -> ctypes.CDLL | None:
    """Compiles `source` with REAL for `dtype`; None if that fails, with one warning."""
    if dtype not in NAMES:
        return None
    try:
        compiler = shlex.split(os.environ.get("CC", "")) or [*filter(shutil.which, ("cc", "gcc", "clang"))][:1]
    except ValueError as error:
        _warn(f"CC is {os.environ['CC']!r}, which is not a command: {error}")
        return None
    if not compiler:
        _warn(f"no C compiler was found for {source.name}")
        return None
    command = [*compiler, *FLAGS, f"-DREAL={NAMES[dtype]}", "-DNAME(x)=x"]
    message = f"{source.name}: no folder for compiled libraries is writable: set XDG_CACHE_HOME to one that is"
    try:
        parts = [source, *sorted(_HEADERS.glob("*.h")), *sorted(source.parent.glob("*.h"))]
        # what the headers contain, not where they are: checkouts and environments share the cache
        cache_key = repr(([part.read_bytes() for part in parts], command, platform.machine(), _processor())).encode()
        stem = f"{source.stem}-{NAMES[dtype]}-{hashlib.sha256(cache_key).hexdigest()[:16]}"
        for folder in _cache_folders():
            try:
                build = [*command, f"-I{_HEADERS}", str(source), "-lm"]
                loaded_library = _load_cached(folder, stem) or _build(folder, stem, build)
                if folder.name != "native":
                    _warn_not_cached(os.getpid())
                return loaded_library
            except (OSError, subprocess.SubprocessError) as error:  # a full disk, a folder from which nothing may run
                message = _message(error, source, shlex.join(compiler))
    except OSError as error:
        message = _message(error, source, shlex.join(compiler))
    _warn(message)
    return None


def _message(error: OSError | subprocess.SubprocessError, source: Path, compiler: str) -> str:
    """An error of a build in one line."""
    if isinstance(error, subprocess.CalledProcessError):
        lines = error.stderr.strip().splitlines() or [f"exit status {error.returncode}"]
        return f"{compiler} cannot compile {source.name}: {lines[-1]}"
    if isinstance(error, subprocess.TimeoutExpired):
        return f"{compiler} did not compile {source.name} within {_COMPILE_S:.0f} s"
    return f"{source.name} cannot be compiled or loaded: {error}"


def _cache_folders() -> Iterator[Path]:
    """Folders for libraries, best first: the cache, then a temporary folder of this process."""
    root = os.environ.get("XDG_CACHE_HOME")
    with contextlib.suppress(OSError, RuntimeError):  # nothing can be written; no HOME and no entry in passwd
        cache = (Path(root) if root else Path.home() / ".cache") / "engram" / "native"
        cache.mkdir(parents=True, exist_ok=True)
        yield cache
    with contextlib.suppress(OSError):
        yield Path(_temporary_folder(os.getpid()).name)


@functools.cache
def _temporary_folder(process: int) -> tempfile.TemporaryDirectory[str]:
    """A private temporary folder: files in a shared folder could be replaced by other users."""
    return tempfile.TemporaryDirectory(prefix="engram-native-", ignore_cleanup_errors=True)


@functools.cache
def _warn_not_cached(process: int) -> None:
    message = "no cache folder is writable: C loops are compiled for this process only"
    warnings.warn(f"{message}; set XDG_CACHE_HOME to keep them", stacklevel=4)


def _load_cached(folder: Path, stem: str) -> ctypes.CDLL | None:
    """The library of an earlier build, if intact; a damaged one is deleted."""
    for file in folder.glob(f"{stem}-*.so"):
        with contextlib.suppress(OSError):  # another process may have deleted it
            if file.is_file() and file.name == _name(stem, file.read_bytes()):
                return ctypes.CDLL(str(file))
            file.unlink()
    return None


def _build(folder: Path, stem: str, command: list[str]) -> ctypes.CDLL:
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
    with tempfile.TemporaryDirectory(dir=folder, prefix=".build-", ignore_cleanup_errors=True) as build_folder:
        built_file = Path(build_folder) / "made.so"
        subprocess.run(
            [*command, "-o", str(built_file)],
            check=True,
            timeout=_COMPILE_S,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
        )
        loaded = ctypes.CDLL(str(built_file))
        with contextlib.suppress(OSError):  # already loaded; without a cached copy the next run compiles again
            with open(built_file, "rb+") as file:
                content = file.read()
                os.fsync(file.fileno())
            built_file.replace(folder / _name(stem, content))
        return loaded


def _name(stem: str, content: bytes) -> str:
    return f"{stem}-{hashlib.sha256(content).hexdigest()[:16]}.so"


def disabled() -> bool:
    """Whether C loops are disabled: by the user, or while torch operations are traced."""
    watched = torch.compiler.is_compiling() or (torch._C._len_torch_dispatch_stack() > 0 and _traced())
    return watched or os.environ.get("ENGRAM_NATIVE", "1") == "0"


def _traced() -> bool:
    """Whether an active mode wants to see every operation; one that only counts allocations sets `allows_native`."""
    return not all(getattr(mode, "allows_native", False) for mode in _get_current_dispatch_mode_stack())


def parallel_for(call: Callable[[int, int], Any], count: int) -> None:
    """Runs `call(begin, end)` over `count` entries with as many threads as torch; ctypes releases the GIL."""
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


def _warn(message: str) -> None:
    warnings.warn(f"{message}; using torch's operations, which are slower", stacklevel=3)
