"""The live lines of a training: bar, steps, time left, and the score of the task, at any width."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter

from agents.common.terminal import PLAIN_TEXT
from agents.evaluation.tables import unit_of
from agents.learner import MemoryOnPolicyAlgorithm

_LOWER_IS_BETTER = ("error", "wrong", "loss")


class RunDisplay(BaseCallback):
    """Two live lines on a terminal; otherwise (log file, CI) a plain line every `quiet_seconds`.

    The first line always has a bar, the steps done, the time left and the time elapsed. The second has the score, the
    best score, the speed and the shares of time; fields that do not fit are dropped from its end.

    Args:
        title: memory and learner.
        console: where to print.
        quiet_seconds: time between plain lines.
        before: seconds of training before this process.
    """

    def __init__(self, title: str, console: Console, quiet_seconds: float = 15, before: float = 0.0) -> None:
        super().__init__()
        self.title, self.console, self.quiet_seconds, self.before = title, console, quiet_seconds, before
        self.row = _LastRow()
        self._printed_at = self._started = time.monotonic()
        self._steps_at_start = 0
        self._mark: tuple[int, float] | None = None
        self._best: float | None = None
        self._live: Live | None = None

    def _on_training_start(self) -> None:
        self._started, self._steps_at_start = time.monotonic(), self._learner.num_timesteps
        self.logger.output_formats.append(self.row)
        if self.console.is_terminal:
            self._live = Live(get_renderable=self.lines, console=self.console, refresh_per_second=2)
            self._live.start()

    def _on_rollout_start(self) -> None:
        self._update_best()
        self._mark = self._learner.num_timesteps, time.monotonic()
        quiet = self._live is None and time.monotonic() - self._printed_at > self.quiet_seconds
        if quiet and self._learner.num_timesteps > self._steps_at_start:
            self._printed_at = time.monotonic()
            fields = [self.title, self.progress(), f"{self.left()} left", *self.status()]
            self.console.print(" · ".join(fields), **PLAIN_TEXT)

    def _on_training_end(self) -> None:
        self._update_best()
        self.stop()

    def stop(self) -> None:
        """Releases the terminal, also after an error."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def lines(self) -> RenderableType:
        """The live lines, at the console's width."""
        model = self._learner
        first = Table.grid(padding=(0, 1), expand=True)
        for ratio in (None, 1, None, None, None):
            first.add_column(ratio=ratio, no_wrap=True)
        bar = ProgressBar(total=max(model._total_timesteps, 1), completed=model.num_timesteps)
        first.add_row(
            Text(_cut(self.title, max(8, min(30, self.console.width - 62)))),
            bar,
            self.progress(),
            f"{self.left()} left",
            f"{format_duration(self.before + time.monotonic() - self._started)} elapsed",
        )
        return Group(first, Text("  " + fit_to_width(self.status(), self.console.width - 2), no_wrap=True, style="dim"))

    def progress(self) -> str:
        """Steps done of all, and the share in %."""
        done, total = self._learner.num_timesteps, max(self._learner._total_timesteps, 1)
        return f"{_short(done)}/{_short(total)} {100 * min(done, total) // total:3d}%"

    def left(self) -> str:
        """Time left, from the steps and the time of this process up to the last whole iteration.

        Steps of the current iteration are not counted, because the time for learning from them has not been spent yet.
        """
        model, now = self._learner, time.monotonic()
        steps, moment = self._mark or (0, now)
        if steps <= self._steps_at_start:  # the first iteration
            steps, moment = model.num_timesteps, now
        done = steps - self._steps_at_start
        if done <= 0:
            return "-:--:--"
        iteration = model.n_steps * model.all_envs
        missing = math.ceil(max(model._total_timesteps - steps, 0) / iteration) * iteration
        return format_duration(max(missing * (moment - self._started) / done - (now - moment), 0))

    def status(self) -> list[str]:
        """The fields of the second line, the most important first."""
        model = self._learner
        name, value = self.score()
        unit = unit_of(name)
        shown = "–" if value is None else f"{value:.2f}{unit}"
        self._update_best()
        best = [] if self._best is None else [f"best {self._best:.2f}{unit}"]
        speed = (model.num_timesteps - self._steps_at_start) / max(time.monotonic() - self._started, 1e-9)
        parts = [model.env_seconds, model.memory_seconds, model.learn_seconds]
        shares = "/".join(f"{100 * part / max(sum(parts), 1e-9):.0f}" for part in parts)
        return [f"{name} {shown}", *best, f"{speed:,.0f} steps/s", f"env/memory/learn {shares} %"]

    def score(self) -> tuple[str, float | None]:
        """The score of the task with its name: its own metric if answers are known, otherwise the return. None: not
        known yet."""
        model = self._learner
        names = model.tensor_env.metric_names
        if model.learns_from_targets and names:
            name = next((each for each in ("error", "f1") if each in names), names[0])
            return name, self.row.values.get(f"task/{name}")
        episodes: list[dict[str, Any]] = list(model.ep_info_buffer or ())
        return "return", sum(e["r"] for e in episodes) / len(episodes) if episodes else None

    def _update_best(self) -> None:
        name, value = self.score()
        if value is not None:
            better = min if name.split("_")[0] in _LOWER_IS_BETTER or name.endswith("error") else max
            self._best = value if self._best is None else better(self._best, value)

    @property
    def _learner(self) -> MemoryOnPolicyAlgorithm:
        assert isinstance(self.model, MemoryOnPolicyAlgorithm)
        return self.model

    def _on_step(self) -> bool:
        return True


class _LastRow(KVWriter):
    """Stores the numbers that were logged last, for display."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        self.values |= {name: float(each) for name, each in key_values.items() if isinstance(each, (int, float))}

    def close(self) -> None:
        pass


def fit_to_width(fields: Sequence[str], width: int) -> str:
    """As many fields as fit into `width` characters, the first ones first."""
    line = fields[0]
    for field in fields[1:]:
        if len(line) + 3 + len(field) > width:
            break
        line += f" · {field}"
    return line[:width]


def format_duration(seconds: float) -> str:
    """Hours, minutes and seconds: `1:02:03`; days in front where there are some."""
    days, rest = divmod(round(seconds), 86_400)
    time_of_day = f"{rest // 3600}:{rest // 60 % 60:02d}:{rest % 60:02d}"
    return f"{days}d {time_of_day}" if days else time_of_day


def _short(count: int) -> str:
    """1,234 as it is, 123k, 1.23M."""
    if count < 10_000:
        return f"{count:,}"
    return f"{count / 1000:.0f}k" if count < 1_000_000 else f"{count / 1_000_000:.2f}M"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(width - 1, 1)] + "…"
