"""`python -m agents.evaluation` is `python evaluate.py`, wherever the package is installed."""

from agents.evaluation.command import main

if __name__ == "__main__":
    main()
