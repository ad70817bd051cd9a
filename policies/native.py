"""C loops for CPUs: compiled when they are first used, kept between runs, and never needed.

For loops that torch's operations cannot do while their data is in the cache. Every one has a twin of torch operations,
which is used wherever there is no C compiler; `ENGRAM_NATIVE=0` in the environment chooses it everywhere.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

FLAGS = (
    *("-O3", "-march=native", "-std=gnu11", "-fPIC", "-shared", "-ffp-contract=fast"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math"),
)
"""What lets loops be vectorised. Not -ffast-math: a library linked with it makes the whole process flush small numbers
to zero."""

NAMES = {torch.float32: "float", torch.float64: "double"}


@functools.cache
def library(source: Path, dtype: torch.dtype) -> ctypes.CDLL | None:
    """`source`, compiled with REAL for `dtype`; None where that cannot be, which is said once."""
    if dtype not in NAMES:
        return None
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang")), None)
    if compiler is None:
        _say(f"no C compiler was found for {source.name}")
        return None
    command = [compiler, *FLAGS, f"-DREAL={NAMES[dtype]}", "-DNAME(x)=x"]
    parts = [source, *sorted(source.parent.glob("*.h"))]
    made_for = repr(([part.read_bytes() for part in parts], command, platform.machine(), _processor())).encode()
    file = _cache() / f"{source.stem}-{NAMES[dtype]}-{hashlib.sha256(made_for).hexdigest()[:16]}.so"
    try:
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=file.parent) as folder:  # several processes may be at it
                fresh = Path(folder) / "made.so"
                subprocess.run([*command, "-o", fresh, source, "-lm"], check=True, capture_output=True, text=True)
                fresh.replace(file)
        return ctypes.CDLL(str(file))
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or ["no message"]
        _say(f"{compiler} cannot compile {source.name}: {lines[-1]}")
    except OSError as error:
        _say(f"{source.name} cannot be compiled or loaded: {error}")
    return None


def off() -> bool:
    """Whether C loops are unwanted: by the user, or as somebody takes down torch's operations to repeat them."""
    watched = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0
    return watched or os.environ.get("ENGRAM_NATIVE", "1") == "0"


def shared_out(call: Callable[[int, int], Any], count: int) -> None:
    """`call(begin, end)` over `count` entries, by as many threads as torch has. ctypes lets them run at once."""
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


def _cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "engram" / "native"


def _processor() -> str:
    """What the processor can do; a home directory may be seen by several machines."""
    if sys.platform.startswith("linux"):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return platform.processor()


def _say(why: str) -> None:
    warnings.warn(f"{why}; torch's operations do the same more slowly", stacklevel=3)
