"""Score a trained agent beside the memoryless one and a random one; watch it, record it, or play in its place.

    python evaluate.py runs/my-run                        # mean return ± 95 % interval, beside identity and random
    python evaluate.py runs/my-run --errors               # which answers of a supervised task are wrong
    python evaluate.py runs/my-run --watch                # a window: environment, observation, decision, memory
    python evaluate.py runs/my-run --video episode.mp4    # the same pictures without a screen; or .gif
    python evaluate.py --play --env Engram/TMaze-v0       # steer yourself, seeing what the agent would see

What is printed is also written to RUN/evaluation.json. Wrong input gets one line and exit code 2.
"""

import os
import sys

# Read when torch is loaded: threads that wait for each other spin for some microseconds, then give their core away.
if os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE") == "PASSIVE":
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")

try:
    from agents.evaluation.command import main
except KeyboardInterrupt:  # Ctrl-C while torch is loaded
    sys.exit(130)

if __name__ == "__main__":
    main()
