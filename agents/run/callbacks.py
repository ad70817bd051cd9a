"""SB3 callbacks of a command-line run: checkpoints, and TensorBoard's pictures and hyper-parameters."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Figure, HParam

from agents.checkpoint import prune
from agents.learner import MemoryOnPolicyAlgorithm
from agents.run.logs import WALL
from agents.scale import distributed
from agents.view.panels import PanelHistory, figure

_NOT_TENSORBOARD = ("stdout", "log", "json", "csv")


class CheckpointEvery(BaseCallback):
    """Saves a checkpoint at the start of an iteration once `seconds` have passed, and keeps the newest `keep`.

    At that point the last iteration is complete and its metrics were finite, so the checkpoint is valid, and a run
    resumed from it repeats exactly. Every rank needs this callback; rank 0 writes.

    Args:
        folder: checkpoints become its `step_N` sub-folders.
        seconds: time between checkpoints; the first is written at once.
        keep: number of checkpoints to keep.
    """

    def __init__(self, folder: Path, seconds: float = 30, keep: int = 3) -> None:
        super().__init__()
        self.folder, self.seconds, self.keep = folder, seconds, keep
        self.last: Path | None = None
        self._saved_at = float("-inf")

    def _on_rollout_start(self) -> None:
        if distributed.any_rank(time.monotonic() - self._saved_at >= self.seconds):  # clocks differ, and all must save
            self.save()

    def _on_training_end(self) -> None:
        self.save()

    def save(self) -> Path:
        """Writes a checkpoint now, between two iterations."""
        path = self.folder / f"step_{self.model.num_timesteps:012d}"
        self.model.save(path)
        self.last, self._saved_at = path, time.monotonic()
        if distributed.rank() == 0:
            prune(self.folder, self.keep)
        return path

    def _on_step(self) -> bool:
        return True


class WallClock(BaseCallback):
    """Logs the run's training time in seconds, over all resumes.

    Args:
        before: seconds before this process.
    """

    def __init__(self, before: float = 0.0) -> None:
        super().__init__()
        self.before = self.total = before

    def _on_training_start(self) -> None:
        self._started = time.perf_counter()
        _learner(self).before_dump = self._record  # after the update, which `_on_rollout_end` precedes

    def _record(self) -> None:
        self._update()
        self.logger.record(WALL, round(self.total, 2))

    def _on_training_end(self) -> None:
        self._update()

    def _update(self) -> None:
        self.total = self.before + time.perf_counter() - self._started

    def _on_step(self) -> bool:
        return True


class PicturePanels(BaseCallback):
    """Pictures of the first environment's memory for TensorBoard, over one rollout every `seconds`.

    The rollout before the first update and the last one are shown as well, to see what training changes. The pictures
    are called `view/NAME`, which TensorBoard lists after the curves.
    """

    def __init__(self, seconds: float = 60) -> None:
        super().__init__()
        self.seconds = seconds
        self._shown_at = float("-inf")
        self._history: PanelHistory | None = None

    def _on_rollout_start(self) -> None:
        model = _learner(self)
        last = model.num_timesteps + model.n_steps * model.all_envs >= model._total_timesteps
        due = last or time.monotonic() - self._shown_at >= self.seconds
        self._history = PanelHistory() if due else None
        if due:
            model.step_by_step = True

    def _on_step(self) -> bool:
        if self._history is not None:
            model = _learner(self)
            with torch.no_grad():
                self._history.add(model.policy.memory.panels(model.rollout_state.memory))
        return True

    def _on_rollout_end(self) -> None:
        if self._history is None:
            return
        self._shown_at = time.monotonic()
        for name, panel in self._history.panels().items():
            self.logger.record(f"view/{name}", Figure(figure(name, panel), close=True), exclude=_NOT_TENSORBOARD)
        self._history = None


class DescribeRun(BaseCallback):
    """Writes the main settings of the run and the state of the git checkout to TensorBoard.

    Args:
        config: all entries of the configuration, by name.
    """

    SHOWN = ("memory", "env", "algo", "recipe", "seed", "num_envs", "n_steps", "learning_rate")

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = {name: config[name] for name in self.SHOWN if config.get(name) is not None}

    def _on_training_start(self) -> None:
        settings = {name: v if isinstance(v, (int, float, str)) else str(v) for name, v in self.config.items()}
        settings["parameters"] = sum(each.numel() for each in self.model.policy.parameters())
        scores = {"score/mean_return": 0.0, **{f"score/{name}": 0.0 for name in _learner(self).tensor_env.metric_names}}
        self.logger.record("hparams", HParam(settings, scores), exclude=_NOT_TENSORBOARD)
        self.logger.record("run/git", git_state(), exclude=_NOT_TENSORBOARD)

    def _on_step(self) -> bool:
        return True


def _learner(callback: BaseCallback) -> MemoryOnPolicyAlgorithm:
    assert isinstance(callback.model, MemoryOnPolicyAlgorithm)
    return callback.model


def git_state() -> str:
    """The commit of this code's checkout, and whether it has changes; "unknown" outside a checkout."""
    here = Path(__file__).parent
    try:
        commit, changes = (
            subprocess.run(
                # the index stays as it is: a git that is killed by the timeout would leave its lock
                ["git", "--no-optional-locks", *words],
                cwd=here,
                capture_output=True,
                text=True,
                check=True,
                timeout=10,
            ).stdout
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain"])  # paths from the top of the checkout
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"commit {commit.strip()}" + (f", changed since:\n{changes}" if changes else "")
