"""What the files of the conformance suite share: a row of `CASES`, and how what a memory gives is compared."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from policies.memories.base import Unrolled

BATCH, LENGTH = 3, 6


@dataclass(frozen=True)
class Case:
    """How to build one memory small, and how well it must remember."""

    options: dict[str, Any] = field(default_factory=dict)
    input_shape: tuple[int, ...] = (5,)
    """Without the batch; `input_size` is the one number of a vector, or the shape of a grid."""
    learner: dict[str, Any] = field(default_factory=dict)
    """Options for the learning test, where `options` are too small to learn with."""
    updates: int = 200
    """Of the parameters in the learning test; fewer where a step costs much and fewer will do."""
    floor: float = 0.9
    """Accuracy to reach at recalling the first symbol; chance is 0.25."""
    ceiling: float = 1.0

    @property
    def input_size(self) -> int | tuple[int, ...]:
        return self.input_shape[0] if len(self.input_shape) == 1 else self.input_shape


def everything(result: Unrolled) -> dict[str, Tensor]:
    """All that an unroll gives, by name."""
    parts = {"outputs": result.outputs}
    parts |= {f"state {key}": value for key, value in result.state.items()}
    parts |= {f"loss {key}": value for key, value in result.losses.items()}
    if result.grids is not None:
        parts["grids"] = result.grids
    return parts


def weigh(parts: dict[str, Tensor]) -> Tensor:
    """One number in which every entry of every part has a weight of its own."""
    generator = torch.Generator().manual_seed(3)
    weighed = [(p * torch.randn(p.shape, generator=generator, dtype=p.dtype)).sum() for p in parts.values()]
    return torch.stack(weighed).sum()


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(
            actual[key], expected[key], rtol=1e-9, atol=1e-11, msg=lambda text, k=key: f"{k}: {text}"
        )
