"""The files of a checkpoint: written whole, read with checks.

A checkpoint is a folder of two files: `manifest.json` (format version, library versions, constructor arguments, spaces,
counters) and `tensors.safetensors` (parameters, optimiser, generators, environment, memory, statistics). There is no
pickle in it and no name in it is imported, so loading a stranger's file runs none of its code. It is written beside its
place, flushed, and renamed: what bears the name is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

FORMAT, FORMAT_VERSION = "engram-checkpoint", 1
MANIFEST, TENSORS = "manifest.json", "tensors.safetensors"


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, damaged, of a newer version, or for another agent or environment."""


def write_checkpoint(path: str | os.PathLike[str], manifest: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    """Write a checkpoint folder at `path`, all or nothing; one that is there is replaced.

    Replacing takes two renames, as a folder cannot be renamed onto another; whoever dies between them leaves the old
    checkpoint in `.NAME.old`, where `read_manifest` finds it.
    """
    target = Path(path)
    staging, old = (target.with_name(f".{target.name}.{word}") for word in ("partial", "old"))
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    save_file({name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}, staging / TENSORS)
    header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "tensors_sha256": _digest(staging / TENSORS),
        "tensors": shapes(tensors),
    }
    with open(staging / MANIFEST, "w", encoding="utf-8") as file:
        json.dump({**header, **manifest}, file, indent=1)
    for name in (TENSORS, MANIFEST):
        with open(staging / name, "rb+") as file:
            os.fsync(file.fileno())
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    staging.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    return target


def _whole(path: str | os.PathLike[str]) -> Path:
    """The folder of a checkpoint: `path`, or what it was before a replacement that died half-way."""
    path = Path(path)
    old = path.with_name(f".{path.name}.old")
    return old if old.exists() and not path.exists() else path


def read_manifest(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of a checkpoint.

    Raises:
        CheckpointError: it is missing, damaged, not ours or newer than this version can read.
    """
    file = _whole(path) / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"no checkpoint at {path}: expected the file {file}") from error
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged: expected a JSON manifest ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{file} is not an Engram manifest: expected format {FORMAT!r}")
    found = manifest.get("format_version")
    if not isinstance(found, int) or found > FORMAT_VERSION:
        raise CheckpointError(
            f"{file} has format version {found}, this Engram reads up to {FORMAT_VERSION}: upgrade it"
        )
    return manifest


def read_tensors(path: str | os.PathLike[str], manifest: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a checkpoint, on the CPU.

    Raises:
        CheckpointError: the file is missing, or is not the one the manifest speaks of.
    """
    file = _whole(path) / TENSORS
    if not file.is_file():
        raise CheckpointError(f"{file} is missing: expected it beside {MANIFEST}")
    found = _digest(file)
    if found != manifest.get("tensors_sha256"):
        raise CheckpointError(
            f"{file} is damaged: expected sha256 {manifest.get('tensors_sha256')}, found {found}; take an older one"
        )
    try:
        # memory that is mapped from a file is aligned otherwise than torch's own, and sums come out in another order
        tensors: dict[str, Tensor] = {name: value.clone() for name, value in load_file(file).items()}
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{file} is damaged: expected safetensors ({error})") from error
    if shapes(tensors) != manifest.get("tensors"):
        raise CheckpointError(f"{file} is damaged: expected the tensors that {MANIFEST} lists; take an older one")
    return tensors


def latest_checkpoint(folder: str | os.PathLike[str]) -> Path:
    """The newest whole checkpoint in a run's folder; `folder` itself where it is one.

    Raises:
        CheckpointError: there is none.
    """
    folder = Path(folder)
    if (folder / MANIFEST).is_file():
        return folder
    steps = [
        file.parent for file in (folder / "checkpoints").glob(f"step_*/{MANIFEST}") if file.parent.name[5:].isdigit()
    ]
    if not steps:
        raise CheckpointError(f"no checkpoint in {folder}: expected {folder / 'checkpoints' / 'step_*' / MANIFEST}")
    return max(steps, key=lambda step: int(step.name[5:]))


def shapes(tensors: dict[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in tensors.items()}


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        for chunk in iter(lambda: stream.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()
