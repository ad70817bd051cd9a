"""`python agents/sweep/child.py PARENT SCRIPT ...` is `python SCRIPT ...` that does not outlive the process PARENT.

SCRIPT may also be the name of a module. When the parent is gone, it gets the signal that has a training write a
checkpoint and stop. Otherwise a killed sweep would leave runs behind that go on in the folders of trials which the next
command takes up.
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
    """Wait until the parent is another one, and end this process then."""
    while os.getppid() == parent:
        time.sleep(LOOK_S)
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """See the top of this file."""
    _, parent, script, *arguments = sys.argv
    is_file = script.endswith(".py")
    above = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # where `agents` is
    sys.path[0] = os.path.dirname(os.path.abspath(script)) if is_file else above
    sys.argv = [script, *arguments]
    if os.name == "posix":  # elsewhere a process keeps the number of a parent that is gone
        threading.Thread(target=watch, args=(int(parent),), daemon=True).start()
    if is_file:
        runpy.run_path(script, run_name="__main__")
    else:
        runpy.run_module(script, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
