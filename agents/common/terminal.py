"""Terminal output that cannot end a training: unsupported characters become "?", and a closed pipe is ignored."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO, cast

from rich.console import Console

PLAIN_TEXT: dict[str, Any] = {"highlight": False, "soft_wrap": True, "markup": False, "emoji": False}
"""Print options for sentences: no markup, no wrapping."""


def replace_unprintable() -> None:
    """Makes standard output and error replace characters that their encoding lacks with "?"."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError, ValueError):  # closed, or full
                stream.reconfigure(errors="replace")


def make_console(stderr: bool = False, quiet: bool = False, report: bool = True) -> Console:
    """A console on standard output or error that goes silent once the pipe is closed.

    Args:
        stderr: on standard error.
        quiet: print nothing.
        report: say on standard error that standard output is closed; False for text that is only read, as by `head`.
    """
    stream: Any = sys.stderr if stderr else sys.stdout
    lost = _report_failure if report and not stderr else None
    return Console(file=cast(TextIO, _Output(stream, lost)), quiet=quiet or stream is None)


def _report_failure(error: Exception) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"standard output can no longer be written ({error}); continuing without it\n")


class _Output:
    """A stream that ignores writes after the first failed one."""

    def __init__(self, stream: TextIO, lost: Callable[[Exception], None] | None) -> None:
        self._stream, self._lost, self._gone = stream, lost, stream is None

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(lambda: self._stream.flush())

    def isatty(self) -> bool:
        return not self._gone and self._stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, act: Callable[[], object]) -> None:
        if self._gone:
            return
        try:
            act()
        except (OSError, ValueError) as error:
            self._gone = True
            with contextlib.suppress(OSError, ValueError, AttributeError):
                if self._stream.fileno() in (1, 2):  # flushing its buffer at exit would fail again
                    os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            if self._lost is not None:
                self._lost(error)
