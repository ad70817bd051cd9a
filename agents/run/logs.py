"""Where a run's numbers go: `progress.csv` and TensorBoard, through SB3's logger."""

from __future__ import annotations

import csv
from pathlib import Path

from stable_baselines3.common.logger import CSVOutputFormat, Logger, TensorBoardOutputFormat

from agents import distributed

STEP = "time/total_timesteps"


def run_logger(folder: Path, resume_at: int = 0) -> Logger:
    """A logger into `folder`; on ranks other than the first, one that writes nothing.

    Args:
        folder: made where it is not there.
        resume_at: the step a resumed run goes on from: earlier rows of `progress.csv` stay, later ones (which the run
            is about to write again) go.
    """
    if distributed.rank():
        return Logger(None, [])
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "progress.csv"
    rows: list[dict[str, str]] = []
    if resume_at and file.exists():
        with open(file, newline="", encoding="utf-8") as stream:
            rows = [row for row in csv.DictReader(stream) if row.get(STEP) and int(row[STEP]) <= resume_at]
    table = CSVOutputFormat(str(file))
    for row in rows:
        table.write({name: value for name, value in row.items() if value != ""}, {})
    return Logger(str(folder), [table, TensorBoardOutputFormat(str(folder))])
