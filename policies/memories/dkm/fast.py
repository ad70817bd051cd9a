"""The fast form of the dynamic Kanerva machine: C loops for sequences and acting steps on a CPU with a compiler.

Codes and cues depend only on the inputs: torch computes them for all steps before the loops, and the outputs after
them. Several iterations, `variant="code"`, samples and the reconstruction use the equations.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from policies.memories.contract import FastForm, MemoryStep, State, Unrolled
from policies.native import loops
from policies.native.loops import Loops

SOURCE = Path(__file__).with_name("fast_sequence.c")
MAX_NUMBERS = 4096
"""Maximum number of slots, and of units of a code; the loops keep a few such arrays on the C stack."""

INPUTS = ("noise", "z", "cue", "first_mean", "first_root", "initial_mean", "initial_root")
"""Input arrays of the loops, by their names in the C struct."""
OUTPUTS = ("reads", "w", "read_w", "kl", "mean", "root", "f", "wu", "delta", "factor")
"""Output arrays of the loops, `[T, B, ...]`."""


def factors(mean: Tensor, noise: Tensor) -> Tensor:
    """The factorised M Mᵀ + λ I of memories `[B, K, C]`: `[B, K, K]`. `noise`: see `NativeSequence`."""
    result = mean.new_empty(*mean.shape[:2], mean.shape[1])
    sizes = map(ctypes.c_int64, mean.shape)
    first, *others = (ctypes.c_void_p(array.data_ptr()) for array in (mean, noise, result))
    loops.functions_of(SOURCE, mean).factorise(first, *sizes, *others)
    return result


class NativeSequence(torch.autograd.Function):
    """All steps, with a custom backward.

    Inputs: starts, bool `[T, B]`, or None; variance of the noise and λ, `[2]`; codes and cues `[T, B, C]`; M and L
    before the first step, `[B, ...]`, and at the start of an episode, `[1, ...]`.

    Outputs: read-outs `[T, B, C]`, write and read weights `[T, B, K]` and divergences `[T, B]` of each step; M and L
    after the last step.
    """

    @staticmethod
    def forward(ctx: Any, starts: Tensor | None, *inputs: Tensor) -> tuple[Tensor, ...]:
        arrays = {name: value.contiguous() for name, value in zip(INPUTS, inputs, strict=True)}
        (length, batch, word), slots = arrays["z"].shape, arrays["first_mean"].shape[1]
        for name in ("first", "initial"):
            arrays[f"{name}_factor"] = factors(arrays[f"{name}_mean"], arrays["noise"])
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("w", "read_w", "f", "wu"), (slots,))
        shapes |= {"delta": (word,), "reads": (word,), "kl": (), "mean": (slots, word)}
        shapes |= dict.fromkeys(("root", "factor"), (slots, slots))
        arrays |= {name: inputs[0].new_empty(length, batch, *shapes[name]) for name in OUTPUTS}
        if starts is not None:
            arrays["starts"] = starts.contiguous()
        ctx.names, ctx.sizes = (*arrays,), (batch, slots, word)
        Loops(SOURCE, inputs[0], ctx.sizes, 1).set(arrays).forward(0, length)
        ctx.save_for_backward(*arrays.values())
        return tuple(arrays[name] for name in ("reads", "w", "read_w", "kl")) + tuple(
            arrays[name][-1] for name in ("mean", "root")
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *d_outputs: Tensor) -> tuple[Tensor | None, ...]:
        arrays = dict(zip(ctx.names, ctx.saved_tensors, strict=True))
        last = ("mean", "root")
        gradients = {
            f"d_{n}": g.contiguous() for n, g in zip(("reads", "w", "read_w", "kl"), d_outputs[:4], strict=True)
        }
        gradients |= {
            f"d_{n}": g.clone(memory_format=torch.contiguous_format) for n, g in zip(last, d_outputs[4:], strict=True)
        }
        gradients |= {f"d_{name}": torch.empty_like(arrays[name]) for name in ("z", "cue")}
        gradients["d_noise"] = arrays["noise"].new_zeros(ctx.sizes[0], 2)
        gradients |= {f"d_initial_{name}": torch.zeros_like(gradients[f"d_{name}"]) for name in last}
        Loops(SOURCE, arrays["noise"], ctx.sizes, 1).set(arrays | gradients).backward(0, len(arrays["z"]))
        d_initial = (gradients[f"d_initial_{name}"].sum(0, keepdim=True) for name in last)
        return (
            None,
            gradients["d_noise"].sum(0),
            gradients["d_z"],
            gradients["d_cue"],
            gradients["d_mean"],
            gradients["d_root"],
            *d_initial,
        )


class FastDKM(FastForm):
    """Steps and sequences by C loops. Symbols as in `memory.py`."""

    memory: Any

    def usable(self) -> bool:
        memory = self.memory
        single = memory.num_opt_iters == memory.read_iterations == 1 and memory.variant == "paper"
        samples = memory.sample_w or memory.sample_memory
        small = max(memory.slots, memory.word_size) <= MAX_NUMBERS
        return single and not samples and memory.decoder is None and small and loops.usable(SOURCE, memory.prior_mean)

    def step(self, x: Tensor, state: State) -> MemoryStep:
        if torch.is_grad_enabled() or not self.usable():
            return super().step(x, state)
        unrolled = self.unroll(x.unsqueeze(0), None, state, ())
        losses = {name: loss[0] for name, loss in unrolled.losses.items()}
        return MemoryStep(unrolled.outputs[0], unrolled.state, losses)

    def unroll(self, xs: Tensor, starts: Tensor | None, state: State, resets: Sequence[int] | None) -> Unrolled:
        memory = self.memory
        obs_var = torch.as_tensor(memory.obs_var(), dtype=memory.dtype)
        noise = torch.stack([obs_var, obs_var / memory.w_prior_stddev**2])
        names, initial = ("memory_mean", "cov_root"), memory.initial_state(1)
        reads, w, read_w, kl, mean, root = NativeSequence.apply(  # type: ignore[no-untyped-call]
            *(starts, noise, memory.write_encoder(xs), memory.read_encoder(xs)),
            *(state[name] for name in names),
            *(initial[name] for name in names),
        )
        kl_w = memory.weights_kl(w.flatten(0, 1)).view_as(kl)
        after = {"memory_mean": mean, "cov_root": root, "write_weights": w[-1], "read_weights": read_w[-1]}
        return Unrolled(memory.output(torch.cat([reads, xs], 2)), after, {"kl_m": kl, "kl_w": kl_w})
