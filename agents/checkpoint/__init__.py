"""Checkpoints: exact, safe and whole.

`files` is bytes, `format` what they mean, `saved` what a manifest may say, `opening` what is said of a wrong file,
`environment` what a state was taken from, `restore` how it comes back, `learner` what is saved, and built again.
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
from agents.checkpoint.learner import NewEpisodesWarning, how_it_differs, load, save, take_parameters, take_weights

__all__ = [
    "MANIFEST",
    "TENSORS",
    "CheckpointError",
    "NewEpisodesWarning",
    "digest",
    "how_it_differs",
    "latest_checkpoint",
    "load",
    "prune",
    "read_manifest",
    "read_tensors",
    "save",
    "take_parameters",
    "take_weights",
    "write_checkpoint",
]
