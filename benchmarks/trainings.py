"""Trainings of a benchmark through `train.py`: a run that is there is used again only if it is the same training."""

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
from agents.run.config import load_config
from agents.run.parsing import parse

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Training:
    """One command of `train.py`."""

    folder: Path
    """Of the run."""
    words: tuple[str, ...]
    """Its arguments, without the folder."""

    @property
    def complete(self) -> bool:
        """Whether the run is there, with its score.

        Raises:
            SystemExit: the folder holds another training.
        """
        file = self.folder / "config.yaml"
        if not file.is_file():
            return False
        config, _ = parse([*self.words, "--run-dir", str(self.folder)])
        if found := changes(load_config(file).entries(), config.entries()):
            said = ", ".join(f"{name} is {there} and not {wanted}" for name, (there, wanted) in [*found.items()][:3])
            raise SystemExit(f"error: {self.folder} holds another training ({said}): name another --runs folder")
        return (self.folder / "summary.json").exists()

    def train(self) -> None:
        """Train it, unless it is complete; one that was stopped goes on."""
        if self.complete:
            print(f"there already: {self.folder}", flush=True)
            return
        begun = any(self.folder.glob("checkpoints/step_*"))
        words = ["--resume", str(self.folder)] if begun else [*self.words, "--run-dir", str(self.folder)]
        command = [sys.executable, str(ROOT / "train.py"), *words, "--no-progress"]
        print(f"{'going on' if begun else 'training'}: {self.folder}", flush=True)
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stderr}")


def train_all(trainings: Iterable[Training], jobs: int) -> None:
    """All of them, `jobs` at a time, one thread each; what holds another training is found before any begins.

    Raises:
        SystemExit: a folder holds another training, or a training failed.
    """
    trainings = list(trainings)
    for training in trainings:
        _ = training.complete
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(Training.train, trainings))
