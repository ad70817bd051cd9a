"""Differentiable plasticity: a recurrent network whose connections change as they are used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from policies.memories.contract import Memory, MemoryStep, Panel, State, Unrolled
from policies.memories.plastic.fast_sequence import PlasticSequence, Tape, advance, plastic_input
from policies.memories.registry import register_memory
from policies.memories.shared.pictures import vector_panel
from policies.memories.time.recording import Recording
from policies.memories.time.unroll import unroll


class PlasticNetwork(Memory):
    """Differentiable plasticity (Miconi, Clune and Stanley, ICML 2018), §2: what both forms share.

    Each recurrent connection has a trained weight w and a Hebbian trace, zero when an episode starts, which the
    connection's own activity changes at every step. α says how much of the trace the connection feels, η how fast the
    trace moves; both are trained.

        h_t[j] = tanh( (W_in x_t + b)[j] + Σ_i (w[i,j] + α[i,j] Hebb_{t-1}[i,j]) h_{t-1}[i] )                    (1)
        "hebb":    Hebb_t[i,j] = η h_{t-1}[i] h_t[j] + (1 - η) Hebb_{t-1}[i,j]                                  (2)
        "oja":     Hebb_t[i,j] = Hebb_{t-1}[i,j] + η h_t[j] (h_{t-1}[i] - h_t[j] Hebb_{t-1}[i,j])               (3)
        "clipped": Hebb_t[i,j] = clip(Hebb_{t-1}[i,j] + η h_{t-1}[i] h_t[j], ±clip)

    State: `hidden` `[B, hidden_size]`; `hebb` `[B, hidden_size, hidden_size]`, from unit i (rows) to unit j (columns).
    Output: `hidden`.

    Args:
        input_size: F, width of the input.
        hidden_size: units, which is also the output size; the state has hidden_size² numbers and more.
        rule: how a trace changes. "oja", eq. (3), is the released maze code's default; "hebb" is eq. (2); "clipped" is
            that of the authors' later code in batches, which only adds, between bounds.
        clip: the bounds of "clipped".
        init_scale: w and a plastic connection's α start uniform in 0..init_scale, the α that all share at init_scale.
            0.01 suits 200 units, whose summed weights then come to 1; a smaller network wants more.
        init_eta: η at the start of training.
        fast: train on sequences by a hand-written function that keeps few traces; False: by plain steps, which give
            the same and keep every trace.
    """

    shared_alpha: ClassVar[bool]
    """Whether all connections have one α."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 200,
        rule: Literal["oja", "hebb", "clipped"] = "oja",
        clip: float = 1.0,
        init_scale: float = 0.01,
        init_eta: float = 0.01,
        fast: bool = True,
    ) -> None:
        super().__init__()
        if hidden_size < 1:
            raise ValueError(f"hidden_size is {hidden_size}; it must be at least 1")
        if rule not in ("oja", "hebb", "clipped"):
            raise ValueError(f"rule is {rule!r}; it must be 'oja', 'hebb' or 'clipped'")
        if clip <= 0:
            raise ValueError(f"clip is {clip}; it must be more than 0")
        self.output_size = hidden_size
        self.clip = clip if rule == "clipped" else None
        self.rule, self.fast = rule, fast
        self.input = nn.Linear(input_size, hidden_size)
        self.w = nn.Parameter(init_scale * torch.rand(hidden_size, hidden_size))
        shared = torch.full((1, 1), init_scale)
        self.alpha = nn.Parameter(shared if self.shared_alpha else init_scale * torch.rand(hidden_size, hidden_size))
        self.eta = nn.Parameter(torch.full((1,), init_eta))

    def initial_state(self, batch_size: int) -> State:
        zeros = torch.zeros(1, self.output_size, device=self.device, dtype=self.dtype)
        return {
            "hidden": zeros.expand(batch_size, -1),
            "hebb": zeros.unsqueeze(2).expand(batch_size, -1, self.output_size),
        }

    def forward(self, x: Tensor, state: State) -> MemoryStep:
        before, hebb = state["hidden"], state["hebb"]
        fixed = torch.addmm(self.input(x), before, self.w)
        hidden = torch.tanh(fixed + plastic_input(before, hebb, self.alpha))  # (1)
        return MemoryStep(hidden, {"hidden": hidden, "hebb": self.learn(hebb, before, hidden)}, {})

    def learn(self, hebb: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """The next trace, `[B, n, n]`, from activities `before` and `after` the connection, `[B, n]` each."""
        return advance(hebb, before, after, self.eta, self.rule, self.clip)

    def unroll(self, xs: Tensor, starts: Tensor | None, state: State, resets: Sequence[int] | None = None) -> Unrolled:  # type: ignore[override]
        """As `time.unroll`, by `plastic_sequence`; resets may be anywhere."""
        if not (self.fast and torch.is_grad_enabled()):
            return unroll(self, xs, starts, state, resets)
        tape = self.tape(state)
        inputs = self.input(xs)
        reset_at = frozenset(range(len(xs)) if resets is None else resets)
        for t, given in enumerate(inputs.detach()):
            tape.step(given, starts[t] if starts is not None and t in reset_at else None)
        return self.differentiable(tape, inputs, state)

    def record(self, state: State, room: int) -> Recording:
        """As `Memory.record`, on a tape of `plastic_sequence`."""
        return TapedRecording(self, state) if self.fast else super().record(state, room)

    def tape(self, state: State) -> Tape:
        """A blank tape that starts from `state`."""
        return Tape(state["hidden"], state["hebb"], self.w, self.alpha, self.eta, self.rule, self.clip)

    def differentiable(self, tape: Tape, inputs: Tensor, state: State) -> Unrolled:
        """What `tape` took down, with its graph."""
        leaves = (inputs, state["hidden"], state["hebb"], self.w, self.alpha, self.eta)
        outputs, hebb = PlasticSequence.apply(tape, *leaves)  # type: ignore[no-untyped-call]
        return Unrolled(outputs, {"hidden": outputs[-1], "hebb": hebb}, {})

    def panels(self, state: State) -> dict[str, Panel]:
        """The trace of each connection, and the activities."""
        return {
            "hebb": Panel(state["hebb"][0].detach(), "to unit", "from unit"),
            "hidden": vector_panel(state["hidden"][:1]),
        }


@register_memory("plastic")
class Plastic(PlasticNetwork):
    """Every connection has a plasticity α[i,j] of its own. Arguments: see `PlasticNetwork`."""

    shared_alpha = False


@register_memory("homo-plastic")
class HomogeneousPlastic(PlasticNetwork):
    """Homogeneous plasticity: one trained α for all connections. Arguments: see `PlasticNetwork`."""

    shared_alpha = True


class TapedRecording(Recording):
    """A recording whose steps are taken without a graph, which is made from their tape afterwards."""

    def __init__(self, memory: PlasticNetwork, state: State) -> None:
        self.network, self.first, self.tape = memory, state, memory.tape(state)
        self.xs: list[Tensor] = []

    def step(self, x: Tensor, starts: Tensor | None) -> MemoryStep:  # type: ignore[override]
        self.xs.append(x)
        with torch.no_grad():
            hidden = self.tape.step(self.network.input(x), starts)
        return MemoryStep(hidden, {"hidden": hidden, "hebb": self.tape.hebb}, {})

    def unrolled(self) -> Unrolled:
        return self.network.differentiable(self.tape, self.network.input(torch.stack(self.xs)), self.first)
