"""Checks whether a training iteration can be captured as a CUDA graph, and prepares the optimiser for it."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from agents.environments import HostEnv
from agents.sb3.training_env import TrainingEnv
from agents.scale import distributed
from agents.scale.cuda_graphs.buffers import hidden_tensors

MAX_GRAPHS = 8
"""Maximum number of graphs of one part of an iteration; each takes device memory for its kernels' arguments."""


def why_not_capturable(model: TrainingEnv) -> str | None:
    """Why the iterations of `model` cannot be captured, in one line; None if they can."""
    if model.device.type != "cuda":
        return f"the device is {model.device.type}: only CUDA has graphs"
    return why_not_capturable_on_any_device(model)


def why_not_capturable_on_any_device(model: TrainingEnv) -> str | None:
    """As `why_not_capturable`, without looking at the device."""
    env, memory = model.tensor_env, model.policy.memory
    if isinstance(env, HostEnv):
        return "the environments run on the host"
    if env.render_mode is not None:
        return f"render_mode is {env.render_mode!r}, with which an environment stores pictures on the host"
    if env.horizon is not None and (offsets := env.horizon // math.gcd(env.horizon, model.n_steps)) > MAX_GRAPHS:
        return (
            f"rollouts of {model.n_steps} steps begin at {offsets} different steps of the episodes of {env.horizon}, "
            f"and each would be a graph of its own, of which there may be {MAX_GRAPHS}: let one divide the other"
        )
    if distributed.size() > 1:
        return "several ranks train together, and their communication is not captured"
    hosts = (random.Random, np.random.Generator, np.random.RandomState)
    if drawing := [name for name, value in vars(env).items() if isinstance(value, hosts)]:
        return f"{type(env).__name__} draws random numbers on the host ({drawing[0]})"
    if hidden := hidden_tensors(env):
        return f"{type(env).__name__}.{hidden} holds tensors inside an object, where graphs do not find them"
    if not memory.static_shapes:
        return f"{type(memory).__name__} has static_shapes = False: its operations depend on data"
    if "capturable" not in model.policy.optimizer.defaults:
        return f"{type(model.policy.optimizer).__name__} has no option capturable"
    return None


def generators(model: TrainingEnv) -> Iterator[torch.Generator]:
    """Every random generator of the environments, the policy or its modules."""
    for owner in (model.tensor_env, *model.policy.modules()):
        yield from (value for value in vars(owner).values() if isinstance(value, torch.Generator))


def release_generators(model: TrainingEnv) -> None:
    """Makes generators usable again after a failed capture.

    Some versions of torch leave a generator in the mode of the capture, where each later draw raises "Offset increment
    outside graph capture encountered unexpectedly". A copy of its state does not have the mode.
    """
    default = torch.cuda.default_generators[torch.device(model.device).index or 0]
    for generator in (default, *generators(model)):
        generator.graphsafe_set_state(generator.clone_state())


def make_capturable(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Makes the optimiser keep its step counts and learning rate on the device."""
    for group in optimizer.param_groups:
        group["capturable"] = True
        if group.get("foreach", False) is None:  # without foreach, some optimisers read the rate on the host
            group["foreach"] = not group.get("fused")
        if not isinstance(group["lr"], Tensor):
            group["lr"] = torch.tensor(group["lr"], dtype=torch.float32, device=device)
    for state in optimizer.state.values():
        if "step" in state:
            state["step"] = torch.as_tensor(state["step"], dtype=torch.float32).to(device)
