"""A space file to vary, for the tests of sweeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

SPACE = """
fixed: {env: Engram/RepeatFirst-v0, memory: gru, total_timesteps: 100, vf_coef: 0.0, ent_coef: 0.0}
space: {learning_rate: {low: 0.0, high: 1.0}}
trials: 3
reports: 5
"""


def space_file(folder: Path, text: str = SPACE, **entries: Any) -> Path:
    """The text with entries replaced."""
    file = folder / "space.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(text) | entries, sort_keys=False), encoding="utf-8")
    return file
