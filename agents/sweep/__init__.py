"""Sweeps: hyper-parameters searched over seeds, by Optuna. `python train.py --sweep SPACE.yaml`; see docs/sweep.md.

`space.py` and `space_file.py` define what is searched, `check.py` validates it, `study.py` stores the trials,
`trial.py` runs one, `launch.py` decides where, `driver.py` runs all, `report.py` and `plots.py` report the results.
Modules that need Optuna are imported only for a sweep.
"""

from agents.sweep.space import Parameter, Space
from agents.sweep.space_file import load_space

__all__ = ["Parameter", "Space", "load_space"]
