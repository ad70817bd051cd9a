"""Finds a checkpoint, compares its shapes with the learner's, and reports errors in one line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from agents.checkpoint.files import MANIFEST, CheckpointError, Place, Source, hidden_path
from agents.checkpoint.format import latest_checkpoint, listed_shapes, older_intact_checkpoint
from agents.checkpoint.restore import with_prefix
from agents.sb3.training_env import TrainingEnv
from policies.memories import memory_class


def shape_differences(saved: dict[str, list[int]], policy: nn.Module, ignored: str = "/") -> str:
    """How the shapes in a checkpoint differ from a policy's; empty if they are equal.

    Args:
        saved: shapes by name, from the checkpoint.
        policy: to compare with.
        ignored: names with this prefix are not compared.
    """
    expected = {name: list(value.shape) for name, value in policy.state_dict().items()}
    names = sorted(name for name in {*expected, *saved} if not name.startswith(ignored))
    if not (differ := [name for name in names if expected.get(name) != saved.get(name)]):
        return ""
    name = differ[0]
    return f"{len(differ)} differ; {name} is {saved.get(name, 'missing')}, expected {expected.get(name, 'none')}"


def compare_sizes(model: TrainingEnv, manifest: dict[str, Any]) -> None:
    """Compares the tensors that the manifest lists with those of its policy, before any memory is allocated.

    The policy is built on torch's meta device, whose tensors have shapes and no data.

    Raises:
        ValueError: a shape differs, or the policy has many more parameters than the manifest lists.
    """
    saved = with_prefix(listed_shapes(manifest), "policy/")
    count = 0

    def count_parameter(*_: Any) -> None:
        nonlocal count
        count += 1
        if count > len(saved) + 64:
            raise ValueError(f"the policy has more than the {len(saved)} parameters that the manifest lists")

    hook = nn.modules.module.register_module_parameter_registration_hook(count_parameter)
    kwargs = model.policy_arguments | {"optimizer_class": torch.optim.SGD, "optimizer_kwargs": {}}
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            policy = model.policy_class(model.observation_space, model.action_space, lambda _: 0.0, **kwargs)
    except Exception:
        if count <= len(saved) + 64 and not _is_built_in(model):
            return  # a user's class may fail on the meta device
        raise
    finally:
        hook.remove()
    if differs := shape_differences(saved, policy):
        raise ValueError(f"size mismatch: {differs}")


def _is_built_in(model: TrainingEnv) -> bool:
    """Whether all classes of the policy belong to this project, Stable-Baselines3 or PyTorch."""
    kwargs = model.policy_kwargs
    classes = [model.policy_class, memory_class(kwargs.get("memory", "lstm"))]
    classes += [value for value in kwargs.values() if isinstance(value, type)]
    return all(kind.__module__.split(".")[0] in ("policies", "stable_baselines3", "torch") for kind in classes)


@contextmanager
def open_checkpoint(place: Place | Source) -> Iterator[Source]:
    """Context manager that opens the checkpoint at `place`. If it is damaged, the error names an older intact one.

    Raises:
        CheckpointError: it is missing or damaged.
        TypeError: `place` is neither a path nor a binary file object.
    """
    path = place.path if isinstance(place, Source) else place
    try:
        yield place if isinstance(place, Source) else Source(_newest(place))
    except CheckpointError as error:
        older = older_intact_checkpoint(_newest(Path(path))) if isinstance(path, (str, os.PathLike)) else None
        if older is None:
            raise
        raise CheckpointError(f"{error}; {older} is older and intact") from error


def _newest(place: Place) -> Any:
    """`place`; of a run's folder, its newest checkpoint."""
    if isinstance(place, (str, os.PathLike)):
        path = Path(place)
        is_run = (path / "checkpoints").is_dir() and not (path / MANIFEST).exists()
        return latest_checkpoint(path) if is_run and not hidden_path(path, "old").exists() else path
    return place


@contextmanager
def checkpoint_errors(source: Source) -> Iterator[None]:
    """Context manager that turns any error caused by a file into a one-line `CheckpointError` with its name."""
    try:
        yield
    except CheckpointError:
        raise
    except KeyError as error:
        raise CheckpointError(f"{source.name} is incomplete: expected an entry {error}") from error
    except MemoryError as error:
        raise CheckpointError(f"{source.name} does not fit: it needs more memory than is available") from error
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        IndexError,
        NotImplementedError,
        RecursionError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise CheckpointError(f"{source.name} does not fit: {' '.join(str(error).split())}") from error
