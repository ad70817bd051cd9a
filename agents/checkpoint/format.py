"""The format of a checkpoint: a manifest with its own digest, and tensors whose digest is in the manifest.

`manifest.json` has the format version, library versions, constructor arguments, spaces and counters;
`tensors.safetensors` has parameters, optimiser, generators, environment, memory and statistics. Nothing is pickled and
no name from a file is imported, so loading an untrusted file runs none of its code.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of
from torch import Tensor

from agents.checkpoint.files import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    TENSORS,
    CheckpointError,
    Place,
    Source,
    hidden_path,
    physical_memory,
    remove,
    write,
)

FORMAT, FORMAT_VERSION = "engram-checkpoint", 2
"""Version 2 added the manifest's own digest, the tensors' types, and the description of the environment."""


def write_checkpoint(place: Place, manifest: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Writes a checkpoint at `place` atomically; an existing one is replaced. See `files.write`."""
    plain = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    content = bytes_of(plain)
    header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "tensors_sha256": hashlib.sha256(content).hexdigest(),
        "tensors": {name: [_kind(value), list(value.shape)] for name, value in plain.items()},
    }
    whole = header | json.loads(json.dumps(manifest, default=_plain))
    whole = {"digest": digest(whole)} | whole
    write(place, {TENSORS: content, MANIFEST: json.dumps(whole, indent=1).encode()})


def _plain(value: Any) -> Any:
    """A number of NumPy's, such as a user's count of steps, as Python's."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} of {type(value).__name__} cannot be written to a checkpoint")


def digest(manifest: dict[str, Any]) -> str:
    """SHA-256 of a manifest's entries except the digest itself; formatting and order do not matter."""
    rest = {name: value for name, value in manifest.items() if name != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_manifest(place: Place | Source) -> dict[str, Any]:
    """The manifest of a checkpoint.

    Raises:
        CheckpointError: it is missing, damaged, of another program, or of a newer version.
    """
    source = place if isinstance(place, Source) else Source(place)
    file = source.where(MANIFEST)
    try:
        manifest = json.loads(source.read(MANIFEST, MAX_MANIFEST_BYTES).decode())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"no checkpoint at {source.name}: expected the file {file}") from error
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise CheckpointError(f"{file} is damaged: expected a JSON manifest ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{file} is not an Engram manifest: expected format {FORMAT!r}")
    found = manifest.get("format_version")
    if type(found) is not int or not 1 <= found <= FORMAT_VERSION:
        raise CheckpointError(
            f"{file} has format version {found}, but this Engram reads up to {FORMAT_VERSION}: upgrade Engram"
        )
    if found > 1 and manifest.get("digest") != digest(manifest):
        raise CheckpointError(f"{file} is damaged: its digest does not match its entries")
    return manifest


def listed_shapes(manifest: dict[str, Any]) -> dict[str, list[int]]:
    """The tensors' shapes by name, from a manifest.

    Raises:
        ValueError: an entry is not a shape.
    """
    entries = manifest["tensors"]
    if not isinstance(entries, dict):
        raise ValueError(f"tensors is a {type(entries).__name__}, expected shapes by name")
    found = {}
    for name, entry in entries.items():
        shape = entry if manifest["format_version"] == 1 else (entry[1:2] or [None])[0] if entry else None
        if not isinstance(shape, list) or not all(type(size) is int and 0 <= size < 1 << 40 for size in shape):
            raise ValueError(f"the manifest lists {name!r} as {entry!r}, expected a type and a shape")
        found[name] = shape
    return found


def read_tensors(place: Place | Source, manifest: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a checkpoint, on the CPU.

    Raises:
        CheckpointError: the file is missing, or does not match the manifest.
    """
    source = place if isinstance(place, Source) else Source(place)
    file = source.where(TENSORS)
    try:
        sizes = listed_shapes(manifest)
        max_bytes = sum(8 * math.prod(shape) for shape in sizes.values()) + 512 * (len(sizes) + 8) + len(str(sizes))
        content = source.read(TENSORS, min(max_bytes, physical_memory()))
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} is missing: expected it beside {MANIFEST}") from error
    except (OSError, MemoryError) as error:
        raise CheckpointError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise CheckpointError(f"{source.where(MANIFEST)} is damaged: {error}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != manifest.get("tensors_sha256"):
        raise CheckpointError(
            f"{file} is damaged: expected sha256 {manifest.get('tensors_sha256')}, found {found}; take an older one"
        )
    try:
        tensors: dict[str, Tensor] = tensors_of(content)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{file} is damaged: expected safetensors ({' '.join(str(error).split())})") from error
    types = [entry[0] for entry in manifest["tensors"].values()] if manifest["format_version"] > 1 else None
    if shapes(tensors) != sizes or (types and [_kind(tensors[name]) for name in sizes] != types):
        raise CheckpointError(f"{file} is damaged: expected the tensors that {MANIFEST} lists; take an older one")
    # Cloned: kernels add in an order that depends on alignment; the place in the file must not change results.
    return {name: value.clone() for name, value in tensors.items()}


def shapes(tensors: dict[str, Tensor]) -> dict[str, list[int]]:
    """The shape of every tensor as a list."""
    return {name: list(value.shape) for name, value in tensors.items()}


def _kind(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


# -- the checkpoints of a run ------------------------------------------------------------------------------------------


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first, by the number in their names."""
    found = {}
    for path in folder.glob("step_*"):
        if path.name[5:].isdecimal() and (path / MANIFEST).is_file():
            found[int(path.name[5:])] = path
    for path in folder.glob(".step_*.old"):  # left by an interrupted replacement
        if path.name[6:-4].isdecimal() and (path / MANIFEST).is_file():
            found.setdefault(int(path.name[6:-4]), path.with_name(path.name[1:-4]))
    return [found[step] for step in sorted(found)]


def latest_checkpoint(folder: str | os.PathLike[str]) -> Path:
    """The newest checkpoint in a run's folder; `folder` itself if it is a checkpoint.

    Raises:
        CheckpointError: there is none.
    """
    folder = Path(folder)
    if (folder / MANIFEST).is_file() or (hidden_path(folder, "old") / MANIFEST).is_file() or folder.is_file():
        return folder
    found = checkpoints_in(folder / "checkpoints")
    if not found:
        raise CheckpointError(f"no checkpoint in {folder}: expected {folder / 'checkpoints' / 'step_*' / MANIFEST}")
    return found[-1]


def older_intact_checkpoint(path: Path) -> Path | None:
    """The newest intact checkpoint beside `path` of an earlier step; None if there is none."""
    if not path.name.startswith("step_"):
        return None
    for candidate in reversed(checkpoints_in(path.parent)):
        if candidate.name == path.name or int(candidate.name[5:]) > int(path.name[5:]):
            continue
        try:
            source = Source(candidate)
            read_tensors(source, read_manifest(source))
        except CheckpointError:
            continue
        return candidate
    return None


def prune(folder: Path, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints, and partial ones left by killed processes.

    Each is first renamed to a hidden name, so that a folder with a checkpoint's name is always complete.
    """
    for word in ("gone", "partial", "old"):
        for path in folder.glob(f".step_*.{word}"):
            remove(path)
    for path in sorted(folder.glob("step_*"))[:-keep]:
        try:
            remove(path.rename(hidden_path(path, "gone")))
        except OSError:
            continue  # not permitted, or already gone
