"""The folder of a run: where it is, what is in it, and how to go on with it."""

from __future__ import annotations

import os
import time
from pathlib import Path

from agents import CheckpointError, latest_checkpoint
from agents.invocation import command_for
from agents.run.config import Config


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint in a run's folder, None where there is none."""
    try:
        return latest_checkpoint(folder)
    except CheckpointError:
        return None


def folder_of(config: Config) -> Path:
    """Where a run goes: as it was told, else a name of its own."""
    if config.run_dir is None and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")):
        raise ValueError("torchrun --max-restarts was given without --run-dir, where a restart finds the checkpoint")
    parts = [config.env.split("/")[-1], config.memory, config.algo, str(config.seed), time.strftime("%Y%m%d-%H%M%S")]
    return config.run_dir or Path("runs") / "-".join(parts)


def again(folder: Path) -> str:
    """The command that goes on with a run."""
    return f"{command_for('train')} --resume {folder}"
