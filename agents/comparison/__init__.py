"""Comparison of trained runs: tables and curves over seeds, with intervals, and whether their budgets are equal.

`command` is the entry of `python compare.py`. From Python: `Comparison.of(find_runs(["runs"]))`, then `write`.
"""

from agents.comparison.curves import Curve, SeedCurves
from agents.comparison.groups import Comparison, Group, GroupingError
from agents.comparison.runs import Run, find_runs

__all__ = ["Comparison", "Curve", "Group", "GroupingError", "Run", "SeedCurves", "find_runs"]
