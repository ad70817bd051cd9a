"""Validates an optimiser's state from a checkpoint, and converts it for `load_state_dict`."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from agents.common.arguments import Fraction, NotNegative, check, read

_GROUP: dict[str, Any] = {
    "lr": NotNegative,
    "eps": NotNegative,
    "alpha": Fraction,
    "momentum": NotNegative,
    "momentum_decay": NotNegative,
    "weight_decay": float,
    "dampening": float,
    **dict.fromkeys(("amsgrad", "maximize", "nesterov", "centered", "differentiable", "capturable"), bool),
    "decoupled_weight_decay": bool,
    **dict.fromkeys(("fused", "foreach"), bool | None),
}


def restored(optimizer: torch.optim.Optimizer, groups: list[Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The argument of `optimizer.load_state_dict`, from a manifest's groups and tensors named `INDEX/ENTRY`.

    Raises:
        ValueError: it belongs to another optimiser, or a value has a wrong type, range or shape.
    """
    ours = optimizer.state_dict()["param_groups"]
    if len(groups) != len(ours):
        raise ValueError(f"the optimiser has {len(groups)} groups of parameters, expected {len(ours)}")
    for group, own in zip(groups, ours, strict=True):
        if not isinstance(group, dict) or set(group) != set(own):
            names = sorted(group) if isinstance(group, dict) else group
            raise ValueError(f"param_groups has {str(names)[:120]}, expected {sorted(own)}")
        if group["params"] != own["params"]:
            raise ValueError("param_groups lists other parameters than the policy has")
        check(_GROUP, **{name: group[name] for name in _GROUP if name in group})
        for name, value in own.items():
            if isinstance(value, (tuple, list)) and name != "params":  # betas
                read(name, group[name], tuple[(Fraction,) * len(value)])  # type: ignore[misc]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        place, _, key = name.partition("/")
        if not place.isdecimal():
            raise ValueError(f"the optimiser's tensor {name!r} does not belong to a parameter")
        state.setdefault(int(place), {})[key] = value
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    template = _template(optimizer, groups)
    for index, entries in state.items():
        if index >= len(parameters):
            raise ValueError(f"the optimiser has a state for parameter {index}, but there are {len(parameters)}")
        if template is not None:
            _fits(entries, template, parameters[index], index)
    return {"param_groups": groups, "state": state}


def plain_groups(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """An optimiser's parameter groups without the changes for CUDA graphs, so that any device can load them."""
    plain = [{name: v.item() if isinstance(v, Tensor) else v for name, v in group.items()} for group in groups]
    as_before = {"capturable": False, "foreach": None}
    return [group | (as_before if group.get("capturable") else {}) for group in plain]


def _fits(entries: dict[str, Tensor], template: dict[str, Tensor], parameter: Tensor, index: int) -> None:
    whose = f"of parameter {index}"
    if set(entries) != set(template):
        raise ValueError(f"the optimiser's state {whose} has {sorted(entries)}, expected {sorted(template)}")
    for name, example in template.items():
        value, expected = entries[name], parameter.shape if example.shape == _SHAPE else example.shape
        if value.shape != expected or value.dtype.is_complex:
            raise ValueError(f"the optimiser's {name} {whose} is {list(value.shape)}, expected {list(expected)}")
        if not bool(torch.isfinite(value).all()) or (name == "step" and float(value) < 0):
            raise ValueError(f"the optimiser's {name} {whose} has invalid values")


_SHAPE = torch.Size((2, 3))


def _template(optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]]) -> dict[str, Tensor] | None:
    """The state that such an optimiser keeps for a parameter, found by one step on a small parameter.

    None if it cannot be built for the test.
    """
    parameter = nn.Parameter(torch.zeros(_SHAPE))
    parameter.grad = torch.zeros(_SHAPE)
    options = {name: copy.copy(value) for name, value in groups[0].items() if name != "params"}
    small: Any
    try:
        small = type(optimizer)([parameter], lr=0.0)  # type: ignore[call-arg]
    except Exception:  # a class of the user's with other arguments
        return None
    small.param_groups[0].update(options)
    if small.param_groups[0].get("capturable"):
        small.param_groups[0]["capturable"] = False
    small.step()
    return {name: value for name, value in small.state[parameter].items() if isinstance(value, Tensor)}
