"""Train an agent with a memory: `python train.py`, or `python train.py --env CartPole-v1 --memory lstm --algo ppo`.

Without arguments, an MNM agent learns the invisible-goal maze on the CPU. `--help` explains every option, and
docs/metrics.md every logged number. The code is in `agents/run`.
"""

import os
import sys

# Read when torch is loaded: threads that wait for each other spin for some microseconds, then give their core away.
if os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE") == "PASSIVE":
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")

try:
    from agents.run.command import main
except KeyboardInterrupt:  # Ctrl-C while torch is loaded
    sys.exit(130)

if __name__ == "__main__":
    main()
