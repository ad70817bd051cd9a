"""Train an agent with a memory: `python train.py`, or `python train.py --env CartPole-v1 --memory lstm --algo ppo`.

With no argument it runs the main job: an MNM agent learns the invisible-goal maze on the CPU. `--help` explains every
option; docs/metrics.md explains every number that is logged. The work is done in `agents/run`.
"""

from agents.run.command import main

if __name__ == "__main__":
    main()
