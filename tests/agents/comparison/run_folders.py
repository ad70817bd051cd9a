"""Run folders without a training: what `train.py` would have left, with numbers of the test's own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agents.run.config import Config


def make_run(
    folder: Path,
    memory: str = "gru",
    seed: int = 0,
    score: float | None = 1.0,
    curve: Sequence[float] = (0.0, 1.0),
    steps: int = 1000,
    seconds: float = 60.0,
    metrics: dict[str, float] | None = None,
    **entries: Any,
) -> Path:
    """A run whose return (or its task's metrics) went along `curve`, at equal distances up to `steps`.

    Without a score it is not complete.
    """
    folder.mkdir(parents=True)
    env = {"env": "Engram/RepeatFirst-v0", **entries}
    given = {"memory": memory, "seed": seed, "total_timesteps": steps, "run_dir": folder, **env}
    Config.of(given).save(folder / "config.yaml")
    columns = [f"task/{name}" for name in metrics or ()]
    lines = [",".join(["time/total_timesteps", "time/wall", "rollout/episodes", "rollout/ep_rew_mean", *columns])]
    for number, value in enumerate(curve, start=1):
        share = number / len(curve)
        cells = [round(share * steps), share * seconds, round(share * steps) // 10, value, *[value] * len(columns)]
        lines.append(",".join(map(str, cells)))
    (folder / "progress.csv").write_text("\n".join(lines) + "\n")
    if score is not None:
        summary = {"mean_return": score, "metrics": metrics or {}, "env_steps": steps}
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def make_runs(folder: Path, memory: str, scores: Sequence[float], **entries: Any) -> list[Path]:
    """One run a score, with seeds 0, 1, 2, ..."""
    return [make_run(folder / f"{memory}-{n}", memory, n, score, **entries) for n, score in enumerate(scores)]
