"""Action masks: which choices are valid, and distributions over valid choices only.

A mask has one flag per choice, `[N, n]` for `Discrete(n)`, `[N, sum(nvec)]` for `MultiDiscrete(nvec)` and `[N, 2 ·
bits]` for `MultiBinary` (for each bit: may it be 0, may it be 1). The layout is that of sb3-contrib's `MaskablePPO`.
Huang and Ontañón 2020, "A Closer Look at Invalid Action Masking in Policy Gradient Algorithms": the logits of invalid
choices are replaced, so their probability and their gradient are exactly 0.
"""

from __future__ import annotations

import math
import reprlib
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

FORBIDDEN = -1e8
"""Logit of an invalid choice: its probability is 0 in any precision used here, its log-probability is finite."""


def parts_of(space: spaces.Space[Any]) -> list[int]:
    """The number of choices of each part of an action.

    Raises:
        ValueError: the action space is continuous.
    """
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    if isinstance(space, spaces.MultiDiscrete):
        return [int(count) for count in space.nvec.flatten()]
    if isinstance(space, spaces.MultiBinary):
        return [2] * math.prod(space.shape)
    raise ValueError(f"action masks are for Discrete, MultiDiscrete and MultiBinary actions, not {space}")


def check_width(mask: Tensor, space: spaces.Space[Any]) -> None:
    """Checks that a batch of masks has one flag per choice; reads only its shape.

    Raises:
        ValueError: the shape is wrong, or the action space is continuous.
    """
    width = sum(parts_of(space))
    if mask.dim() != 2 or mask.shape[1] != width:
        raise ValueError(
            f"the action mask is {tuple(mask.shape)}, expected [num_envs, {width}]: one flag for each choice of {space}"
        )


def masked(logits: Tensor, mask: Tensor, space: spaces.Space[Any]) -> Tensor:
    """Logits `[B, ...]` of a distribution over `space` in which choices invalid by `mask` `[B, choices]` have
    probability 0."""
    mask = mask.bool()
    if not isinstance(space, spaces.MultiBinary):
        return logits.masked_fill(~mask, FORBIDDEN)
    off, on = mask.view(*logits.shape, 2).unbind(-1)  # one logit per bit: the log-odds of 1
    return logits.masked_fill(~off, -FORBIDDEN).masked_fill(~on, FORBIDDEN)


def without_choice(mask: Tensor, space: spaces.Space[Any]) -> Tensor:
    """Bool `[B]`: rows of `mask` without a valid choice for some part of the action."""
    parts = torch.split(mask.bool(), parts_of(space), -1)
    return torch.stack([~part.any(-1) for part in parts]).any(0)


def refuse_without_choice(count: float) -> None:
    """Raises an error for masks without a valid choice.

    Raises:
        ValueError: there are any.
    """
    if count:
        raise ValueError(
            f"the action mask allows no action at {count:g} observations: every mask, also those of "
            "agents that have nothing to do, must allow at least one choice for each part of the action"
        )


def as_masks(given: Any, space: spaces.Space[Any], rows: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Converts masks from the host to `[rows, choices]`.

    Args:
        given: an array with as many entries, or for each row a tuple with one mask per part of the action.
        space: of one action.
        rows: number of masks.

    Raises:
        ValueError: they do not fit `space`, contain other numbers than 0 and 1, or a row has no valid choice.
    """
    width = sum(parts_of(space))
    if isinstance(given, Tensor):
        given = given.cpu().numpy()
    expected = f"expected [{rows}, {width}]: a flag for each choice of {space}"
    try:
        if rows == 1 and len(given) != 1 and not isinstance(given, np.ndarray):
            given = [given]
        if isinstance(given, np.ndarray) and given.dtype != object:
            flat = given.reshape(rows, -1) if rows and given.size % rows == 0 else given
        else:
            flat = np.array([_flat(row) for row in given])
            flat = flat if len(flat) == rows else flat.reshape(rows, -1)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the action masks are {reprlib.repr(given)}, {expected}") from error
    if flat.shape != (rows, width):
        shape = np.shape(given)
        raise ValueError(f"the action masks are {shape}, {expected}")
    masks: np.ndarray[Any, np.dtype[np.bool_]] = flat.astype(bool)
    if (masks != flat).any():  # for example 0 and -inf, which would mean the opposite
        other = flat[masks != flat][0]
        raise ValueError(f"the action masks contain {other}, expected 1 for valid and 0 for invalid choices")
    starts = np.cumsum([0, *parts_of(space)[:-1]])
    allowed = np.logical_or.reduceat(masks, starts, axis=1).all(1)
    refuse_without_choice(int((~allowed).sum()))
    return masks


def _flat(row: Any) -> np.ndarray[Any, Any]:
    parts = row if isinstance(row, (tuple, list)) else [row]
    return np.concatenate([np.ravel(part) for part in parts])


def random_choices(mask: Tensor, space: spaces.Space[Any]) -> Tensor:
    """A uniformly random valid action for each row of `mask` `[B, choices]`: `[B, *action_shape]`, counted from 0."""
    parts = torch.split(mask.to(torch.float32), parts_of(space), -1)
    drawn = [(part / torch.empty_like(part).exponential_()).argmax(-1) for part in parts]
    assert space.shape is not None
    return torch.stack(drawn, -1).view(-1, *space.shape)
