"""`python agents/sweep/child.py PARENT SCRIPT ...` runs `python SCRIPT ...` and stops it when the process PARENT ends.

SCRIPT may also be a module name. When the parent ends, the script gets the signal that makes a training write a
checkpoint and stop. Otherwise the runs of a killed sweep would continue in folders that the next command uses.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

LOOK_S = 1.0


def watch(parent: int) -> None:
    """Waits until the parent has ended, then ends this process."""
    while os.getppid() == parent:
        time.sleep(LOOK_S)
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """See the module's docstring."""
    _, parent, script, *arguments = sys.argv
    is_file = script.endswith(".py")
    above = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # where `agents` is
    sys.path[0] = os.path.dirname(os.path.abspath(script)) if is_file else above
    sys.argv = [script, *arguments]
    if os.name == "posix":  # elsewhere getppid keeps the number of a parent that has ended
        threading.Thread(target=watch, args=(int(parent),), daemon=True).start()
    if is_file:
        runpy.run_path(script, run_name="__main__")
    else:
        runpy.run_module(script, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
