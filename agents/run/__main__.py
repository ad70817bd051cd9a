"""`python -m agents.run`: the same as `python train.py`."""

from agents.run.command import main

if __name__ == "__main__":
    main()
