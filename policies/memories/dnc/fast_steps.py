"""Steps of a DNC with few kernels of torch, for a GPU; `fast_backward.py` has their custom backward.

On a GPU the number of kernels limits the speed of small memories, so a step launches few. Quantities of the same kind
are computed together: the keys of all heads, the gates, both write locations, the three read modes; they are adjacent
in the interface vector. Products that do not depend on the recurrence (the input's part of the gates, the output, the
gradients of all weights) are computed for all steps at once. Autograd would launch twice as many kernels in the
backward pass. Every step stores its linkage.

One write head. Sizes: B batch, L layers of d_h units, N slots, W word size, R read heads. Symbols as in
`addressing.py`; d_x is the gradient of x.
"""

from __future__ import annotations

import math
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from policies.memories.contract import State
from policies.memories.shared import fused_cells
from policies.memories.shared.addressing import NORM_EPS, USAGE_FLOOR

CARRIED = ("memory", "usage", "precedence", "linkage", "write_weights", "read_weights")
"""Parts of a state that `flattened` does not change."""


class Weights(NamedTuple):
    """The weights used inside the loop, rearranged for it, with their graph."""

    interface: Tensor
    """`[I, L d_h]`, rows in the order of `Parts`."""
    bias: Tensor
    """`[I]`; the last element of each key is √ε, so that its length is √(|k|² + ε)."""
    layers: tuple[Tensor, ...]
    """`[4 d_h, ...]` each; columns: the layer's hidden state, read vectors, hidden state of the layer below."""

    @classmethod
    def of(cls, memory: Any) -> Weights:
        """The weights of a `DNC`."""
        weight, read = memory.interface.weight, memory.read_heads * memory.word_size
        bias = weight.new_zeros(len(weight)) if memory.interface.bias is None else memory.interface.bias
        layers = []
        for layer in memory.controller:
            _, reads, hidden, below = layer.weight.tensor_split(
                list(accumulate([memory.input_size, read, memory.hidden_size])), 1
            )
            layers.append(torch.cat([hidden, reads, below], 1))
        lengths = arranged(memory, bias[:, None], math.sqrt(NORM_EPS)).squeeze(1)
        return cls(arranged(memory, weight, 0.0), lengths, tuple(layers))


def arranged(memory: Any, rows: Tensor, last: float) -> Tensor:
    """Rows of the interface in the order of `Parts`; `last` is appended to each key."""
    parts = torch.split(rows, memory.splits)
    keys, strengths, write_key, write_strength, erase, vector, free, allocate, write, modes = parts
    keys = torch.cat([keys, write_key]).view(memory.read_heads + 1, memory.word_size, -1)
    keys = F.pad(keys, [0, 0, 0, 1], value=last).flatten(0, 1)
    first, second, third = modes.view(memory.read_heads, 3, -1).unbind(1)
    read_candidates = [first, second, third] if memory.variant == "paper" else [first, third, second]
    return torch.cat(
        [keys, vector, erase, free, write, allocate, -allocate, strengths, write_strength, *read_candidates]
    )


class Parts:
    """The positions of the parts in the rearranged interface vector."""

    def __init__(self, reads: int, word: int) -> None:
        sizes = [(reads + 1) * (word + 1), word, word, reads, 1, 2, reads + 1, 3 * reads]
        ends = [0, *accumulate(sizes)]
        (
            self.keys,
            self.vector,
            self.erase,
            self.free,
            self.write,
            self.allocate,
            self.strengths,
            self.read_candidates,
        ) = (
            slice(begin, end) for begin, end in pairwise(ends)
        )  # allocate: g^a and 1 - g^a; read_candidates: backward, content, forward, each for all heads
        self.gates, self.words = slice(ends[2], ends[6]), slice(ends[1], ends[3])  # all sigmoids; v and e


class Step(NamedTuple):
    """The values that a step stores for the backward pass."""

    starts: Tensor | None
    before: dict[str, Tensor]
    """The state before the step, after any reset, from `flattened`."""
    after: dict[str, Tensor]
    layer_inputs: list[Tensor]
    """The inputs of each layer."""
    cells: list[tuple[Tensor, Tensor, Tensor]]
    """For each layer: cells before the step, cells after it (not clipped), gates from `fused_cells.lstm`."""
    interface: Tensor
    """ξ after its sigmoids, `[B, I]`."""
    length: Tensor
    """|k|, `[B, R + 1, 1]`; here and below the last entry belongs to the write key."""
    strength: Tensor
    """log(1 + e^x), `[B, R + 1]`."""
    unit_keys: Tensor
    """k / |k|, `[B, R + 1, W]`."""
    keys: Tensor
    """β k / |k|."""
    factors: Tensor
    """1 - f w^r, `[B, R, N]`."""
    used: Tensor
    """u + w - u w, `[B, N]`."""
    retention: Tensor
    """ψ, `[B, N]`."""
    order: Tensor
    """φ, `[B, N]`."""
    usage_products: Tensor
    """Product of all smaller usages, by slot, `[B, N]`."""
    locations: Tensor
    """Allocation and content weights of the write head, `[2, B, N]`."""
    location_gates: Tensor
    """g^w g^a and g^w (1 - g^a), `[B, 2]`."""
    norm: Tensor
    """|M[i]| after the step, `[B, N, 1]`."""
    read_candidates: Tensor
    """w^r_{t-1}, content, w^r_{t-1}, `[3, B, R, N]`."""
    modes: Tensor
    """π, `[B, 3, R]`."""
    weighted_candidates: Tensor
    """π ∘ read_candidates."""
    retained: Tensor
    """1 - Σ w^w, `[B, 1, 1]`."""


class StepTape:
    """Steps of a DNC, stored while they run, without gradients.

    Args:
        memory: the DNC.
        state: the state before the first step; not modified.
    """

    full = False

    @torch.no_grad()
    def __init__(self, memory: Any, state: State) -> None:
        self.weights, self.limit, self.clip_gradients = Weights.of(memory), memory.clip_value, memory.clip_gradients
        self.oneplus, self.stop_usage_gradient = memory.strength is not F.softplus, memory.stop_usage_gradient
        self.layers, self.reads, self.word = memory.num_layers, memory.read_heads, memory.word_size
        self.hidden = memory.num_layers * memory.hidden_size
        self.parts = Parts(self.reads, self.word)
        reference = state["memory"]
        self.one, self.zero = reference.new_ones(()), reference.new_zeros(())
        self.floor, self.root = reference.new_full((), USAGE_FLOOR), reference.new_full((), math.sqrt(NORM_EPS))
        self.current = flattened(state)
        self.current["unit"], self.first_norm = self.normal(reference)
        self.first_unit = self.current["unit"]
        self.steps: list[Step] = []

    def normal(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """M[i] / |M[i]| and |M[i]|, `[B, N, W]` and `[B, N, 1]`."""
        norm = torch.linalg.vector_norm(memory, dim=2, keepdim=True).hypot(self.root)
        return memory / norm, norm

    @torch.no_grad()
    def step(self, projected: Tensor, starts: Tensor | None) -> None:
        """Runs a step; `projected`: the input's part of the gates, from `DNC.gates_of`."""
        parts, reads, one = self.parts, self.reads, self.one
        current = self.current if starts is None else masked(self.current, starts)
        hiddens, cells, layer_inputs = self.control(projected, current)
        xi = torch.addmm(self.weights.bias, torch.cat(hiddens, 1) if self.layers > 1 else hiddens[0], self._interface_t)
        xi[:, parts.gates].sigmoid_()
        keys = xi[:, parts.keys].view(len(xi), reads + 1, self.word + 1)
        length, strength = torch.linalg.vector_norm(keys, dim=2, keepdim=True), F.softplus(xi[:, parts.strengths])
        unit_keys = keys[:, :, : self.word] / length
        keys = torch.addcmul(unit_keys if self.oneplus else self.zero, unit_keys, strength[:, :, None])

        # usage and allocation
        read, memory, precedence, linkage = (current[k] for k in ("read_weights", "memory", "precedence", "linkage"))
        factors = torch.addcmul(one, xi[:, parts.free, None], read, value=-1)
        used, retention = torch.lerp(current["usage"], one, current["write_weights"][:, 0]), factors.prod(1)
        usage = torch.addcmul(self.floor, used, retention)
        locations = usage.new_empty(2, *usage.shape)
        ascending, order = usage.sort(stable=True)
        usage_products = torch.ones_like(usage).scatter_(1, order[:, 1:], ascending.cumprod(1)[:, :-1])
        torch.addcmul(usage_products, usage, usage_products, value=-1, out=locations[0])

        # where and what to write: w^w = g^w (g^a a + (1 - g^a) c)
        torch.softmax(keys[:, reads:] @ current["unit"].mT, 2, out=locations[1].unsqueeze(1))
        location_gates = xi[:, parts.write] * xi[:, parts.allocate]
        write = torch.bmm(location_gates.unsqueeze(1), locations.transpose(0, 1))
        change = torch.addcmul(xi[:, None, parts.vector], memory, xi[:, None, parts.erase], value=-1)
        memory = torch.addcmul(memory, write.mT, change)
        unit, norm = self.normal(memory)

        # L_t = L_{t-1} + w[i] (p[j] - L_{t-1}) - w[j] L_{t-1}
        new_linkage = torch.lerp(linkage[:, 0], precedence, write.mT).addcmul_(write, linkage[:, 0], value=-1)
        new_linkage.diagonal(dim1=1, dim2=2).zero_()
        retained = 1 - write.sum(2, keepdim=True)

        # what to read: w^r = π_1 b + π_2 c + π_3 f
        read_candidates = read.new_empty(3, *read.shape)
        read_candidates[::2] = read
        torch.softmax(keys[:, :reads] @ unit.mT, 2, out=read_candidates[1])
        modes = xi[:, parts.read_candidates].view(len(xi), 3, reads).softmax(1)
        weighted_candidates = read_candidates * modes.transpose(0, 1)[..., None]
        backward, content, forward = weighted_candidates
        read = torch.baddbmm(torch.baddbmm(content, forward, new_linkage.mT), backward, new_linkage)
        after = {"memory": memory, "unit": unit, "usage": usage}
        after |= {"precedence": torch.addcmul(write, retained, precedence)}
        after |= {"linkage": new_linkage.unsqueeze(1), "write_weights": write, "read_weights": read}
        after |= {f"cell {layer}": self.clip(cell) for layer, (_, cell, _) in enumerate(cells)}
        after["carried"] = torch.cat([*hiddens, torch.bmm(read, memory).flatten(1)], 1)
        usages = (factors, used, retention, order, usage_products, locations, location_gates)
        readout = (norm, read_candidates, modes, weighted_candidates)
        inputs = (starts, current, after, layer_inputs, cells)
        self.steps.append(Step(*inputs, xi, length, strength, unit_keys, keys, *usages, *readout, retained))
        self.current = after

    @property
    def _interface_t(self) -> Tensor:
        return self.weights.interface.t()

    def control(self, projected: Tensor, current: dict[str, Tensor]) -> tuple[list[Tensor], list[Any], list[Tensor]]:
        """The deep LSTM; returns hidden states, `Step.cells` and `Step.layer_inputs`."""
        hiddens, cells, layer_inputs = list[Tensor](), list[Any](), list[Tensor]()
        hidden_all, read = current["carried"].tensor_split([self.hidden], 1)
        for layer, (gates, state) in enumerate(
            zip(*(x.chunk(self.layers, 1) for x in (projected, hidden_all)), strict=True)
        ):
            layer_inputs.append(current["carried"] if self.layers == 1 else torch.cat([state, read, *hiddens[-1:]], 1))
            before = current[f"cell {layer}"]
            hidden, cell, activations = fused_cells.lstm(
                gates, layer_inputs[-1] @ self.weights.layers[layer].t(), before
            )
            hiddens.append(hidden)
            cells.append((before, cell, activations))
        return hiddens, cells, layer_inputs

    def clip(self, cell: Tensor) -> Tensor:
        return cell if self.limit is None else cell.clamp(-self.limit, self.limit)

    def state(self, current: State | None = None) -> State:
        """The state after the last step. `current`: its tensors as of `flattened`, with a graph; None: without."""
        current = self.current if current is None else current
        hidden, read = current["carried"].tensor_split([self.hidden], 1)
        cells = [current[f"cell {layer}"] for layer in range(self.layers)]
        cell = cells[0].unsqueeze(1) if self.layers == 1 else torch.stack(cells, 1)
        vectors = {"hidden": hidden.view(len(hidden), self.layers, -1), "cell": cell}
        vectors["read_vectors"] = read.view(len(hidden), self.reads, self.word)
        return vectors | {name: current[name] for name in CARRIED}


def flattened(state: State) -> dict[str, Tensor]:
    """A state in the form of the steps: hidden states and read vectors concatenated, cells by layer."""
    current = {name: state[name] for name in CARRIED}
    current |= {f"cell {layer}": cell for layer, cell in enumerate(state["cell"].unbind(1))}
    return current | {"carried": torch.cat([state["hidden"].flatten(1), state["read_vectors"].flatten(1)], 1)}


def masked(state: dict[str, Tensor], starts: Tensor) -> dict[str, Tensor]:
    """The state with zeros where `starts` `[B]` is true."""
    return {name: x.masked_fill(starts.view(-1, *[1] * (x.dim() - 1)), 0) for name, x in state.items()}
