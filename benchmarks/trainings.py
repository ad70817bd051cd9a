"""Runs the trainings of a benchmark through `train.py`, and reuses finished runs of the same training."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

from agents.comparison.settings import changes
from agents.run.parsing import parse
from agents.run.recipes import load_config

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Training:
    """One command of `train.py`."""

    folder: Path
    """The run's folder."""
    arguments: tuple[str, ...]
    """The arguments, without the folder."""

    @property
    def complete(self) -> bool:
        """Whether the run exists and has a score.

        Raises:
            SystemExit: the folder has another training.
        """
        file = self.folder / "config.yaml"
        if not file.is_file():
            return False
        config, _ = parse([*self.arguments, "--run-dir", str(self.folder)])
        if found := changes(load_config(file).entries(), config.entries()):
            texts = ", ".join(f"{name} is {value}, not {wanted}" for name, (value, wanted) in [*found.items()][:3])
            raise SystemExit(f"error: {self.folder} has another training ({texts}): choose another --runs folder")
        return (self.folder / "summary.json").exists()

    def train(self) -> None:
        """Trains, or continues a run that was stopped; does nothing if the run is complete."""
        if self.complete:
            print(f"complete: {self.folder}", flush=True)
            return
        started = any(self.folder.glob("checkpoints/step_*"))
        arguments = ["--resume", str(self.folder)] if started else [*self.arguments, "--run-dir", str(self.folder)]
        command = [sys.executable, str(ROOT / "train.py"), *arguments, "--no-progress"]
        print(f"{'continuing' if started else 'training'}: {self.folder}", flush=True)
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stderr}")


def train_all(trainings: Iterable[Training], jobs: int) -> None:
    """Runs all trainings, `jobs` at a time with one thread each. All folders are checked before the first starts.

    Raises:
        SystemExit: a folder has another training, or a training failed.
    """
    trainings = list(trainings)
    for training in trainings:
        _ = training.complete
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(Training.train, trainings))
