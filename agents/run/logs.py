"""Logs of a run: `progress.csv` and TensorBoard, through SB3's logger."""

from __future__ import annotations

import csv
import io
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

from stable_baselines3.common.logger import KVWriter, Logger, TensorBoardOutputFormat, filter_excluded_keys
from torch.utils.tensorboard.writer import SummaryWriter

from agents.common.files import replace_file
from agents.scale import distributed

STEP, WALL = "time/total_timesteps", "time/wall"


def run_logger(folder: Path, resume_at: int | None = None) -> Logger:
    """A logger that writes to `folder`; on ranks other than 0 it writes nothing.

    Args:
        folder: created if missing.
        resume_at: the step from which a run is resumed. Earlier rows of `progress.csv` and points of curves are kept;
            later ones, which the run will write again, are deleted. None: a new run.

    Raises:
        ValueError: `progress.csv` is damaged.
    """
    if distributed.rank():
        return Logger(None, [])
    folder.mkdir(parents=True, exist_ok=True)
    _silence_writer_threads()
    table = Table(folder / "progress.csv", [] if resume_at is None else rows_up_to(folder, resume_at))
    return Logger(str(folder), [table, _Curves(str(folder), resume_at)])


def rows_up_to(folder: Path, resume_at: int) -> list[dict[str, str]]:
    """The rows of a run's `progress.csv` up to a step; none if the file does not exist.

    Raises:
        ValueError: the file is damaged.
    """
    file = folder / "progress.csv"
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is damaged: expected text in UTF-8; move it away to continue without it") from error
    rows = []
    whole = text[: text.rfind("\n") + 1]  # a killed run may have left half a row
    reader = csv.DictReader(io.StringIO(whole))
    if text and STEP not in (reader.fieldnames or ()):
        raise ValueError(f"{file} is damaged: it has no column {STEP}; move it away to continue without it")
    for number, row in enumerate(reader, start=2):
        step = row.get(STEP) or ""
        if not step.isdecimal():
            wrong = f"row {number} has {step!r} for {STEP}"
            raise ValueError(f"{file} is damaged: {wrong}; move it away to continue without it")
        if int(step) <= resume_at:
            rows.append({name: value for name, value in row.items() if name and value})
    return rows


def training_time_until(folder: Path, resume_at: int) -> float | None:
    """Training time of a run up to a step in seconds, over all resumes; None if its log does not tell."""
    rows = rows_up_to(folder, resume_at)
    try:
        return float(rows[-1][WALL])
    except (IndexError, KeyError, ValueError):  # moved away, or written by an older Engram
        return None


def ordered(columns: Iterable[str]) -> list[str]:
    """Columns of `progress.csv` in an order that is the same in every run: the step, then by group and name."""
    groups = ("rollout", "task", "train", "memory", "time")
    rank = {group: number for number, group in enumerate(groups)}
    return sorted(columns, key=lambda name: (name != STEP, rank.get(name.split("/")[0], len(rank)), name))


def write_scores(folder: Path, scores: Mapping[str, float], step: int) -> None:
    """Adds the final scores of a run to its TensorBoard, for the HPARAMS tab: `score/NAME`."""
    with SummaryWriter(str(folder)) as writer:
        for name, value in scores.items():
            writer.add_scalar(f"score/{name}", value, step)


class Table(KVWriter):
    """A CSV file that stays valid if the process is killed: rows are appended, a new column replaces the file
    atomically.

    Args:
        file: replaced atomically by `rows`.
        rows: initial rows.
    """

    def __init__(self, file: Path, rows: list[dict[str, str]]) -> None:
        self.file, self.columns = file, ordered({name for row in rows for name in row})
        self._stream: TextIO | None = None
        self._replace(rows)

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        row = filter_excluded_keys(key_values, key_excluded, "csv")
        if new := [name for name in row if name not in self.columns]:
            with open(self.file, newline="", encoding="utf-8") as stream:
                rows = list(csv.DictReader(stream))
            self.columns = ordered({*self.columns, *new})
            self._replace(rows)
        assert self._stream is not None
        self._stream.write(self._line(row))
        self._stream.flush()

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def _replace(self, rows: list[dict[str, str]]) -> None:
        self.close()
        header = {name: name for name in self.columns}
        lines = [self._line(row) for row in (header, *rows) if self.columns]
        replace_file(self.file, "".join(lines))
        self._stream = open(self.file, "a", newline="", encoding="utf-8")  # noqa: SIM115 - until `close`

    def _line(self, row: Mapping[str, Any]) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow([row.get(name) for name in self.columns])
        return text.getvalue()


def _silence_writer_threads() -> None:
    """Prints no traceback of TensorBoard's writer thread: the next write raises the same error in this thread."""
    if getattr(threading.excepthook, "silences_tensorboard", False):
        return
    shown = threading.excepthook

    def hook(error: threading.ExceptHookArgs) -> None:
        if not type(error.thread).__module__.startswith("tensorboard."):
            shown(error)

    hook.silences_tensorboard = True  # type: ignore[attr-defined]
    threading.excepthook = hook


class _Curves(TensorBoardOutputFormat):
    """SB3's TensorBoard writer, which also tells TensorBoard to drop points that a resumed run writes again."""

    def __init__(self, folder: str, resume_at: int | None) -> None:
        purge = None if resume_at is None else resume_at + 1
        self.writer = SummaryWriter(log_dir=folder, purge_step=purge)
        self._is_closed = False
