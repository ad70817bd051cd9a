"""Linear recurrent units: a complex diagonal linear recurrence, stable by its parametrisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies.memories.contract import FastForm, Memory, MemoryStep, Panel, State, Unrolled
from policies.memories.registry import register_memory
from policies.memories.shared.arguments import at_least
from policies.memories.shared.numbers import rms
from policies.memories.shared.pictures import vector_panel
from policies.memories.time.scan import scan

Recurrence = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Computes all x_t = a_t ∘ x_{t-1} + b_t from a, b and the x before the first step."""


class LRULayer(nn.Module):
    """The recurrence of Orvieto et al. 2023, §3 and appendix A; N complex states, H inputs and outputs.

    Λ = exp(−exp(ν) + i exp(θ)) has |Λ| < 1 for every ν, so the recurrence is stable throughout training.

    Args:
        width: H.
        state_size: N.
        r_min, r_max: Λ is initialised uniformly on the ring between these radii (lemma 3.2).
        max_phase: angles of Λ are initialised uniformly in 0 to `max_phase`.
    """

    def __init__(self, width: int, state_size: int, r_min: float, r_max: float, max_phase: float) -> None:
        super().__init__()
        u_1, u_2 = torch.rand(2, state_size).clamp(1e-6, 1 - 1e-6)
        self.nu_log = nn.Parameter((-0.5 * (u_1 * (r_max**2 - r_min**2) + r_min**2).log()).log())
        self.theta_log = nn.Parameter((max_phase * u_2).log())
        self.gamma_log = nn.Parameter((1 - self.eigenvalues().detach().abs().square()).sqrt().log())  # eq. (7)
        # last dimension: real and imaginary part
        self.B = nn.Parameter(torch.randn(state_size, width, 2) / math.sqrt(2 * width))
        self.C = nn.Parameter(torch.randn(width, state_size, 2) / math.sqrt(state_size))
        self.D = nn.Parameter(torch.randn(width))

    def eigenvalues(self) -> Tensor:
        """Λ, complex `[N]`."""
        return torch.polar((-self.nu_log.exp()).exp(), self.theta_log.exp())

    def forward(self, u: Tensor, before: Tensor, recurrence: Recurrence) -> tuple[Tensor, Tensor]:
        """y and x for one step (`u` `[B, H]`) or a sequence (`[T, B, H]`); `before`: the previous x, `[B, N]`."""
        weight = self.gamma_log.exp()[:, None, None] * self.B
        inputs = F.linear(u, weight.transpose(1, 2).flatten(0, 1))  # Bu, with its real and imaginary parts
        b = torch.view_as_complex(inputs.view(*u.shape[:-1], -1, 2))
        x = recurrence(self.eigenvalues().expand_as(b), b, before)  # x_t = Λ x_{t-1} + exp(γ) ∘ B u_t
        real_part = torch.stack([self.C[..., 0], -self.C[..., 1]], 2).flatten(1)
        y = F.linear(torch.view_as_real(x).flatten(-2), real_part) + self.D * u  # y_t = Re(C x_t) + D ∘ u_t
        return y, x


class LRUScan(FastForm):
    """Computes each block as a scan over the sequence; resets may be at any step."""

    memory: LRU

    def unroll(self, xs: Tensor, starts: Tensor | None, state: State, resets: Sequence[int] | None) -> Unrolled:
        outputs, hidden = self.memory.through(xs, state["hidden"], lambda a, b, h: scan(a, b, h, starts))
        return Unrolled(outputs, {"hidden": torch.stack([layer[-1] for layer in hidden], 1)}, {})


@register_memory("lru")
class LRU(Memory):
    """Linear recurrent units (Orvieto et al., "Resurrecting Recurrent Neural Networks for Long Sequences", 2023).

    After a linear encoder, `num_layers` residual blocks (figure 1) of norm, recurrence and gated linear unit:

        u_t = LayerNorm(z_t)
        x_t = Λ ∘ x_{t-1} + exp(γ) ∘ (B u_t)          Λ = exp(−exp(ν) + i exp(θ)); x, B, C complex
        y_t = Re(C x_t) + D ∘ u_t
        z'_t = z_t + (W_1 g_t + b_1) ∘ σ(W_2 g_t + b_2)          g_t = GELU(y_t)

    State: `hidden` `[B, num_layers, state_size, 2]`, real and imaginary part of x, initially 0. Output: z' of the last
    block.

    Args:
        input_size: F, width of the input.
        hidden_size: H, width of the blocks and of the output.
        state_size: N, complex numbers in the state of each block; None: hidden_size.
        num_layers: number of blocks.
        r_min: smallest initial |Λ|, from 0 to below r_max.
        r_max: largest initial |Λ|, at most 1; values near 1 give a long memory.
        max_phase: largest initial angle of Λ, in radians; small for slow signals.

    Raises:
        ValueError: a size is below 1, or the radii or the angle are out of range.
    """

    fast_form = LRUScan

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 128,
        state_size: int | None = None,
        num_layers: int = 2,
        r_min: float = 0.0,
        r_max: float = 1.0,
        max_phase: float = 6.28,
    ) -> None:
        super().__init__()
        self.state_size = hidden_size if state_size is None else state_size
        at_least(1, hidden_size=hidden_size, state_size=self.state_size, num_layers=num_layers)
        if not 0 <= r_min < r_max <= 1:
            raise ValueError(f"r_min and r_max are {r_min} and {r_max}; expected 0 <= r_min < r_max <= 1")
        if not 0 < max_phase <= 2 * math.pi:
            raise ValueError(f"max_phase is {max_phase}; it must be above 0 and at most 2 π")
        self.output_size, self.num_layers = hidden_size, num_layers
        self.encoder = nn.Linear(input_size, hidden_size)
        self.norms = nn.ModuleList(nn.LayerNorm(hidden_size) for _ in range(num_layers))
        self.layers = nn.ModuleList(
            LRULayer(hidden_size, self.state_size, r_min, r_max, max_phase) for _ in range(num_layers)
        )
        self.gated = nn.ModuleList(nn.Linear(hidden_size, 2 * hidden_size) for _ in range(num_layers))  # W_1, W_2

    def initial_state(self, batch_size: int) -> State:
        return self.zeros_state(batch_size, {"hidden": (self.num_layers, self.state_size, 2)})

    def forward(self, x: Tensor, state: State) -> MemoryStep:
        output, hidden = self.through(x, state["hidden"], lambda a, b, h: a * h + b)
        return MemoryStep(output, {"hidden": torch.stack(hidden, 1)}, {})

    def through(self, x: Tensor, state: Tensor, recurrence: Recurrence) -> tuple[Tensor, list[Tensor]]:
        """The output and the x of every block (last dimension: real and imaginary part), for one step or a sequence.

        Args:
            x: `[B, F]`, or a sequence `[T, B, F]`.
            state: `hidden` before the first step.
            recurrence: computes all x_t.
        """
        before, hidden = torch.view_as_complex(state.contiguous()), []
        z = self.encoder(x)
        for index, (norm, layer, gated) in enumerate(zip(self.norms, self.layers, self.gated, strict=True)):
            y, x_new = layer(norm(z), before[:, index], recurrence)
            z = z + F.glu(gated(F.gelu(y)), -1)
            hidden.append(torch.view_as_real(x_new))
        return z, hidden

    def metrics(self, state: State) -> dict[str, Tensor]:
        """`hidden_rms`: root mean square of x."""
        return {"hidden_rms": rms(state["hidden"])}

    def panels(self, state: State) -> dict[str, Panel]:
        """Modulus and angle of each block's x, one block of pixels per layer."""
        hidden = torch.view_as_complex(state["hidden"][0].detach().contiguous())
        return {
            "modulus": vector_panel(hidden.abs(), limits=None, about="modulus of each complex unit"),
            "phase": vector_panel(hidden.angle(), limits=(-math.pi, math.pi), about="angle of each complex unit"),
        }
