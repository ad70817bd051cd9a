"""Neural Turing machine: a controller with heads that address slots by content and by location."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies.memories.contract import Memory, MemoryStep, Panel, State
from policies.memories.ntm.fast import FastNTM
from policies.memories.registry import register_memory
from policies.memories.shared.addressing import content_weights, next_memory, oneplus
from policies.memories.shared.arguments import at_least, one_of
from policies.memories.shared.numbers import focus
from policies.memories.shared.pictures import read_panel, vector_panel, write_panel

WEIGHT_FLOOR = 1e-16
"""Added to weights before their logarithm."""


def shifted(weights: Tensor, shifts: Tensor) -> Tensor:
    """Eq. (8): w̃(i) = Σ_j w^g(j) s(i - j), indices modulo N.

    Args:
        weights: w^g, `[B, H, N]`.
        shifts: s over the shifts -r ... r, `[B, H, 2r + 1]`, with 2r + 1 <= N.
    """
    r = shifts.shape[2] // 2
    ring = torch.cat([weights[..., weights.shape[2] - r :], weights, weights[..., :r]], 2)
    neighbours = ring.unfold(2, 2 * r + 1, 1)  # [B, H, N, 2r + 1]: w^g(i - r) ... w^g(i + r)
    # neighbour j, w^g(i - r + j), is multiplied by s(r - j): the shifts in reverse order
    return (neighbours @ shifts.flip(2)[..., None]).squeeze(3)


def sharpened(weights: Tensor, power: Tensor) -> Tensor:
    """Eq. (9): w(i) = w̃(i)^γ / Σ_j w̃(j)^γ, by logarithms, because a large γ would give 0 / 0.

    Args:
        weights: w̃, `[B, H, N]`.
        power: γ, `[B, H]`.
    """
    return ((weights + WEIGHT_FLOOR).log() * power[..., None]).softmax(2)


@register_memory("ntm")
class NTM(Memory):
    """Neural Turing machine (Graves, Wayne and Danihelka, 2014, arXiv:1410.5401), §3.

    The controller reads the input and the last read vectors. It gives each head a key k, a strength β, a gate g, a
    distribution over shifts s and a sharpness γ; a write head also an erase vector e and an add vector a.

        w^c = softmax(β cos(k, M(i)))                 content addressing                             (5), (6)
        w^g = g w^c + (1 - g) w_{t-1}                 interpolation                                  (7)
        w̃(i) = Σ_j w^g(j) s(i - j)                    circular shift                                 (8)
        w(i) ∝ w̃(i)^γ                                 sharpening                                     (9)
        M_t(i) = M_{t-1}(i) Π (1 - w^w(i) e) + Σ w^w(i) a       over write heads                     (3), (4)
        r_t = Σ_i w^r(i) M_t(i)                       for each read head                             (2)

    As the paper's indices require, the write precedes the read, which reads M_t. A write head compares its key with
    M_{t-1}, because M_t depends on its weights.

    State: `memory` `[B, slots, word_size]`; `read_weights`, `write_weights` `[B, heads, slots]`;
    `read_vectors` `[B, read_heads, word_size]`; with an LSTM also `hidden`, `cell` `[B, num_layers, hidden_size]`.
    As in §4, an episode starts with learned parameters, except for the memory (`memory_init`). The paper does not
    specify the initial weightings. Here each is the softmax of learned logits with random initial values: with equal
    slots and equal weights, the weights would stay equal.

    Args:
        input_size: F, width of the input.
        hidden_size: units per layer of the controller.
        output_size: width of the output, a linear map of hidden state and read vectors; None: hidden_size.
        controller: "lstm", or "feedforward": tanh layers without a state.
        num_layers: layers of the controller.
        slots: N.
        word_size: M, width of a slot.
        read_heads, write_heads: numbers of heads, at least 1.
        shift_range: r, maximum shift of a head per step, with 2r < slots; 0: no shifts.
        memory_init: M_0, the same for every episode. "constant": 1e-6, with which Collier and Beel (2018,
            arXiv:1807.08518) saw training converge best; "learned": a parameter, as in the paper; "random": normal
            with standard deviation 0.5, saved but never trained.
        variant: "paper": write, then read M_t; "code": read M_{t-1}, then write, as public code does.
        key_activation: activation of keys and add vectors: "linear", or "tanh" as in Collier and Beel's code.

    Raises:
        ValueError: a size is below 1, shift_range is too large for `slots`, or a choice is unknown.
    """

    fast_form = FastNTM

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 100,
        output_size: int | None = None,
        controller: Literal["lstm", "feedforward"] = "lstm",
        num_layers: int = 1,
        slots: int = 128,
        word_size: int = 20,
        read_heads: int = 1,
        write_heads: int = 1,
        shift_range: int = 1,
        memory_init: Literal["constant", "learned", "random"] = "constant",
        variant: Literal["paper", "code"] = "paper",
        key_activation: Literal["linear", "tanh"] = "linear",
    ) -> None:
        super().__init__()
        one_of("controller", controller, "lstm", "feedforward")
        one_of("memory_init", memory_init, "constant", "learned", "random")
        one_of("variant", variant, "paper", "code")
        one_of("key_activation", key_activation, "linear", "tanh")
        at_least(1, hidden_size=hidden_size, output_size=output_size, num_layers=num_layers, word_size=word_size)
        at_least(1, read_heads=read_heads, write_heads=write_heads)
        if not 0 <= 2 * shift_range < slots:
            raise ValueError(
                f"shift_range is {shift_range}; it must be in 0..{(slots - 1) // 2}, "
                f"so that {slots} slots hold every move"
            )
        self.output_size = output_size or hidden_size
        self.hidden_size, self.num_layers = hidden_size, num_layers
        self.slots, self.word_size = slots, word_size
        self.read_heads, self.write_heads = read_heads, write_heads
        self.read_first = variant == "code"
        self.tanh_keys = key_activation == "tanh"

        widths = [input_size + read_heads * word_size] + [hidden_size] * (num_layers - 1)
        layer = nn.LSTMCell if controller == "lstm" else nn.Linear
        self.controller = nn.ModuleList(layer(width, hidden_size) for width in widths)
        self.recurrent = controller == "lstm"
        # each head: k, β, g, s, γ; each write head also e, a
        self.address_sizes = [word_size, 1, 1, 2 * shift_range + 1, 1]
        heads = read_heads + write_heads
        self.splits = [heads * sum(self.address_sizes), write_heads * word_size, write_heads * word_size]
        self.interface = nn.Linear(hidden_size, sum(self.splits))
        self.output = nn.Linear(hidden_size + read_heads * word_size, self.output_size)

        if self.recurrent:
            self.initial_hidden = nn.Parameter(torch.zeros(1, num_layers, hidden_size))
            self.initial_cell = nn.Parameter(torch.zeros(1, num_layers, hidden_size))
        self.initial_read_vectors = nn.Parameter(torch.zeros(1, read_heads, word_size))
        self.initial_read_logits = nn.Parameter(torch.randn(1, read_heads, slots))
        self.initial_write_logits = nn.Parameter(torch.randn(1, write_heads, slots))
        shape = (1, slots, word_size)
        memory = torch.full(shape, 1e-6) if memory_init == "constant" else 0.5 * torch.randn(shape)
        if memory_init == "learned":
            self.initial_memory: Tensor = nn.Parameter(memory)
        else:
            self.register_buffer("initial_memory", memory)

    def initial_state(self, batch_size: int) -> State:
        state = {
            "memory": self.initial_memory,
            "read_weights": self.initial_read_logits.softmax(2),
            "write_weights": self.initial_write_logits.softmax(2),
            "read_vectors": self.initial_read_vectors,
        }
        if self.recurrent:
            state |= {"hidden": self.initial_hidden, "cell": self.initial_cell}
        return {name: value.expand(batch_size, -1, -1) for name, value in state.items()}

    def forward(self, x: Tensor, state: State) -> MemoryStep:
        hidden, new_state = self._control(torch.cat([x, state["read_vectors"].flatten(1)], 1), state)
        addresses, erase, add = torch.split(self.interface(hidden), self.splits, 1)
        addresses = addresses.view(x.shape[0], -1, sum(self.address_sizes))
        read_parameters, write_parameters = addresses[:, : self.read_heads], addresses[:, self.read_heads :]
        erase = erase.view(x.shape[0], self.write_heads, self.word_size).sigmoid()
        add = add.view(x.shape[0], self.write_heads, self.word_size)

        memory = state["memory"]
        write_weights = self.address(write_parameters, memory, state["write_weights"])
        written = next_memory(memory, write_weights, erase, add.tanh() if self.tanh_keys else add)
        readable = memory if self.read_first else written
        read_weights = self.address(read_parameters, readable, state["read_weights"])
        read_vectors = read_weights @ readable  # eq. (2)

        new_state |= {
            "memory": written,
            "read_weights": read_weights,
            "write_weights": write_weights,
            "read_vectors": read_vectors,
        }
        return MemoryStep(self.output(torch.cat([hidden, read_vectors.flatten(1)], 1)), new_state, {})

    def address(self, parameters: Tensor, memory: Tensor, previous: Tensor) -> Tensor:
        """§3.3: the weights `[B, H, N]` of H heads.

        Args:
            parameters: k, β, g, s and γ of the heads before their activations, `[B, H, word_size + 2 shift_range + 4]`.
            memory: the memory with which keys are compared, `[B, N, word_size]`.
            previous: w_{t-1}, `[B, H, N]`.
        """
        key, strength, gate, shift, power = torch.split(parameters, self.address_sizes, 2)
        key = key.tanh() if self.tanh_keys else key
        content_w = content_weights(memory, key, F.softplus(strength).squeeze(2))  # eq. (5), (6)
        gate = gate.sigmoid()
        gated = gate * content_w + (1 - gate) * previous  # eq. (7)
        return sharpened(shifted(gated, shift.softmax(2)), oneplus(power).squeeze(2))

    def _control(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The last hidden layer `[B, hidden_size]`, and the controller's part of the new state."""
        if not self.recurrent:
            for layer in self.controller:
                x = layer(x).tanh()
            return x, {}
        hidden, cell = [], []
        for index, layer in enumerate(self.controller):
            x, memory_cell = layer(x, (state["hidden"][:, index], state["cell"][:, index]))
            hidden.append(x)
            cell.append(memory_cell)
        return x, {"hidden": torch.stack(hidden, 1), "cell": torch.stack(cell, 1)}

    def metrics(self, state: State) -> dict[str, Tensor]:
        """`read_focus`, `write_focus`: `focus` of the read and the write weights."""
        return {"read_focus": focus(state["read_weights"]), "write_focus": focus(state["write_weights"])}

    def panels(self, state: State) -> dict[str, Panel]:
        """The memory, the heads' weights, and the read vectors."""
        first = {name: value[0].detach() for name, value in state.items()}
        return {
            "memory": Panel(first["memory"].T, "slot", "number in the word", about="what each slot holds"),
            "write_weights": write_panel(first["write_weights"]),
            "read_weights": read_panel(first["read_weights"]),
            "read_vectors": vector_panel(
                first["read_vectors"], unit="number", limits=None, about="output of each read head"
            ),
        }
