"""The fast form of the dynamic Kanerva machine: C loops for sequences and acting steps on a CPU with a compiler.

Codes and cues depend only on the inputs, so they are large products before the loops; the outputs are computed after
them. Several iterations, the released code's variant, samples and the reconstruction use the equations.
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
from policies.native.compiler import library
from policies.native.loops import Loops

SOURCE = Path(__file__).with_name("fast_sequence.c")
MAX_NUMBERS = 4096
"""Maximum number of slots and of numbers in a code; the loops store a few such vectors on the C stack."""

GIVEN = ("noise", "z", "cue", "first_mean", "first_root", "fresh_mean", "fresh_root")
"""Input arrays of the loops, by their names in the C file."""
MADE = ("reads", "w", "read_w", "kl", "mean", "root", "f", "wu", "delta", "factor")
"""Output arrays of the loops, for every step."""


class _Tape(ctypes.Structure):
    """The struct of the C file."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "slots", "word")),
        *((name, ctypes.c_void_p) for name in ("noise", "starts", "z", "cue")),
        *((name, ctypes.c_void_p) for name in ("first_mean", "first_root", "first_factor")),
        *((name, ctypes.c_void_p) for name in ("fresh_mean", "fresh_root", "fresh_factor")),
        *((name, ctypes.c_void_p) for name in ("mean", "root", "factor")),
        *((name, ctypes.c_void_p) for name in ("w", "read_w", "f", "wu", "delta", "reads", "kl")),
        *((name, ctypes.c_void_p) for name in ("d_w", "d_read_w", "d_reads", "d_kl")),
        *((name, ctypes.c_void_p) for name in ("d_z", "d_cue", "d_noise", "d_mean", "d_root")),
        *((name, ctypes.c_void_p) for name in ("d_fresh_mean", "d_fresh_root")),
    ]


def factors(mean: Tensor, noise: Tensor) -> Tensor:
    """M Mᵀ + λ I of memories `[B, K, C]`, factorised."""
    functions = library(SOURCE, mean.dtype)
    assert functions is not None
    found = mean.new_empty(*mean.shape[:2], mean.shape[1])
    sizes = map(ctypes.c_int64, mean.shape)
    functions.factorise(
        ctypes.c_void_p(mean.data_ptr()), *sizes, *(ctypes.c_void_p(a.data_ptr()) for a in (noise, found))
    )
    return found


class NativeSequence(torch.autograd.Function):
    """All steps, with a custom backward.

    Inputs: where episodes start, bool `[T, B]` or None; variance of the noise and λ, `[2]`; codes and cues
    `[T, B, C]`; M and L before the first step, `[B, ...]`, and at the start of an episode, `[1, ...]`.
    Outputs, of each step: read-outs `[T, B, C]`, weights of writes and reads `[T, B, K]`, divergences `[T, B]`, M, L.
    """

    @staticmethod
    def forward(ctx: Any, starts: Tensor | None, *inputs: Tensor) -> tuple[Tensor, ...]:
        arrays = {name: value.contiguous() for name, value in zip(GIVEN, inputs, strict=True)}
        (length, batch, word), slots = arrays["z"].shape, arrays["first_mean"].shape[1]
        for name in ("first", "fresh"):
            arrays[f"{name}_factor"] = factors(arrays[f"{name}_mean"], arrays["noise"])
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("w", "read_w", "f", "wu"), (slots,))
        shapes |= {"delta": (word,), "reads": (word,), "kl": (), "mean": (slots, word)}
        shapes |= dict.fromkeys(("root", "factor"), (slots, slots))
        arrays |= {name: inputs[0].new_empty(length, batch, *shapes[name]) for name in MADE}
        if starts is not None:
            arrays["starts"] = starts.contiguous()
        ctx.names, ctx.sizes = (*arrays,), (batch, slots, word)
        taken = Loops(SOURCE, inputs[0], _Tape(*ctx.sizes), 1)
        taken.set(arrays)
        taken.forward(0, length)
        ctx.save_for_backward(*arrays.values())
        return tuple(arrays[name] for name in ("reads", "w", "read_w", "kl")) + tuple(
            arrays[name][-1] for name in ("mean", "root")
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        arrays = dict(zip(ctx.names, ctx.saved_tensors, strict=True))
        last = ("mean", "root")
        made = {f"d_{n}": g.contiguous() for n, g in zip(("reads", "w", "read_w", "kl"), gradients[:4], strict=True)}
        made |= {
            f"d_{n}": g.clone(memory_format=torch.contiguous_format) for n, g in zip(last, gradients[4:], strict=True)
        }
        made |= {f"d_{name}": torch.empty_like(arrays[name]) for name in ("z", "cue")}
        made["d_noise"] = arrays["noise"].new_zeros(ctx.sizes[0], 2)
        made |= {f"d_fresh_{name}": torch.zeros_like(made[f"d_{name}"]) for name in last}
        back = Loops(SOURCE, arrays["noise"], _Tape(*ctx.sizes), 1)
        back.set(arrays | made)
        back.backward(0, len(arrays["z"]))
        fresh = (made[f"d_fresh_{name}"].sum(0, keepdim=True) for name in last)
        return (None, made["d_noise"].sum(0), made["d_z"], made["d_cue"], made["d_mean"], made["d_root"], *fresh)


class FastDKM(FastForm):
    """Symbols as in `memory.py`."""

    memory: Any

    def usable(self) -> bool:
        """Whether the C loops support this memory on this machine."""
        memory = self.memory
        once = memory.num_opt_iters == memory.read_iterations == 1 and memory.variant == "paper"
        drawn = memory.sample_w or memory.sample_memory
        small = max(memory.slots, memory.word_size) <= MAX_NUMBERS
        return once and not drawn and memory.decoder is None and small and loops.usable(SOURCE, memory.prior_mean)

    def fits(self, length: int, resets: Sequence[int] | None, grad: bool) -> bool:
        return self.usable()

    def step(self, x: Tensor, state: State) -> MemoryStep:
        if torch.is_grad_enabled() or not self.usable():
            return super().step(x, state)
        taken = self.unroll(x.unsqueeze(0), None, state, ())
        return MemoryStep(taken.outputs[0], taken.state, {name: loss[0] for name, loss in taken.losses.items()})

    def unroll(self, xs: Tensor, starts: Tensor | None, state: State, resets: Sequence[int] | None) -> Unrolled:
        memory = self.memory
        obs_var = torch.as_tensor(memory.obs_var(), dtype=memory.dtype)
        noise = torch.stack([obs_var, obs_var / memory.w_prior_stddev**2])
        names, fresh = ("memory_mean", "cov_root"), memory.initial_state(1)
        reads, w, read_w, kl, mean, root = NativeSequence.apply(  # type: ignore[no-untyped-call]
            *(starts, noise, memory.write_encoder(xs), memory.read_encoder(xs)),
            *(state[name] for name in names),
            *(fresh[name] for name in names),
        )
        kl_w = memory.weights_kl(w.flatten(0, 1)).view_as(kl)
        after = {"memory_mean": mean, "cov_root": root, "write_weights": w[-1], "read_weights": read_w[-1]}
        return Unrolled(memory.output(torch.cat([reads, xs], 2)), after, {"kl_m": kl, "kl_w": kl_w})
