"""Train an agent with a memory: `python train.py`, or `python train.py --env CartPole-v1 --memory lstm --algo ppo`.

Without arguments, an MNM agent learns the invisible-goal maze on the CPU. `--help` explains every option, and
docs/metrics.md every logged number. The code is in `agents/run`.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: threads that wait give their core away

from agents.run.command import main

if __name__ == "__main__":
    main()
