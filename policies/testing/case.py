"""Helpers of the checks: building a memory, inputs, and errors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from policies.memories import make_memory
from policies.memories.contract import Memory, State, Unrolled
from policies.memories.time.unroll import unroll

BATCH, LENGTH = 3, 6


class ConformanceError(AssertionError):
    """The contract is violated."""


@dataclass(frozen=True)
class MemoryCase:
    """A memory to check: its arguments, and how well it must remember."""

    memory: str | type[Memory]
    """Its registered name, or its class."""
    options: dict[str, Any] = field(default_factory=dict)
    """Its arguments. Small sizes that all differ find most faults."""
    input_shape: tuple[int, ...] = (5,)
    """Shape of one input without the batch: `(F,)`, or `(C, L)` or `(C, H, W)` of a grid."""
    learner: dict[str, Any] = field(default_factory=dict)
    """Arguments for the learning check, if `options` are too small to learn with."""
    updates: int = 200
    """Parameter updates in the learning check."""
    floor: float = 0.9
    """Accuracy to reach at recalling the first of eight symbols; chance is 0.25."""
    ceiling: float = 1.0
    """Maximum accuracy; 0.4 for a memory that cannot remember."""

    @property
    def input_size(self) -> int | tuple[int, ...]:
        return self.input_shape[0] if len(self.input_shape) == 1 else self.input_shape

    def make(self, options: dict[str, Any], seed: int = 0) -> Memory:
        torch.manual_seed(seed)
        if isinstance(self.memory, str):
            return make_memory(self.memory, input_size=self.input_size, **options)
        cls: Any = self.memory
        memory = cls(self.input_size, **options)
        expect(isinstance(memory, Memory), f"{self.memory} is not a Memory")
        return memory  # type: ignore[no-any-return]

    def build(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> Memory:
        """The small memory in double precision, so that differences are not rounding errors."""
        return self.make(self.options, seed).to(dtype)

    def inputs(self, *sizes: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
        """Random inputs `[*sizes, *input_shape]`."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(*sizes, *self.input_shape, generator=generator, dtype=dtype)

    def used_state(self, memory: Memory, batch: int = BATCH) -> State:
        """The state after two steps."""
        with torch.no_grad():
            return unroll(memory, self.inputs(2, batch, seed=7), None, memory.initial_state(batch)).state


def differentiable(tensor: Tensor) -> bool:
    """Whether a tensor can have a gradient; a state may also hold integers and flags, such as a step counter."""
    return tensor.is_floating_point() or tensor.is_complex()


def expect(condition: bool | Tensor, message: str) -> None:
    """Raises a `ConformanceError` with `message` if `condition` is false."""
    if not condition:
        raise ConformanceError(message)


def expect_same(actual: dict[str, Tensor], expected: dict[str, Tensor], what: str) -> None:
    """Requires two sets of tensors to be equal up to rounding in double precision; `what` begins the error message."""
    only = sorted(actual.keys() ^ expected.keys())
    expect(not only, f"{what}: {', '.join(only)} {'is' if len(only) == 1 else 'are'} in only one of them")
    for key in expected:
        try:
            torch.testing.assert_close(actual[key], expected[key], rtol=1e-9, atol=1e-11)
        except AssertionError as error:
            raise ConformanceError(f"{what}: {key} differs: {' '.join(str(error).split())}") from None


def everything(result: Unrolled) -> dict[str, Tensor]:
    """All results of an unroll by name."""
    parts = {"outputs": result.outputs}
    parts |= {f"state {key}": value for key, value in result.state.items()}
    parts |= {f"loss {key}": value for key, value in result.losses.items()}
    if result.grids is not None:
        parts["grids"] = result.grids
    return parts
