"""Base class of LSTM and GRU: layers, their state, and torch's parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from policies.memories.contract import Memory, MemoryStep, Panel, State
from policies.memories.shared.numbers import rms, saturation
from policies.memories.shared.pictures import vector_panel

Cell = Callable[[Tensor, tuple[Tensor, ...], Sequence[Tensor]], tuple[Tensor, ...]]

_ABOUT = {"hidden": "output of the units, to the policy", "cell": "the cells"}


class TorchRecurrent(Memory):
    """A memory with the parameters of `nn.LSTM` or `nn.GRU`.

    Its state has a tensor `[B, num_layers, hidden_size]` for each of `state_names`, zero at the start of an episode.
    """

    kernel: ClassVar[type[nn.RNNBase]]
    state_names: ClassVar[tuple[str, ...]]

    def __init__(self, input_size: int, hidden_size: int, num_layers: int) -> None:
        super().__init__()
        self.output_size = hidden_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.rnn = self.kernel(input_size, hidden_size, num_layers)  # type: ignore[arg-type]

    def initial_state(self, batch_size: int) -> State:
        return self.zeros_state(batch_size, dict.fromkeys(self.state_names, (self.num_layers, self.hidden_size)))

    def cell(self, x: Tensor, state: tuple[Tensor, ...], parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """One step of one layer.

        Args:
            x: `[B, F]`.
            state: the state tensors, `[B, hidden_size]`.
            parameters: W, U, b and b' of all gates, stacked in torch's order.

        Returns:
            The new state tensors; the first is the hidden state.
        """
        raise NotImplementedError

    def forward(self, x: Tensor, state: State) -> MemoryStep:
        output, new_state = self.through_layers(x, state, self.cell)
        return MemoryStep(output, new_state, {})

    def through_layers(self, x: Tensor, state: State, cell: Cell) -> tuple[Tensor, State]:
        """One step of all layers; returns the last layer's hidden state `[B, hidden_size]`, and the new state."""
        layers = []
        for index, parameters in enumerate(self.rnn.all_weights):
            layers.append(cell(x, self.layer(state, index), parameters))
            x = layers[-1][0]
        return x, self.stacked(layers)

    def layer(self, state: State, index: int) -> tuple[Tensor, ...]:
        """The state tensors of one layer, `[B, hidden_size]`."""
        return tuple(state[name][:, index] for name in self.state_names)

    def stacked(self, layers: Sequence[tuple[Tensor, ...]]) -> State:
        """Combines the layers' state tensors to a state."""
        stacked = (torch.stack(parts, 1) for parts in zip(*layers, strict=True))
        return dict(zip(self.state_names, stacked, strict=True))

    def metrics(self, state: State) -> dict[str, Tensor]:
        """`saturation`: share of saturated units; of an LSTM also `cell_rms`: root mean square of the cells."""
        numbers = {"saturation": saturation(state["hidden"])}
        return numbers | ({"cell_rms": rms(state["cell"])} if "cell" in state else {})

    def panels(self, state: State) -> dict[str, Panel]:
        """Each state tensor of the first batch entry, one block per layer."""
        return {
            name: vector_panel(value[0], limits=(-1.0, 1.0) if name == "hidden" else None, about=_ABOUT.get(name, ""))
            for name, value in state.items()
        }
