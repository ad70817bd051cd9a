"""The memory contract: one step is a module, time is a function, a faster way through time is a second class.

A memory is `initial_state` plus one step. Everything that persists is in its state, a dictionary of tensors whose
dimension 0 is the batch, so that resetting, carrying, detaching, saving and cutting minibatches are written once for
every memory (`policies.memories.steps`, `policies.memories.time`).
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
    """Values at the two ends of the colour map; None: the image's own minimum and maximum."""
    over_time: Literal["columns", "similarity"] | None = None
    """How viewers show many steps at once. "columns": the image of each step, flattened, becomes a column beside those
    of the steps before. "similarity": the upper half of the rows of one step is compared with the lower half of
    another, row by row, for every two steps. None: they show the last step alone."""
    about: str = ""
    """What it is, in one short line."""


class Memory(nn.Module):
    """Base class of every memory.

    A subclass sets `input_kind`, `output_size` and, where the output is a map as well, `output_grid`, and writes
    `initial_state` and `forward`, the equations. Where the same can be had faster it names a `FastForm`: `step`,
    `unroll` and `record` of this class choose between the two, and they alone.
    """

    input_kind: ClassVar[Literal["vector", "grid", "either"]] = "vector"
    """What the encoder must deliver: `[B, F]`, or `[B, C, L]` / `[B, C, H, W]`; "either": a grid where the observation
    is one, else a vector."""
    has_readers: ClassVar[bool] = False
    """Whether questions go to readers of its own; see `policies.memories.shared.readers`."""
    fast_form: ClassVar[type[FastForm] | None] = None
    """A faster way to do the same; None: there is none."""
    static_shapes: bool = True
    """True if a step launches the same kernels for any input, so that it can be captured as a CUDA graph. Set it False
    if shapes or control flow depend on data."""
    output_size: int
    output_grid: tuple[int, int, int] | None = None
    fast: bool = True
    """Whether the fast form is used, where there is one; see `use_fast_form`."""

    def __init__(self) -> None:
        super().__init__()
        # Empty, and only there to say which device and dtype the module lives on, parameters or none.
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
        """Where `input_kind` is "grid": `(L,)` or `(H, W)` of the grid that a flat observation is folded into.

        Args:
            kwargs: the arguments that the memory will be built with.
        """
        raise NotImplementedError

    def initial_state(self, batch_size: int) -> State:
        """State at the first step of an episode: `[batch_size, ...]`, possibly expanded views, never written to."""
        raise NotImplementedError

    def zeros_state(self, batch_size: int, shapes: Mapping[str, tuple[int, ...]]) -> State:
        """Zeros `[batch_size, *shape]` for each of `shapes`, expanded views of one number."""
        zero = self.get_buffer("_anchor").new_zeros(())
        return {name: zero.expand(batch_size, *shape) for name, shape in shapes.items()}

    def forward(self, x: Tensor, state: State) -> MemoryStep:
        """One step, by the equations. `x`: `[B, F]`, or `[B, C, L]` / `[B, C, H, W]` where `input_kind` is "grid"."""
        raise NotImplementedError

    def metrics(self, state: State) -> dict[str, Tensor]:
        """Numbers to log, by name, each of every batch entry, `[B]`: how full the memory is, say.

        A function of a state, so that no step pays for it: it is called once an iteration, without gradients, and the
        mean over the environments at the end of the rollout is logged as `memory/NAME`.
        """
        return {}

    def panels(self, state: State) -> dict[str, Panel]:
        """Named pictures of the state of the first batch entry."""
        return {}

    def use_fast_form(self, fast: bool) -> None:
        """Use the fast forms of this memory and of those inside it; False: the equations alone, as `--fast off`."""
        for module in self.modules():
            if isinstance(module, Memory):
                module.fast = fast

    # -- the only place that chooses between the equations and the fast form ---------------------------------------

    def step(self, x: Tensor, state: State, *queries: Queries) -> MemoryStep:
        """One step, as `forward`; what a policy calls. `queries`: the questions, where the memory has readers."""
        compiled = self._compiled_call_impl is not None  # by `torch.compile`, which took `forward`
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
        """A sequence of steps; arguments and result are those of the function `time.unroll.unroll`."""
        if starts is None or (resets is not None and not resets):
            starts, resets = None, ()
        form = self._fast_form if self.fast else None
        if form is None:
            return unroll(self, xs, starts, state, resets, queries)
        asked = () if queries is None else (queries,)
        if form.fits(len(xs), resets, grad=torch.is_grad_enabled()):
            return form.unroll(xs, starts, state, resets, *asked)
        return unroll(self, xs, starts, state, resets, queries, self.step)

    def record(self, state: State, room: int) -> Recording:
        """Begin a sequence that is stepped now and differentiated later, as A2C does.

        Args:
            state: before the first step.
            room: a guess of the steps between two resets, to make room for.
        """
        form = self._fast_form if self.fast else None
        if form is not None and form.fits(room, () if room > 1 else None, grad=True):
            return form.record(state, room)
        return Recording(self, state)

    def take_bf16(self) -> bool:
        """Multiply in bfloat16 in `unroll` from now on, and nowhere else; False: this memory cannot."""
        return self.fast and self._fast_form is not None and self._fast_form.take_bf16()


class FastForm:
    """A faster way to take the steps of a memory: same arguments, same results up to rounding, same gradients.

    A subclass is named by its memory's `fast_form` and overrides what can be had faster, most often `unroll` alone.
    Its `memory` is fully built only after this class's constructor has returned: keep nothing of it here. The
    conformance suite holds every form equal to the equations, forward and backward, whatever the resets; users turn it
    off by `--fast off` or `make_memory(name, ..., fast=False)`. The form of a memory with readers takes their questions
    as a last argument of `step` and `unroll`.

    Args:
        memory: the memory that it steps.
    """

    def __init__(self, memory: Memory) -> None:
        self.memory = memory

    def fits(self, length: int, resets: Sequence[int] | None, grad: bool) -> bool:
        """Whether `unroll` and `record` should be used; else the memory is stepped by `step`.

        Args:
            length: steps of the sequence; of one that is recorded, a guess of the steps between two resets.
            resets: the steps at which an episode may start; None: any step may be one.
            grad: whether the sequence will be differentiated.
        """
        return True

    def step(self, x: Tensor, state: State) -> MemoryStep:
        """One step: as the memory's `forward`, which it is unless overridden."""
        step: MemoryStep = self.memory(x, state)
        return step

    def unroll(self, xs: Tensor, starts: Tensor | None, state: State, resets: Sequence[int] | None) -> Unrolled:
        """A sequence of steps, with its graph where gradients are on.

        Args:
            xs: inputs, `[T, B, ...]`.
            starts: bool `[T, B]`; where true, the state is reset to `memory.initial_state` *before* that step. None:
                no episode starts here.
            state: before the first step.
            resets: the steps at which any entry of `starts` may be true, empty where `starts` is None; None: any step.
        """
        return unroll(self.memory, xs, starts, state, resets, step=self.step)

    def record(self, state: State, room: int) -> Recording:
        """As `Memory.record`. By default steps are taken without a graph, then replayed by one `unroll`."""
        return ReplayedRecording(self.memory, state)

    def take_bf16(self) -> bool:
        """Multiply in bfloat16 in `unroll` from now on; False: this form cannot."""
        return False
