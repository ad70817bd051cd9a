"""`python tests/pretend_cuda SCRIPT ...` runs a script on the pretend device."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def main() -> None:
    """Runs the script that the command names."""
    sys.path[0] = str(TESTS)  # it was this folder
    del sys.argv[0]
    from pretend_cuda import PretendCuda

    sys.path[:0] = [str(TESTS.parent), str(Path(sys.argv[0]).resolve().parent)]
    with PretendCuda():
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
