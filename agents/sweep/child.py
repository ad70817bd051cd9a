"""`python agents/sweep/child.py PARENT ...` runs `python train.py ...` and stops it when the process PARENT ends.

It then sends itself SIGTERM, which makes a training write a checkpoint and stop. Otherwise the runs of a killed sweep
would continue in folders that the next command uses.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

POLL_S = 1.0


def watch(parent: int) -> None:
    """Waits until the parent has ended, then ends this process."""
    while os.getppid() == parent:
        time.sleep(POLL_S)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # the folder that contains `agents`
    if os.name == "posix":  # on Windows getppid still returns the number of a parent that has ended
        threading.Thread(target=watch, args=(int(sys.argv[1]),), daemon=True).start()

    from agents.run.command import main

    main(sys.argv[2:])
