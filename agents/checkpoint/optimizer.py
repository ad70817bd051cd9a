"""An optimiser's state in a checkpoint: tensors named `INDEX/ENTRY`, and the parameter groups in the manifest."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from agents.checkpoint.format import shapes


def load_optimizer(optimizer: torch.optim.Optimizer, groups: list[Any], tensors: dict[str, Tensor]) -> None:
    """Loads an optimiser's state, once a copy of the optimiser has made a step with it.

    A step with gradients of zero fails, or spoils the parameters, if a value is of a wrong type or range. Shapes are
    compared before, with those that the copy has by itself: torch's kernels do not check them.

    Raises:
        ValueError: the state belongs to another optimiser, or the step fails.
    """
    own = optimizer.state_dict()["param_groups"]
    if [(sorted(group), group["params"]) for group in own] != [(sorted(group), group["params"]) for group in groups]:
        raise ValueError(f"param_groups is {str(groups)[:120]}, expected entries as in {str(own)[:120]}")
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, entry = name.partition("/")
        state.setdefault(int(index), {})[entry] = value
    trial = copy.deepcopy(optimizer)
    try:
        _step(trial)
        expected = trial.state_dict()["state"]
        for number, entries in state.items():
            like = {name: value for name, value in expected[number].items() if isinstance(value, Tensor)}
            if shapes(entries) != shapes(like):
                raise ValueError(f"of parameter {number} it is {shapes(entries)}, expected {shapes(like)}")
        trial.load_state_dict({"param_groups": groups, "state": copy.deepcopy(state)})
        _step(trial)
    except Exception as error:
        raise ValueError(f"the optimiser's state is invalid: {' '.join(str(error).split())}") from error
    optimizer.load_state_dict({"param_groups": groups, "state": state})


def _step(optimizer: torch.optim.Optimizer) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    if not all(bool(torch.isfinite(parameter).all()) for parameter in parameters):
        raise ValueError("a step makes parameters infinite or NaN")


def plain_groups(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """An optimiser's parameter groups without the changes for CUDA graphs, so that any device can load them."""
    plain = [{name: v.item() if isinstance(v, Tensor) else v for name, v in group.items()} for group in groups]
    as_before = {"capturable": False, "foreach": None}
    return [group | (as_before if group.get("capturable") else {}) for group in plain]
