"""Checkpoints: exact, safe and whole. `format` is the files, `learner` what a learner keeps in them."""

from agents.checkpoint.format import (
    MANIFEST,
    TENSORS,
    CheckpointError,
    latest_checkpoint,
    read_manifest,
    read_tensors,
    write_checkpoint,
)
from agents.checkpoint.learner import Checkpointed, load, take_weights

__all__ = [
    "MANIFEST",
    "TENSORS",
    "CheckpointError",
    "Checkpointed",
    "latest_checkpoint",
    "load",
    "read_manifest",
    "read_tensors",
    "take_weights",
    "write_checkpoint",
]
