"""`python -m agents.run` is `python train.py`, wherever the package is installed."""

from agents.run.command import main

if __name__ == "__main__":
    main()
