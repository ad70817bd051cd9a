"""LSTM with a soft-attention look-up table: a step writes rows and reads by attention over the rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from policies.memories.contract import Memory, MemoryStep, Panel, State
from policies.memories.registry import register_memory
from policies.memories.salu.fast import FastSALU
from policies.memories.salu.rules import attend, parts
from policies.memories.shared.arguments import at_least
from policies.memories.shared.pictures import vector_panel


@register_memory("salu")
class SALU(Memory):
    """LSTM+SALU, the baseline of Munkhdalai et al., "Metalearned Neural Memory", NeurIPS 2019, §4.1.

    The paper specifies only that the look-up table replaces the neural memory. Controller, interaction vectors, the
    order within a step and the mean over heads are therefore those of `mnm.MNM`. Our choices: attention uses scaled dot
    products, and the table, unbounded in the paper, stores the last `capacity` steps.

        h_t, c_t = LSTM([x_t ; v^r_{t-1}], h_{t-1}, c_{t-1})
        [k^r_i ; k^w_i ; v^w_i] = tanh(W_v h_t + b_v)                        i = 1 ... H; as MNM's eq. (1), without β'
        K_t = [K_{t-1} ; k^w_i], V_t = [V_{t-1} ; v^w_i]                     the new rows of all heads
        a_i = softmax(K_t k^r_i / √d_k)                                      over the rows of this episode
        v^r_t = (1/H) Σ_i V_tᵀ a_i
        y_t = W_y [h_t ; v^r_t] + b_y

    State: `hidden`, `cell` `[B, hidden_size]`; `read_value` `[B, value_size]`; `keys` `[B, capacity, H, key_size]` and
    `values` `[B, capacity, H, value_size]`, newest step last; `count` `[B]`, number of steps of this
    episode in the table, 0 to capacity.

    Args:
        input_size: F, width of the input.
        hidden_size: d_h, units of the controller.
        output_size: d_o, width of the output; None: hidden_size.
        key_size: d_k.
        value_size: d_v.
        heads: H, number of rows written, and of reads, per step.
        capacity: C, maximum number of steps in the table; a new step replaces the oldest.

    Raises:
        ValueError: a size is below 1.
    """

    fast_form = FastSALU

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 200,
        output_size: int | None = None,
        key_size: int = 100,
        value_size: int = 100,
        heads: int = 1,
        capacity: int = 256,
    ) -> None:
        super().__init__()
        at_least(1, hidden_size=hidden_size, output_size=output_size, key_size=key_size, value_size=value_size)
        at_least(1, heads=heads, capacity=capacity)
        self.output_size = output_size or hidden_size
        self.hidden_size, self.key_size, self.value_size = hidden_size, key_size, value_size
        self.heads, self.capacity = heads, capacity
        self.controller = nn.LSTMCell(input_size + value_size, hidden_size)
        self.interaction = nn.Linear(hidden_size, heads * (2 * key_size + value_size))
        self.output = nn.Linear(hidden_size + value_size, self.output_size)
        self.register_buffer("rows", torch.arange(capacity, dtype=self.dtype), persistent=False)

    def initial_state(self, batch_size: int) -> State:
        sizes: dict[str, tuple[int, ...]] = {
            "hidden": (self.hidden_size,),
            "cell": (self.hidden_size,),
            "read_value": (self.value_size,),
            "keys": (self.capacity, self.heads, self.key_size),
            "values": (self.capacity, self.heads, self.value_size),
            "count": (),
        }
        return self.zeros_state(batch_size, sizes)

    def forward(self, x: Tensor, state: State) -> MemoryStep:
        inputs = torch.cat([x, state["read_value"]], 1)
        hidden, cell = self.controller(inputs, (state["hidden"], state["cell"]))
        read_keys, write_keys, write_values = self.vectors(hidden)  # eq. (1)
        keys = torch.cat([state["keys"][:, 1:], write_keys.unsqueeze(1)], 1)
        values = torch.cat([state["values"][:, 1:], write_values.unsqueeze(1)], 1)
        count = (state["count"].detach() + 1).clamp(max=self.capacity)
        weights = attend(read_keys, keys, self.used(count))
        read_value = torch.bmm(weights, values.flatten(1, 2)).mean(1)  # v^r
        new_state = {"hidden": hidden, "cell": cell, "read_value": read_value}
        new_state |= {"keys": keys, "values": values, "count": count}
        return MemoryStep(self.output(torch.cat([hidden, read_value], 1)), new_state, {})

    def vectors(self, hidden: Tensor) -> list[Tensor]:
        """k^r, k^w `[B, H, d_k]` and v^w `[B, H, d_v]` from `hidden` `[B, d_h]`."""
        return parts(self.interaction(hidden).tanh(), self.heads, self.key_size)

    def used(self, count: Tensor) -> Tensor:
        """Which steps of the table belong to this episode, bool `[B, capacity]`."""
        return self.get_buffer("rows") >= (self.capacity - count).unsqueeze(1)

    def metrics(self, state: State) -> dict[str, Tensor]:
        """`used`: share of the table that is filled."""
        return {"used": state["count"] / self.capacity}

    def panels(self, state: State) -> dict[str, Panel]:
        """Read weights of the last step, the table (newest row last) and the read-out v^r."""
        first = {name: value[:1].detach() for name, value in state.items()}
        used = self.used(first["count"])
        weights = attend(self.vectors(first["hidden"])[0], first["keys"], used).detach()
        weights = weights * used.repeat_interleave(self.heads, 1).unsqueeze(1)  # zero before the first step
        panels = {
            "read_weights": Panel(weights[0], "row", "head", (0.0, 1.0), "columns", about="read weights of each head")
        }
        for name in ("keys", "values"):
            panels[name] = Panel(
                first[name][0].flatten(0, 1), "unit", "row", (-1.0, 1.0), about=f"the table's {name}, newest last"
            )
        panels["read_value"] = vector_panel(first["read_value"], about="output of the read")
        return panels
