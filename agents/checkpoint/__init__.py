"""Checkpoints: exact to resume from, safe to load, never half written.

`files` reads and writes bytes; `format` defines manifest and tensors; `saved` validates a manifest; `opening` finds
checkpoints and reports errors; `environment` describes the environment that a state belongs to; `learner` saves a
learner and builds one from a checkpoint; `restore` restores its state.
"""

from agents.checkpoint.files import MANIFEST, TENSORS, CheckpointError
from agents.checkpoint.format import (
    digest,
    latest_checkpoint,
    prune,
    read_manifest,
    read_tensors,
    write_checkpoint,
)
from agents.checkpoint.learner import NewEpisodesWarning, describe_env_change, load, load_parameters, load_weights, save

__all__ = [
    "MANIFEST",
    "TENSORS",
    "CheckpointError",
    "NewEpisodesWarning",
    "describe_env_change",
    "digest",
    "latest_checkpoint",
    "load",
    "load_parameters",
    "load_weights",
    "prune",
    "read_manifest",
    "read_tensors",
    "save",
    "write_checkpoint",
]
