"""A trained agent together with its run: the configuration, and the memoryless agent that was trained beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents import CheckpointError, MemoryOnPolicyAlgorithm, latest_checkpoint, load
from agents.checkpoint.learner import load_weights
from agents.common.arguments import read_arguments
from agents.common.invocation import command_for, quoted
from agents.run.config import Config
from agents.run.failures import CommandError
from agents.run.recipes import load_config
from policies.memories.registry import memory_class
from policies.policy import MemoryActorCriticPolicy


@dataclass
class LoadedAgent:
    """A trained agent and its run."""

    model: MemoryOnPolicyAlgorithm
    checkpoint: Path
    folder: Path | None
    """The run's folder; None for a checkpoint without a run."""
    config: Config

    @classmethod
    def open(cls, path: Path, device: str, memory_kwargs: Mapping[str, Any] | None = None) -> LoadedAgent:
        """The agent of a run's folder or a checkpoint.

        Args:
            path: of the folder or checkpoint.
            device: where the agent acts.
            memory_kwargs: arguments of the memory that replace those of the training.

        Raises:
            CommandError: there is no such path.
            CheckpointError: the checkpoint is missing or damaged, or does not fit the changed memory.
            ValueError: the run's `config.yaml` is wrong, or the memory does not take such an argument.
        """
        if not path.exists():
            raise CommandError(f"there is no {path}")
        checkpoint, place = latest_checkpoint(path), path.absolute()
        folders = (path, place.parent, place.parent.parent)  # RUN, RUN/identity, RUN/checkpoints/step_...
        folder = next((folder for folder in folders if (folder / "config.yaml").is_file()), None)
        config = Config(env="") if folder is None else load_config(folder / "config.yaml")
        model = load(checkpoint, device=device, **config.own_classes())
        if memory_kwargs:
            model.policy = _with_memory(model.policy, memory_kwargs).to(model.device)
            load_weights(model.policy, checkpoint)
        return cls(model, checkpoint, folder, config)

    @property
    def description(self) -> str:
        """Memory, learner and number of training steps, for titles."""
        steps = f"{self.model.num_timesteps:,} steps"
        return f"{self.model.policy.memory_name} · {type(self.model).__name__} · {steps}"

    def baseline(self, device: str) -> tuple[MemoryOnPolicyAlgorithm | None, str]:
        """The memoryless agent trained with this one; None, and a line that says why, if it was not saved.

        Raises:
            CommandError: its checkpoint is missing, damaged or does not fit.
        """
        missing = "identity (no memory): none was trained with this agent"
        if self.folder is None:  # saved from Python
            return None, missing
        missing += f"; {command_for('train')} --resume {quoted(self.folder)} --baseline trains one"
        if (self.folder / "identity").is_dir():
            try:
                checkpoint = latest_checkpoint(self.folder / "identity")
                return load(checkpoint, device=device, **self.config.own_classes()), ""
            except (CheckpointError, ValueError) as error:
                raise CommandError(f"the memoryless agent: {error}; --no-identity leaves it out") from error
        try:
            summary = json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))
            mean = float(summary["identity_mean_return"])
            return None, f"identity (no memory): {mean:.3f} from the run's summary.json; its agent was not saved"
        except (OSError, ValueError, KeyError, TypeError):
            return None, missing


def _with_memory(policy: MemoryActorCriticPolicy, changes: Mapping[str, Any]) -> MemoryActorCriticPolicy:
    """A new policy like `policy`, with some arguments of its memory changed."""
    kind = memory_class(policy.memory_name)
    changed = read_arguments(kind, changes, "memory_kwargs", ("input_size", "queries"), sizes=True)
    arguments = {**policy._get_constructor_parameters(), "memory_kwargs": {**policy.memory_kwargs, **changed}}
    try:
        return type(policy)(**arguments)
    except TypeError as error:  # arguments that the memory does not take
        raise ValueError(str(error)) from error
