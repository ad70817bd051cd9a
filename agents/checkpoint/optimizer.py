"""An optimiser's state in a checkpoint: tensors named `INDEX/ENTRY`, and the parameter groups in the manifest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def take_optimizer(optimizer: torch.optim.Optimizer, groups: list[Any], tensors: dict[str, Tensor]) -> None:
    """Loads an optimiser's state.

    One step with gradients of zero is tried and undone, which fails or spoils the parameters if a value is of a wrong
    type, range or shape.

    Raises:
        ValueError: it belongs to another optimiser, or the step fails.
    """
    own = optimizer.state_dict()["param_groups"]
    if [(sorted(group), group["params"]) for group in own] != [(sorted(group), group["params"]) for group in groups]:
        raise ValueError(f"param_groups is {str(groups)[:120]}, expected entries as in {str(own)[:120]}")
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, entry = name.partition("/")
        state.setdefault(int(index), {})[entry] = value
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if len({frozenset(entries) for entries in state.values()}) > 1 or not state.keys() <= {*range(len(parameters))}:
        raise ValueError("the optimiser's state has other entries for some parameters than for others")
    before = [parameter.detach().clone() for parameter in parameters]
    trial = {index: {name: value.clone() for name, value in entries.items()} for index, entries in state.items()}
    optimizer.load_state_dict({"param_groups": groups, "state": trial})
    try:
        _step(optimizer, parameters)
    except Exception as error:
        raise ValueError(f"the optimiser's state is invalid: {' '.join(str(error).split())}") from error
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
    optimizer.load_state_dict({"param_groups": groups, "state": state})


def _step(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    if not all(bool(torch.isfinite(parameter).all()) for parameter in parameters):
        raise ValueError("a step makes parameters infinite or NaN")


def plain_groups(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """An optimiser's parameter groups without the changes for CUDA graphs, so that any device can load them."""
    plain = [{name: v.item() if isinstance(v, Tensor) else v for name, v in group.items()} for group in groups]
    as_before = {"capturable": False, "foreach": None}
    return [group | (as_before if group.get("capturable") else {}) for group in plain]
