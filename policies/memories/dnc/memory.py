"""Differentiable neural computer: an LSTM with an external memory, addressed by content, usage and order of writes."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from policies.memories.contract import Memory, MemoryStep, Panel, State
from policies.memories.dnc.fast import FastDNC
from policies.memories.registry import register_memory
from policies.memories.shared import fused_cells
from policies.memories.shared.addressing import (
    follow_links,
    next_linkage,
    next_memory,
    next_precedence,
    next_usage,
    oneplus,
    sharpened,
    similar_to,
    write_allocations,
)
from policies.memories.shared.arguments import at_least, one_of
from policies.memories.shared.numbers import focus
from policies.memories.shared.pictures import read_panel, vector_panel, weights_panel, write_panel


@register_memory("dnc")
class DNC(Memory):
    """Differentiable neural computer (Graves et al., Nature 538, 2016), Methods.

    A deep LSTM reads the input and the last read vectors, and emits an interface vector. A write head addresses slots
    by content or the least used slot. A read head addresses slots by content, or those written just after or just
    before the slots of its last read. In each step the write precedes the read.

    State: `hidden`, `cell` `[B, num_layers, hidden_size]`; `memory` `[B, slots, word_size]`; `usage`
    `[B, slots]`; `precedence`, `write_weights` `[B, write_heads, slots]`; `linkage` `[B, write_heads, slots, slots]`;
    `read_weights` `[B, read_heads, slots]`; `read_vectors` `[B, read_heads, word_size]`. All zero at the start of
    an episode.

    Args:
        input_size: F, width of the input.
        hidden_size: units of each layer of the controller.
        output_size: width of the output; None: hidden_size.
        num_layers: layers of the controller; the inputs of each are x, the read vectors and the layer below it.
        slots: N, rows of the memory.
        word_size: W, width of a row.
        read_heads: R, number of read heads.
        write_heads: number of write heads: 1 in the paper; several, each with its own linkage, as in the released code.
        clip_value: bound of hidden and cell states and the output, as in the released code; None: no clipping.
        clip_gradients: bound of the gradients of the controller's hidden states; the paper has 10. None: no clipping.
        strength: "oneplus", the paper's 1 + log(1 + e^x), or "softplus", the code's log(1 + e^x).
        variant: order of the read modes in the interface vector: "paper": backward, content, forward; "code", as in the
            released code: backward, forward, content. It matters only for loading weights.
        stop_usage_gradient: no gradient flows from the usage to the last write weights, as in the released code.
        bias: whether interface and output layers have biases, as in the released code; the paper has none.

    Raises:
        ValueError: a size is below 1, a bound is not above 0, or strength or variant is unknown.
    """

    fast_form = FastDNC

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 256,
        output_size: int | None = None,
        num_layers: int = 1,
        slots: int = 64,
        word_size: int = 16,
        read_heads: int = 4,
        write_heads: int = 1,
        clip_value: float | None = 20.0,
        clip_gradients: float | None = None,
        strength: Literal["oneplus", "softplus"] = "oneplus",
        variant: Literal["paper", "code"] = "paper",
        stop_usage_gradient: bool = False,
        bias: bool = False,
    ) -> None:
        super().__init__()
        at_least(1, hidden_size=hidden_size, output_size=output_size, num_layers=num_layers, slots=slots)
        at_least(1, word_size=word_size, read_heads=read_heads, write_heads=write_heads)
        for name, limit in {"clip_value": clip_value, "clip_gradients": clip_gradients}.items():
            if limit is not None and limit <= 0:
                raise ValueError(f"{name} must be above 0 or None, not {limit}")
        one_of("strength", strength, "oneplus", "softplus")
        one_of("variant", variant, "paper", "code")
        self.output_size = output_size or hidden_size
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.slots, self.word_size = slots, word_size
        self.read_heads, self.write_heads = read_heads, write_heads
        self.clip_value, self.clip_gradients = clip_value, clip_gradients
        self.strength = oneplus if strength == "oneplus" else F.softplus
        self.variant, self.stop_usage_gradient = variant, stop_usage_gradient

        # gates i, f, g, o of layer l from [x_t; r_{t-1}; h^l_{t-1}; h^{l-1}_t]
        read_size, all_hidden = read_heads * word_size, num_layers * hidden_size
        fan_ins = [input_size + read_size + hidden_size * (1 if layer == 0 else 2) for layer in range(num_layers)]
        self.controller = nn.ModuleList([nn.Linear(fan_in, 4 * hidden_size) for fan_in in fan_ins])
        # ξ_t = [k^r; β^r; k^w; β^w; e; v; f; g^a; g^w; π]
        words, writes = write_heads * word_size, write_heads
        self.splits = [read_size, read_heads, words, writes, words, words, read_heads, writes, writes]
        self.splits.append(read_heads * (2 * write_heads + 1))
        self.interface = nn.Linear(all_hidden, sum(self.splits), bias=bias)
        # y_t = W_y [h^1; ...; h^L] + W_r [r^1; ...; r^R]
        self.output = nn.Linear(all_hidden + read_size, self.output_size, bias=bias)

    def initial_state(self, batch_size: int) -> State:
        shapes = {
            "hidden": (self.num_layers, self.hidden_size),
            "cell": (self.num_layers, self.hidden_size),
            "memory": (self.slots, self.word_size),
            "usage": (self.slots,),
            "precedence": (self.write_heads, self.slots),
            "linkage": (self.write_heads, self.slots, self.slots),
            "write_weights": (self.write_heads, self.slots),
            "read_weights": (self.read_heads, self.slots),
            "read_vectors": (self.read_heads, self.word_size),
        }
        return self.zeros_state(batch_size, shapes)

    def forward(self, x: Tensor, state: State) -> MemoryStep:
        hidden, cell = self._control(self.gates_of(x), state)
        splits = [*self.splits[:6], sum(self.splits[6:9]), self.splits[9]]  # f, g^a and g^w together
        parts = torch.split(self.interface(hidden.flatten(1)), splits, 1)
        keys, strengths, write_keys, write_strengths, erase, vectors, gates_of_heads, modes = parts
        memory, read_weights, precedence = state["memory"], state["read_weights"], state["precedence"]
        free, allocate, write = torch.split(gates_of_heads.sigmoid(), self.splits[6:9], 1)
        sharp = self.strength(torch.cat([strengths, write_strengths], 1))
        sharp_keys = sharpened(self._words(torch.cat([keys, write_keys], 1)), sharp)
        keys, write_keys = sharp_keys.tensor_split([self.read_heads], 1)

        # where to write: usage, allocation, content
        written = state["write_weights"].detach() if self.stop_usage_gradient else state["write_weights"]
        usage = next_usage(state["usage"], written, read_weights, free)
        allocations = write_allocations(usage, allocate * write)
        similar = similar_to(write_keys, memory)
        # w^w = g^w (g^a a + (1 - g^a) c^w)
        write_weights = write[..., None] * torch.lerp(similar, allocations, allocate[..., None])
        memory = next_memory(memory, write_weights, self._words(erase.sigmoid()), self._words(vectors))

        # what to read: w^r = π_1 b + π_2 c + π_3 f, with links of each write head
        linkage = next_linkage(state["linkage"], write_weights, precedence)
        forward, backward = follow_links(linkage, read_weights)
        similar = similar_to(keys, memory).unsqueeze(1)
        modes = modes.view(modes.shape[0], self.read_heads, 1, -1).softmax(3)
        read_candidates = [backward, similar, forward] if self.variant == "paper" else [backward, forward, similar]
        read_weights = (modes @ torch.cat(read_candidates, 1).transpose(1, 2)).squeeze(2)
        read_vectors = read_weights @ memory  # r = Mᵀ w^r
        after = {
            "hidden": hidden,
            "cell": cell,
            "memory": memory,
            "usage": usage,
            "precedence": next_precedence(precedence, write_weights),
            "linkage": linkage,
            "write_weights": write_weights,
            "read_weights": read_weights,
            "read_vectors": read_vectors,
        }
        return MemoryStep(self.output_of(hidden.flatten(1), read_vectors.flatten(1)), after, {})

    def gates_of(self, xs: Tensor) -> Tensor:
        """The input's part of all layers' gates, with their biases: `[..., F]` to `[..., layers * 4 hidden_size]`."""
        weights = [layer.get_parameter("weight")[:, : self.input_size] for layer in self.controller]
        biases: list[Tensor] = [layer.get_parameter("bias") for layer in self.controller]
        if self.num_layers == 1:
            return F.linear(xs, weights[0], biases[0])
        return F.linear(xs, torch.cat(weights), torch.cat(biases))

    def output_of(self, hidden: Tensor, read_vectors: Tensor) -> Tensor:
        """y_t, from all layers' hidden states and all read vectors, concatenated, `[..., sizes]`."""
        return self._clip(self.output(torch.cat([hidden, read_vectors], -1)))

    def _control(self, gates: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """The deep LSTM: hidden and cell states after the step, `[B, layers, hidden_size]` each."""
        read = state["read_vectors"].flatten(1)
        hiddens: list[Tensor] = []
        cells: list[Tensor] = []
        for index, (layer, gate) in enumerate(zip(self.controller, gates.chunk(self.num_layers, 1), strict=True)):
            layer_inputs = torch.cat([read, state["hidden"][:, index], *hiddens[-1:]], 1)
            gate = torch.addmm(gate, layer_inputs, layer.get_parameter("weight")[:, self.input_size :].t())
            hidden, cell = self._cell(gate, state["cell"][:, index])
            if self.clip_gradients is not None:
                hidden = _ClipGradient.apply(hidden, self.clip_gradients)  # type: ignore[no-untyped-call]
            hiddens.append(hidden)
            cells.append(cell)
        if self.num_layers == 1:
            return hidden.unsqueeze(1), cell.unsqueeze(1)
        return torch.stack(hiddens, 1), torch.stack(cells, 1)

    def _cell(self, gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """h_t and c_t of a layer from its gates i, f, g, o and c_{t-1}."""
        if gates.is_cuda and (self.clip_value is None or self.clip_value >= 20):
            # one kernel; |h| < 1 needs no clipping, and tanh(c) = ±1 for |c| >= 20
            hidden, cell, _ = fused_cells.lstm(gates, torch.zeros_like(gates), cell)
            return hidden, self._clip(cell)
        i, f, g, o = gates.chunk(4, 1)
        cell = self._clip(torch.addcmul(f.sigmoid() * cell, i.sigmoid(), g.tanh()))
        return self._clip(o.sigmoid() * cell.tanh()), cell

    def _clip(self, values: Tensor) -> Tensor:
        return values if self.clip_value is None else values.clamp(-self.clip_value, self.clip_value)

    def _words(self, vectors: Tensor) -> Tensor:
        """`[B, heads * W]` as `[B, heads, W]`."""
        return vectors.view(vectors.shape[0], -1, self.word_size)

    def metrics(self, state: State) -> dict[str, Tensor]:
        """`used`: mean usage; `write_strength`: sum of the write weights; `read_focus`: `focus` of the read weights."""
        written = state["write_weights"].sum(2).mean(1)
        return {"used": state["usage"].mean(1), "write_strength": written, "read_focus": focus(state["read_weights"])}

    def panels(self, state: State) -> dict[str, Panel]:
        """All parts of the state of the first batch entry; the linkages of several write heads are stacked."""
        entry = {name: value[0].detach() for name, value in state.items()}
        return {
            "memory": Panel(entry["memory"].t(), "slot", "number in the word", about="what each slot holds"),
            "usage": weights_panel(entry["usage"][None], "how much each slot is in use", "usage"),
            "write_weights": write_panel(entry["write_weights"]),
            "read_weights": read_panel(entry["read_weights"]),
            "linkage": Panel(
                entry["linkage"].flatten(0, 1),
                "written before",
                "written after",
                (0.0, 1.0),
                about="which slot was written after which",
            ),
            "precedence": Panel(entry["precedence"], "slot", "write head", (0.0, 1.0), about="slots written last"),
            "read_vectors": Panel(
                entry["read_vectors"], "number in the word", "read head", about="what each head read"
            ),
            "hidden": vector_panel(entry["hidden"], about="output of the controller"),
            "cell": vector_panel(entry["cell"], limits=None, about="the controller's cells"),
        }


class _ClipGradient(torch.autograd.Function):
    """The identity, with a gradient within ± limit."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, limit: float) -> Tensor:
        ctx.limit = limit
        return values.view_as(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.clamp(-ctx.limit, ctx.limit), None
