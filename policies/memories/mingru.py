"""Minimal gated recurrent units: gates depend only on the input, so a sequence is a parallel scan."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from policies.memories.contract import FastForm, Memory, MemoryStep, Panel, State, Unrolled
from policies.memories.registry import register_memory
from policies.memories.shared.arguments import at_least
from policies.memories.shared.numbers import rms
from policies.memories.shared.pictures import vector_panel
from policies.memories.time.scan import scan


class MinGRUScan(FastForm):
    """Computes each layer as a scan over all steps."""

    memory: MinGRU

    def unroll(self, xs: Tensor, starts: Tensor | None, state: State, resets: Sequence[int] | None) -> Unrolled:
        outputs, hidden = self.memory.through(xs, state["hidden"], lambda a, b, h: scan(a, b, h, starts))
        return Unrolled(outputs, {"hidden": torch.stack([layer[-1] for layer in hidden], 1)}, {})


@register_memory("mingru")
class MinGRU(Memory):
    """minGRU (Feng et al., "Were RNNs All We Needed?", 2024), §3.1 and appendix B.

    Each of `num_layers` layers, with a residual connection to the layer below:

        u_t = LayerNorm(x_t)
        z_t = σ(W_z u_t + b_z)                                update gate
        h̃_t = g(W_h u_t + b_h)                                candidate; g(v) = v + 0.5 where v ≥ 0, σ(v) elsewhere
        h_t = (1 − z_t) ∘ h_{t-1} + z_t ∘ h̃_t
        y_t = x_t + W_o h_t + b_o

    The first x_t is a linear embedding of the input; the output is LayerNorm(y_t) of the last layer. Gates do not
    depend on h_{t-1}, so the recurrence is linear in h and a sequence is a scan. Gates depend on the past only through
    the layers below.

    State: `hidden` `[B, num_layers, expansion · hidden_size]`, initially 0.

    Args:
        input_size: F, width of the input.
        hidden_size: width of the layers' inputs and of the output.
        num_layers: number of layers; in the paper's table 1, one is too few for selective copying and three are enough.
        expansion: α, width of a layer's h relative to `hidden_size`.
        log_space: the candidate is g(·), which is positive, as in the paper's log-space form (appendix B); False: a
            linear candidate, as in §3.1.

    Raises:
        ValueError: a size is below 1.
    """

    fast_form = MinGRUScan

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 128,
        num_layers: int = 3,
        expansion: int = 1,
        log_space: bool = True,
    ) -> None:
        super().__init__()
        at_least(1, hidden_size=hidden_size, num_layers=num_layers, expansion=expansion)
        self.output_size = hidden_size
        self.num_layers, self.inner_size, self.log_space = num_layers, expansion * hidden_size, log_space
        self.embedding = nn.Linear(input_size, hidden_size)
        self.norms = nn.ModuleList(nn.LayerNorm(hidden_size) for _ in range(num_layers))
        self.gates = nn.ModuleList(nn.Linear(hidden_size, 2 * self.inner_size) for _ in range(num_layers))  # W_z, W_h
        self.outputs = nn.ModuleList(nn.Linear(self.inner_size, hidden_size) for _ in range(num_layers))  # W_o
        self.norm = nn.LayerNorm(hidden_size)

    def initial_state(self, batch_size: int) -> State:
        return self.zeros_state(batch_size, {"hidden": (self.num_layers, self.inner_size)})

    def forward(self, x: Tensor, state: State) -> MemoryStep:
        output, hidden = self.through(x, state["hidden"], lambda a, b, h: a * h + b)
        return MemoryStep(output, {"hidden": torch.stack(hidden, 1)}, {})

    def through(
        self, x: Tensor, state: Tensor, recurrence: Callable[[Tensor, Tensor, Tensor], Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """The output and every layer's h, for one step or a sequence.

        Args:
            x: `[B, F]`, or a sequence `[T, B, F]`.
            state: `hidden` before the first step.
            recurrence: computes all h_t = a_t ∘ h_{t-1} + b_t from a, b and the h before the first step.
        """
        x, hidden = self.embedding(x), []
        for index, (norm, gates, output) in enumerate(zip(self.norms, self.gates, self.outputs, strict=True)):
            gate, candidate = gates(norm(x)).chunk(2, -1)
            z = gate.sigmoid()
            if self.log_space:
                candidate = candidate.relu() + (-(-candidate).relu()).sigmoid()  # g
            hidden.append(recurrence(1 - z, z * candidate, state[:, index]))
            x = x + output(hidden[-1])
        return self.norm(x), hidden

    def metrics(self, state: State) -> dict[str, Tensor]:
        """`hidden_rms`: root mean square of h."""
        return {"hidden_rms": rms(state["hidden"])}

    def panels(self, state: State) -> dict[str, Panel]:
        """h of the first batch entry, one block per layer."""
        return {"hidden": vector_panel(state["hidden"][0], limits=None, about="state of the units")}
