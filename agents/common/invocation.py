"""How to call the commands from the user's folder: as a script of the checkout, a console script, or a module."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from agents.scale import distributed

_MODULES = {"train": "agents.run", "evaluate": "agents.evaluation", "compare": "agents.comparison"}


def command_for(name: str) -> str:
    """The command line for `name` ("train", "evaluate" or "compare") from the current folder, in the form in which this
    process was called.

    >>> command_for("train").split()[-1] in ("train.py", "engram-train", "agents.run")
    True
    """
    called = Path(sys.argv[0])
    python = "python"
    if name == "train" and distributed.size() > 1:
        python = f"torchrun --nproc-per-node={distributed.size()}"
    script = called.with_name(f"{name}.py")
    if called.name not in {f"{command}.py" for command in _MODULES}:
        script = Path(f"{name}.py")
        if called.name.startswith("engram-") or not _ours(script):
            return _installed(name, python)
    short = os.path.relpath(script)
    return f"{python} {quoted(script if short.startswith('..') else short)}"


def quoted(path: str | os.PathLike[str]) -> str:
    """A path as one word of a command line."""
    return subprocess.list2cmdline([str(path)]) if os.name == "nt" else shlex.quote(str(path))


def _installed(name: str, python: str) -> str:
    """Without a checkout: the console script if it is on the path, else the module; torchrun always gets the module."""
    if python == "python" and shutil.which(f"engram-{name}"):
        return f"engram-{name}"
    return f"{python} -m {_MODULES[name]}"


def _ours(script: Path) -> bool:
    """Whether a script belongs to this checkout."""
    checkout = Path(__file__).resolve().parents[2]
    return script.resolve().parent == checkout and script.is_file()
