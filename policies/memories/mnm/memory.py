"""Metalearned neural memory: a feed-forward network whose weights are the memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from policies.memories.contract import Memory, MemoryStep, Panel, State
from policies.memories.mnm.fast import FastMNMg, FastMNMp
from policies.memories.mnm.rules import activations, write_gradient, write_local
from policies.memories.registry import register_memory
from policies.memories.shared.arguments import at_least, one_of
from policies.memories.shared.pictures import vector_panel

WriteThenRead = Callable[[list[Tensor], Tensor, Tensor, Tensor], tuple[list[Tensor], Tensor]]


class MNM(Memory):
    """Metalearned neural memory (Munkhdalai et al., NeurIPS 2019), §3: the base class of both write rules.

    An LSTM controller reads the input and the last read-out, and emits keys, values and a rate. The memory is a tanh
    network f_φ without biases. A write changes its weights; a read is a forward pass. In each step the write precedes
    the read.

    State: `hidden`, `cell` `[B, hidden_size]`; `read_value` `[B, value_size]`; `weights_1` ... `weights_L`
    `[B, D_l, D_{l-1}]`, with D_0 = key_size, D_L = value_size, and memory_units between. With a recall delay also
    `write_keys` `[B, recall_delay, heads, key_size]` and `write_values` `[B, recall_delay, heads, value_size]`: of the
    pairs written in the last steps, newest first; zero for steps before the episode.
    Losses: `meta` `[B]`, eq. (5) at this step: the error of the updated memory on the pairs written in this step and in
    the previous `recall_delay` steps.

    Args:
        input_size: F, width of the input.
        hidden_size: d_h, units of the controller.
        output_size: d_o, width of the output; None: hidden_size.
        key_size: d_k.
        value_size: d_v.
        memory_units: D_l, width of the hidden layers.
        memory_layers: L, at least 1.
        heads: H, number of writes, and of reads, per step.
        rate: "single": one β for all layers, as in eq. (3); "per-layer": one β^l for each, as eq. (4) allows.
        output_activation: activation of the last memory layer: "tanh" as in appendix A; "linear" as in the public port
            and appendix C. "linear" needs `mean_over_units`: without it steps overshoot and the weights diverge.
        mean_over_units: average squared errors over units, as in appendix C and the port; False: sum them, as in
            equations (2) and (5). Divides the step by D_l / 2 (local) or d_v (gradient), and the meta loss by d_v.
        recall_delay: 𝒯 of eq. (5), at least 0: the meta loss includes the pairs of this many earlier steps. The paper's
            experiments use 0.
        recall_decay: λ_τ = recall_decay^τ is the weight of a pair written τ steps ago; above 0, at most 1. The paper
            specifies an exponential decay without a number.
        memory_seed: seed of φ_0, which is random, equal for all episodes, saved and never trained (§3.5).

    Raises:
        ValueError: an argument is outside the range given above.
    """

    local_update: ClassVar[bool]
    """True: writes follow eq. (4), with the trained q_ψ; False: eq. (3)."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 200,
        output_size: int | None = None,
        key_size: int = 100,
        value_size: int = 100,
        memory_units: int = 100,
        memory_layers: int = 3,
        heads: int = 3,
        rate: Literal["single", "per-layer"] = "single",
        output_activation: Literal["tanh", "linear"] = "tanh",
        mean_over_units: bool = False,
        recall_delay: int = 0,
        recall_decay: float = 1.0,
        memory_seed: int = 0,
    ) -> None:
        super().__init__()
        one_of("rate", rate, "single", "per-layer")
        one_of("output_activation", output_activation, "tanh", "linear")
        at_least(1, hidden_size=hidden_size, output_size=output_size, memory_layers=memory_layers, heads=heads)
        at_least(1, key_size=key_size, value_size=value_size, memory_units=memory_units)
        at_least(0, recall_delay=recall_delay)
        if not 0 < recall_decay <= 1:
            raise ValueError(f"recall_decay is {recall_decay}; it must be above 0 and at most 1")
        self.output_size = output_size or hidden_size
        self.hidden_size = hidden_size
        self.heads = heads
        self.key_size = key_size
        self.tanh_output = output_activation == "tanh"
        self.recall_delay = recall_delay
        self.recall_decay = recall_decay
        self.layer_sizes = [memory_units] * (memory_layers - 1) + [value_size]

        self.controller = nn.LSTMCell(input_size + value_size, hidden_size)
        # eq. (1): [k^r; k^w; v^w; β']
        self.splits = [2 * heads * key_size, heads * value_size, key_size]
        self.interaction = nn.Linear(hidden_size, sum(self.splits))
        self.rate = nn.Linear(key_size, 1 if rate == "single" else memory_layers)
        self.output = nn.Linear(hidden_size + value_size, self.output_size)
        if self.local_update:
            # q_ψ^l for all layers at once, l = 1..L
            self.feedback = nn.Linear(value_size, sum(self.layer_sizes))

        generator = torch.Generator().manual_seed(memory_seed)
        fan_in = key_size
        for index, size in enumerate(self.layer_sizes, start=1):
            phi_0 = (2 * torch.rand(1, size, fan_in, generator=generator) - 1) / fan_in**0.5
            self.register_buffer(f"initial_weights_{index}", phi_0)
            fan_in = size
        # β is divided by H, as in eq. (2), whose gradient has a factor 2; halves of integers are exact
        if mean_over_units:
            units = self.layer_sizes if self.local_update else [value_size] * memory_layers
            self.divisors = [heads * size / 2 for size in units]
        else:
            self.divisors = [float(heads) if self.local_update else heads / 2] * memory_layers
        self.meta_divisor = heads * value_size if mean_over_units else heads
        self.register_buffer("step_divisors", torch.tensor(self.divisors, dtype=self.dtype), persistent=False)

    def initial_state(self, batch_size: int) -> State:
        sizes: dict[str, tuple[int, ...]] = {"hidden": (self.hidden_size,), "cell": (self.hidden_size,)}
        sizes["read_value"] = (self.layer_sizes[-1],)
        if self.recall_delay:
            pairs = (self.recall_delay, self.heads)
            sizes |= {"write_keys": (*pairs, self.key_size), "write_values": (*pairs, self.layer_sizes[-1])}
        phi_0 = {f"weights_{index}": m for index, m in enumerate(self.initial_weights(), start=1)}
        return self.zeros_state(batch_size, sizes) | {name: m.expand(batch_size, -1, -1) for name, m in phi_0.items()}

    def initial_weights(self) -> list[Tensor]:
        """φ_0: a matrix `[1, D_l, D_{l-1}]` for each layer."""
        return [self.get_buffer(f"initial_weights_{index}") for index in range(1, len(self.layer_sizes) + 1)]

    def forward(self, x: Tensor, state: State) -> MemoryStep:
        return self.advance(x, state, self.write_then_read)

    def advance(self, x: Tensor, state: State, write_then_read: WriteThenRead) -> MemoryStep:
        """One step, with this memory's `write_then_read` or that of a fast form."""
        weights = [state[f"weights_{index}"] for index in range(1, len(self.layer_sizes) + 1)]
        inputs = torch.cat([x, state["read_value"]], 1)
        hidden, cell = self.controller(inputs, (state["hidden"], state["cell"]))

        keys, values, rate = self.interact(hidden)
        steps = self.rate(rate).sigmoid() / self.step_divisors  # β = sigmoid(W_β β' + b_β)

        queries = torch.cat([keys, state["write_keys"].flatten(1, 2)], 1) if self.recall_delay else keys
        weights, recalled = write_then_read(weights, queries, values, steps)
        read_value = recalled[:, : self.heads].mean(1)  # v^r
        errors = (recalled[:, self.heads : 2 * self.heads] - values).square().sum((1, 2))  # eq. (5), τ = 0
        if self.recall_delay:
            errors = errors + self.recall_errors(recalled[:, 2 * self.heads :], state["write_values"])
        meta = errors / self.meta_divisor

        new_state = {"hidden": hidden, "cell": cell, "read_value": read_value}
        for index, m in enumerate(weights, start=1):
            new_state[f"weights_{index}"] = m
        if self.recall_delay:
            for name, written in {"write_keys": keys[:, self.heads :], "write_values": values}.items():
                new_state[name] = torch.cat([written.unsqueeze(1), state[name][:, :-1]], 1)
        return MemoryStep(self.output(torch.cat([hidden, read_value], 1)), new_state, {"meta": meta})

    def interact(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Eq. (1), with one tanh over all vectors.

        Args:
            hidden: h, `[..., d_h]`.

        Returns:
            H read keys, then H write keys, `[..., 2H, d_k]`; v^w, `[..., H, d_v]`; β', `[..., d_k]`.
        """
        keys, values, rate = self.interaction(hidden).tanh().split(self.splits, -1)
        keys = keys.unflatten(-1, (2 * self.heads, self.key_size))
        return keys, values.unflatten(-1, (self.heads, self.layer_sizes[-1])), rate

    def recall_errors(self, recalled: Tensor, values: Tensor) -> Tensor:
        """Σ_{τ=1}^𝒯 λ_τ Σ_i ‖f_{φ_t}(k^w_{t-τ,i}) − v^w_{t-τ,i}‖² of eq. (5), `[B]`.

        Steps before the episode contribute 0: their keys and values are zero, and f_φ(0) = 0 without biases.

        Args:
            recalled: f_{φ_t}(k^w_{t-τ}), τ = 1 ... 𝒯, `[B, 𝒯 H, d_v]`.
            values: v^w_{t-τ}, `[B, 𝒯, H, d_v]`.
        """
        errors = (recalled.view_as(values) - values).square().sum((2, 3))
        delays = torch.arange(1, self.recall_delay + 1, device=errors.device, dtype=errors.dtype)
        return errors @ torch.pow(self.recall_decay, delays)

    def write_then_read(
        self, weights: list[Tensor], keys: Tensor, values: Tensor, steps: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """Writes the pairs of write keys and `values`, then passes all `keys` through the updated memory.

        Args:
            weights: M^l_{t-1}, `[B, D_l, D_{l-1}]`.
            keys: H read keys, H write keys, then further keys to read, `[B, N, d_k]`.
            values: v^w, `[B, H, d_v]`.
            steps: step size of each layer, `[B, L]`.

        Returns:
            M^l_t, and f_{φ_t} of each key, `[B, N, d_v]`.
        """
        raise NotImplementedError

    def metrics(self, state: State) -> dict[str, Tensor]:
        """`learned`: ‖φ - φ_0‖ / ‖φ_0‖, mean over layers; `write_rate`: the last write rate β."""
        changes = []
        for index, phi_0 in enumerate(self.initial_weights(), start=1):
            changes.append((state[f"weights_{index}"] - phi_0).flatten(1).norm(dim=1) / phi_0.norm())
        rate = self.rate(self.interact(state["hidden"])[2]).sigmoid().mean(1)
        return {"learned": torch.stack(changes).mean(0), "write_rate": rate}

    def panels(self, state: State) -> dict[str, Panel]:
        """The change of each layer since the start of the episode, M^l_t − M^l_0, and the read-out v^r.

        Also the keys and values of reads and writes, which viewers compare over time as in figure 5 of the paper, and
        with a recall delay the earlier pairs of the meta loss.
        """
        panels = {
            f"weights_{index} change": Panel(
                (state[f"weights_{index}"][0] - phi_0[0]).detach(),
                "from unit",
                "to unit",
                about="learned in this episode",
            )
            for index, phi_0 in enumerate(self.initial_weights(), start=1)
        }
        panels["read_value"] = vector_panel(state["read_value"][:1], limits=None, about="output of the read")
        with torch.no_grad():
            keys, written, _ = self.interact(state["hidden"][:1])
        read = state["read_value"][:1, None].expand_as(written)
        panels["keys"] = Panel(
            keys[0].detach(),
            "unit",
            "read, write",
            (-1.0, 1.0),
            "similarity",
            about="cosine: key read now, keys written earlier",
        )
        panels["values"] = Panel(
            torch.cat([read, written], 1)[0].detach(),
            "unit",
            "read, write",
            None,
            "similarity",
            about="cosine: value read now, values written earlier",
        )
        for name in ("write_keys", "write_values") if self.recall_delay else ():
            panels[name] = Panel(
                state[name][0].detach().flatten(0, 1),
                "unit",
                f"{self.heads} heads per step, the last step first",
                (-1.0, 1.0),
                about="recalled again for the meta loss",
            )
        return panels


@register_memory("mnm-p")
class MNMp(MNM):
    """MNM-p (Munkhdalai et al., NeurIPS 2019): writes by a learned local rule, eq. (4), without a gradient.

    The expected activations z'^l = q_ψ^l(v^w) come from one linear layer per memory layer, including the output layer
    (appendix A; with a bias and no nonlinearity, as in the public port). The heads' updates are averaged, as the error
    in eq. (2); eq. (4) itself is for one head. Arguments: see `MNM`.
    """

    local_update = True
    fast_form = FastMNMp

    def write_then_read(
        self, weights: list[Tensor], keys: Tensor, values: Tensor, steps: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        layers, steps = self.feedback(values).split(self.layer_sizes, 2), steps.expand(-1, len(weights))
        updated = write_local(weights, keys[:, self.heads : 2 * self.heads], layers, steps, self.tanh_output)
        return updated, activations(updated, keys, self.tanh_output)[-1]


@register_memory("mnm-g")
class MNMg(MNM):
    """MNM-g (Munkhdalai et al., NeurIPS 2019): writes by one gradient step on the squared error, eq. (2) and (3).

    Training differentiates through the step. Arguments: see `MNM`.
    """

    local_update = False
    fast_form = FastMNMg

    def write_then_read(
        self, weights: list[Tensor], keys: Tensor, values: Tensor, steps: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        steps = steps.expand(-1, len(weights))
        updated = write_gradient(weights, keys[:, self.heads : 2 * self.heads], values, steps, self.tanh_output)
        return updated, activations(updated, keys, self.tanh_output)[-1]
