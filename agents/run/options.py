"""Command-line options by tyro, whose boxes of several lines become the one line of this project's errors."""

from __future__ import annotations

import io
import re
import sys
from contextlib import redirect_stderr
from typing import Any, TypeVar

import tyro

from agents.run.config import NUMBERS

T = TypeVar("T")
_RULE = re.compile(r"[─-]+")  # dashes where the terminal has no such characters
_OPTION = re.compile(r"(--[\w-]+)(?: [A-Z{\[].*|, --.*)?")  # not a line of a description that begins with one
_SHORTER = (
    (r"invalid choice ('.*') for argument '(.*)'\. Expected one of \((.*?),?\)\.", r"\2 is \1, expected one of \3"),
    (r"Missing value for argument '(.*)'\. .*", r"\1 has no value, expected one"),
    (r"Error parsing (\S+): no type matching (.*) could be instantiated from (\[.*?\])\..*", r"\1 is \3, expected \2"),
    (r"Error parsing (\S+): it is (.*)", r"\1 is \2"),
    (r"Error parsing (.*)", r"\1"),
)
"""Messages of tyro as patterns, and as they are said here."""


def read_options(kind: type[T], arguments: list[str], **options: Any) -> T:
    """`tyro.cli(kind, args=arguments, **options)`.

    Raises:
        ValueError: an option or a value is wrong.
        SystemExit: the help was shown.
    """
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            found: T = tyro.cli(kind, args=arguments, registry=NUMBERS, **options)
    except SystemExit as end:
        if not end.code:
            raise
        raise ValueError(one_line(said.getvalue())) from None
    sys.stderr.write(said.getvalue())  # warnings
    return found


def one_line(box: str) -> str:
    """The message of a box that tyro prints, and the options that it suggests; any other text on one line."""
    parts: list[list[str]] = [[]]
    for line in box.splitlines():
        words = line.strip("│ ")
        if _RULE.fullmatch(words):
            parts.append([])
        elif words and words[0] not in "╭╰":
            parts[-1].append(words)
    if "│" not in box and len(parts) > 1:  # without such characters the title is a line of its own
        del parts[0]
    message = " ".join(parts[0])
    near = sorted({option[1] for part in parts[1:] for words in part if (option := _OPTION.fullmatch(words))})
    suggested = f"did you mean {' or '.join(near)}?" if near else "--help lists all options"
    unknown = message.removeprefix("Unrecognized options: ")
    if unknown != message:
        return f"unknown: {unknown.replace(', ', ' ')}; {suggested}"
    for pattern, shorter in _SHORTER:
        if re.fullmatch(pattern, message):
            return re.sub(pattern, shorter, message)
    return message
