"""The memory contract: one step is a module, unrolling over time is a function, a fast form is a second class.

A memory is `initial_state` plus one step. Everything that persists is in its state, a dictionary of tensors with the
batch as dimension 0. Resets, carrying over, detaching, saving and minibatches are therefore implemented once for all
memories (`policies.memories.steps`, `policies.memories.time`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from policies.memories.steps import MemoryStep, Queries, State, Unrolled
from policies.memories.time.recording import Recording, ReplayedRecording
from policies.memories.time.unroll import unroll

__all__ = ["FastForm", "Memory", "MemoryStep", "Panel", "Recording", "State", "Unrolled"]


@dataclass(frozen=True)
class Panel:
    """One labelled picture of a memory, for the viewer and TensorBoard."""

    image: Tensor
    """`[H, W]`: shown through a colour map; `[H, W, 3]`: RGB in 0..1."""
    x_label: str = ""
    y_label: str = ""
    limits: tuple[float, float] | None = None
    """Values at the two ends of the colour map; None: the image's minimum and maximum."""
    over_time: Literal["columns", "similarity"] | None = None
    """How viewers show many steps in one picture. "columns": the flattened image of each step is one column.
    "similarity": cosine similarity between the upper half of the rows of one step and the lower half of another, for
    all pairs of steps. None: only the last step is shown."""
    about: str = ""
    """A description in one short line."""


class Memory(nn.Module):
    """Base class of every memory.

    A subclass sets `input_kind`, `output_size` and, if it also outputs a map, `output_grid`. It implements
    `initial_state` and `forward`, the equations. It may name a `FastForm`. Only `step`, `unroll` and `record` of this
    class choose between the equations and the fast form.
    """

    input_kind: ClassVar[Literal["vector", "grid", "either"]] = "vector"
    """The input from the encoder: "vector" `[B, F]`, "grid" `[B, C, L]` or `[B, C, H, W]`, "either" a grid if the
    observation is one, else a vector."""
    has_readers: ClassVar[bool] = False
    """Whether it has readers, to which alone the questions are passed; see `policies.memories.shared.readers`."""
    fast_form: ClassVar[type[FastForm] | None] = None
    """A faster implementation, or None."""
    static_shapes: bool = True
    """True if a step launches the same kernels for any input, so that it can be captured as a CUDA graph. Set it False
    if shapes or control flow depend on data."""
    output_size: int
    output_grid: tuple[int, int, int] | None = None
    fast: bool = True
    """Whether to use the fast form if there is one; see `use_fast_form`."""

    def __init__(self) -> None:
        super().__init__()
        # An empty buffer that has the module's device and dtype, also for modules without parameters.
        self.register_buffer("_anchor", torch.empty(0), persistent=False)
        self._fast_form = None if self.fast_form is None else self.fast_form(self)

    @property
    def device(self) -> torch.device:
        return self._buffers["_anchor"].device  # type: ignore[union-attr]

    @property
    def dtype(self) -> torch.dtype:
        return self._buffers["_anchor"].dtype  # type: ignore[union-attr]

    @classmethod
    def default_grid(cls, **kwargs: Any) -> tuple[int, ...]:
        """For `input_kind` "grid": the size `(L,)` or `(H, W)` of the grid that a flat observation is folded into.

        Args:
            kwargs: the memory's constructor arguments.
        """
        raise NotImplementedError

    def initial_state(self, batch_size: int) -> State:
        """State at the first step of an episode: `[batch_size, ...]`, possibly expanded views; never written to."""
        raise NotImplementedError(f"{type(self).__name__} has no initial_state(batch_size)")

    def zeros_state(self, batch_size: int, shapes: Mapping[str, tuple[int, ...]]) -> State:
        """Zeros `[batch_size, *shape]` for each of `shapes`, expanded views of one number."""
        zero = self.get_buffer("_anchor").new_zeros(())
        return {name: zero.expand(batch_size, *shape) for name, shape in shapes.items()}

    def forward(self, x: Tensor, state: State) -> MemoryStep:
        """One step, by the equations. `x`: `[B, F]`, or `[B, C, L]` / `[B, C, H, W]` for `input_kind` "grid"."""
        raise NotImplementedError(f"{type(self).__name__} has no forward(x, state)")

    def metrics(self, state: State) -> dict[str, Tensor]:
        """Numbers to log by name, each `[B]`, such as how full the memory is.

        It is called once per iteration, without gradients, on the state at the end of the rollout. The mean over the
        environments is logged as `memory/NAME`.
        """
        return {}

    def panels(self, state: State) -> dict[str, Panel]:
        """Named pictures of the state of the first batch entry."""
        return {}

    def use_fast_form(self, fast: bool) -> None:
        """Turns the fast forms of this memory and of memories inside it on or off (`--fast off`)."""
        for module in self.modules():
            if isinstance(module, Memory):
                module.fast = fast

    # -- the only place that chooses between the equations and the fast form ---------------------------------------

    def step(self, x: Tensor, state: State, *queries: Queries) -> MemoryStep:
        """One step, as `forward`; called by policies. `queries`: the questions, if the memory has readers."""
        compiled = self._compiled_call_impl is not None  # torch.compile was applied to `forward`
        if self._fast_form is None or not self.fast or compiled:
            step: MemoryStep = self(x, state, *queries)
            return step
        return self._fast_form.step(x, state, *queries)

    def unroll(
        self,
        xs: Tensor,
        starts: Tensor | None,
        state: State,
        resets: Sequence[int] | None = None,
        queries: Queries | None = None,
    ) -> Unrolled:
        """A sequence of steps; arguments and result as of the function `time.unroll.unroll`."""
        if starts is None or (resets is not None and not resets):
            starts, resets = None, ()
        form = self._fast_form if self.fast else None
        if form is None:
            return unroll(self, xs, starts, state, resets, queries)
        if form.fits(len(xs), resets, grad=torch.is_grad_enabled()):
            return form.unroll(xs, starts, state, resets, *(() if queries is None else (queries,)))
        return unroll(self, xs, starts, state, resets, queries, self.step)

    def record(self, state: State, expected_steps: int) -> Recording:
        """Starts a sequence whose steps run one by one and are differentiated later, as in A2C.

        Args:
            state: the state before the first step.
            expected_steps: estimated number of steps between two resets, for allocation.
        """
        form = self._fast_form if self.fast else None
        if form is not None and form.fits(expected_steps, () if expected_steps > 1 else None, grad=True):
            return form.record(state, expected_steps)
        return Recording(self, state)

    def use_bf16(self) -> bool:
        """Makes `unroll`, but not `step`, multiply in bfloat16; returns whether that is supported."""
        return self.fast and self._fast_form is not None and self._fast_form.use_bf16()


class FastForm:
    """A faster implementation of a memory: same arguments, same results and gradients up to rounding.

    A memory names its form in `fast_form`. A subclass overrides the methods that it makes faster, usually only
    `unroll`. Its constructor runs before that of the memory has finished, so it must not read the memory's attributes.
    The conformance suite compares every form with the equations, forward and backward, for any resets. Users turn it
    off with `--fast off` or `make_memory(name, ..., fast=False)`. For a memory with readers, `step` and `unroll` take
    the questions as last argument.

    Args:
        memory: the memory that it belongs to.
    """

    def __init__(self, memory: Memory) -> None:
        self.memory = memory

    def usable(self) -> bool:
        """Whether this form supports the memory's options on this machine."""
        return True

    def fits(self, length: int, resets: Sequence[int] | None, grad: bool) -> bool:
        """Whether to use `unroll` and `record`, by default if `usable`; if not, the memory runs by single `step`s.

        Args:
            length: steps of the sequence; for a recorded one, an estimate of the steps between two resets.
            resets: the steps at which an episode may start; None: any step.
            grad: whether the sequence will be differentiated.
        """
        return self.usable()

    def step(self, x: Tensor, state: State) -> MemoryStep:
        """One step; by default the memory's `forward`."""
        step: MemoryStep = self.memory(x, state)
        return step

    def unroll(self, xs: Tensor, starts: Tensor | None, state: State, resets: Sequence[int] | None) -> Unrolled:
        """A sequence of steps, with its graph if gradients are enabled.

        Args:
            xs: inputs, `[T, B, ...]`.
            starts: bool `[T, B]`; where true, the state is reset to `memory.initial_state` *before* that step. None:
                no episode starts here.
            state: the state before the first step.
            resets: the steps at which any entry of `starts` may be true, empty if `starts` is None; None: any step.
        """
        return unroll(self.memory, xs, starts, state, resets, step=self.step)

    def record(self, state: State, expected_steps: int) -> Recording:
        """As `Memory.record`. By default the steps run without a graph and one `unroll` replays them."""
        return ReplayedRecording(self.memory, state)

    def use_bf16(self) -> bool:
        """As `Memory.use_bf16`."""
        return False
