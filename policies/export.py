"""Exports one step of a policy with `torch.export`, as a file that runs without this project.

import torch

program = torch.export.load("step.pt2")
step = program.module()
(obs, state, starts), _ = program.example_inputs
result = step(obs, state, starts)  # action, logits (or mean), value, state
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from policies.action_masks import masked, parts_of
from policies.memories.contract import State
from policies.policy import MemoryActorCriticPolicy, Obs

FREE_EXAMPLE = 7
"""Batch size of the example inputs if any batch size is allowed; `torch.export` would make a size of 1 constant."""


class PolicyStep(nn.Module):
    """The exported module: encoder, memory and heads of a policy, with tensors in and out."""

    def __init__(self, policy: MemoryActorCriticPolicy) -> None:
        super().__init__()
        self.policy = policy
        self.numbers = "mean" if isinstance(policy.action_space, spaces.Box) else "logits"

    def forward(self, obs: Obs, state: State, starts: Tensor, mask: Tensor | None = None) -> dict[str, Any]:
        """One step.

        Args:
            obs: `[B, ...]`, of the space's type; images with channels first.
            state: as returned by the last step; any values of the right shape at the first.
            starts: bool `[B]`, true where `obs` is the first of its episode.
            mask: bool `[B, choices]`, if exported with masks.

        Returns:
            the greedy `action` `[B, *action_shape]`; `logits` of all choices after the mask (one per bit for
            `MultiBinary`), or the `mean` of a `Box`; `value` `[B]`; `state`.
        """
        policy = self.policy
        step = policy.remember(obs, state, starts)
        latent_pi = policy.mlp_extractor.forward_actor(step.output)
        numbers: Tensor = policy.action_net((latent_pi, step.grid) if policy.draws_maps else latent_pi)
        if mask is not None:
            numbers = masked(numbers, mask, policy.action_space)
        action = policy.actions.to_env(policy.act(step.output, True, step.grid, mask))
        return {"action": action, self.numbers: numbers, "value": policy.value(step.output), "state": step.state}


def export_step(
    policy: MemoryActorCriticPolicy, path: str | os.PathLike[str], batch_size: int | None = 1, masks: bool = False
) -> ExportedProgram:
    """Writes one step of a policy to `path` (`.pt2`), for the CPU.

    Args:
        policy: the policy; it is not changed.
        path: the output file; an existing file is replaced atomically.
        batch_size: B. None: any, which may differ between calls; the program's `example_inputs` then have
            `FREE_EXAMPLE` rows, of which a call may use the first.
        masks: whether the step takes a mask of valid choices.

    Raises:
        TypeError: `policy` is not a `MemoryActorCriticPolicy`; a learner is not accepted.
        ValueError: the memory's step cannot be exported (the message has `torch.export`'s reason), `batch_size` is
            below 1, or `masks` is true but actions are continuous.
    """
    if not isinstance(policy, MemoryActorCriticPolicy):
        raise TypeError(f"policy is of {type(policy).__name__}, expected a policy, such as model.policy")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected at least 1, or None for any")
    choices = sum(parts_of(policy.action_space)) if masks else 0
    any_size, batch_size = batch_size is None, FREE_EXAMPLE if batch_size is None else batch_size
    copied = copy.deepcopy(policy).cpu()
    copied.requires_grad_(False)
    copied.set_training_mode(False)
    space = copied.observation_space
    obs: Any
    if isinstance(space, spaces.Dict):
        obs = {name: _example(entry, batch_size) for name, entry in space.spaces.items()}
    else:
        obs = _example(space, batch_size)
    state = {name: value.contiguous().clone() for name, value in copied.initial_state(batch_size).items()}
    arguments: tuple[Any, ...] = obs, state, torch.ones(batch_size, dtype=torch.bool)
    if masks:
        arguments = *arguments, torch.ones(batch_size, choices, dtype=torch.bool)
    try:
        with torch.no_grad():
            PolicyStep(copied)(*arguments)  # caches that are filled at first use are not part of a step
            shapes = tuple(_free(argument, Dim("batch", min=1)) for argument in arguments) if any_size else None
            program = torch.export.export(PolicyStep(copied), arguments, dynamic_shapes=shapes)
    except Exception as error:  # torch.export raises many types
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"a step of {policy.memory_name} cannot be exported: {reason[0]}") from error
    staged = Path(f"{os.fspath(path)}.part{os.getpid()}.pt2")
    try:
        torch.export.save(program, staged)
        with open(staged, "rb") as file:
            os.fsync(file.fileno())
        os.replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)
    return program


def _free(argument: Obs, rows: Any) -> Any:
    """The `dynamic_shapes` entry of `torch.export` for an argument with a free first dimension."""
    return {name: {0: rows} for name in argument} if isinstance(argument, dict) else {0: rows}


def _example(space: spaces.Space[Any], batch_size: int) -> Tensor:
    """Example observations of `space`: its first symbols, or zeros."""
    first = getattr(space, "start", 0)
    return torch.as_tensor(np.broadcast_to(first, (batch_size, *(space.shape or ()))).astype(space.dtype))
