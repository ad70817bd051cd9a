"""`python -m agents.comparison` is `python compare.py`, wherever the package is installed."""

from agents.comparison.command import main

if __name__ == "__main__":
    main()
