"""`python -m agents.evaluation`: the same as `python evaluate.py`."""

from agents.evaluation.command import main

if __name__ == "__main__":
    main()
