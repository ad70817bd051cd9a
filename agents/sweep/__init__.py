"""Sweeps: hyper-parameters searched over seeds, by Optuna. `python train.py --sweep SPACE.yaml`; see docs/sweep.md.

`space.py` and `space_file.py` say what is searched, `check.py` whether it makes sense, `study.py` keeps the trials,
`trial.py` runs one of them, `launch.py` where, `driver.py` all of them, and `report.py` and `plots.py` say what came
out. What needs Optuna is imported where a sweep is asked for.
"""

from agents.sweep.space import Parameter, Space
from agents.sweep.space_file import load_space

__all__ = ["Parameter", "Space", "load_space"]
