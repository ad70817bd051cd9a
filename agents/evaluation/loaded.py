"""A trained agent together with its run: the configuration, and the memoryless agent that was trained beside it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from agents import MemoryOnPolicyAlgorithm, latest_checkpoint, load
from agents.common.invocation import command_for
from agents.run.config import Config
from agents.run.failures import CommandError
from agents.run.recipes import load_config


@dataclass
class LoadedAgent:
    """A trained agent and its run."""

    model: MemoryOnPolicyAlgorithm
    checkpoint: Path
    folder: Path | None
    """The run's folder; None for a checkpoint without a run."""
    config: Config

    @classmethod
    def open(cls, path: Path, device: str) -> LoadedAgent:
        """The agent of a run's folder or a checkpoint.

        Raises:
            CommandError: there is no such path.
            CheckpointError: the checkpoint is missing or damaged.
            ValueError: the run's `config.yaml` is wrong.
        """
        if not path.exists():
            raise CommandError(f"there is no {path}")
        checkpoint, place = latest_checkpoint(path), path.absolute()
        folders = (path, place.parent, place.parent.parent)  # RUN, RUN/identity, RUN/checkpoints/step_...
        folder = next((folder for folder in folders if (folder / "config.yaml").is_file()), None)
        config = Config(env="") if folder is None else load_config(folder / "config.yaml")
        return cls(load(checkpoint, device=device, **config.own_classes()), checkpoint, folder, config)

    @property
    def description(self) -> str:
        """Memory, learner and number of training steps, for titles."""
        steps = f"{self.model.num_timesteps:,} steps"
        return f"{self.model.policy.memory_name} · {type(self.model).__name__} · {steps}"

    def baseline(self, device: str) -> tuple[MemoryOnPolicyAlgorithm | None, str]:
        """The memoryless agent trained with this one; None, and a line that says why, if it was not saved.

        Raises:
            CheckpointError: its checkpoint is missing or damaged.
        """
        where = "RUN" if self.folder is None else self.folder
        missing = (
            "identity (no memory): none was trained with this agent; "
            f"{command_for('train')} --resume {where} --baseline trains one"
        )
        if self.folder is None:
            return None, missing
        if (self.folder / "identity").is_dir():
            return load(latest_checkpoint(self.folder / "identity"), device=device, **self.config.own_classes()), ""
        try:
            summary = json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))
            mean = float(summary["identity_mean_return"])
            return None, f"identity (no memory): {mean:.3f} from the run's summary.json; its agent was not saved"
        except (OSError, ValueError, KeyError, TypeError):
            return None, missing
