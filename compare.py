"""Compare trained runs: a table with intervals over seeds, curves, and whether the budgets are equal.

    python compare.py runs                                       # all runs of one environment below a folder
    python compare.py runs/a-0 runs/a-1 runs/b-0 --by memory     # or some, grouped by a setting or several
    python compare.py runs --threshold 0.9 --out comparison      # also Markdown, CSV and a picture of the curves
    python compare.py runs --leaderboard                         # of every environment, a ranking

docs/compare.md explains every column. Wrong input gets one line and exit code 2.
"""

import sys

try:
    from agents.comparison.command import main
except KeyboardInterrupt:  # Ctrl-C while torch is loaded
    sys.exit(130)

if __name__ == "__main__":
    main()
