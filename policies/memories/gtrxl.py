"""Gated Transformer-XL: attention over a window of the last steps, with gates instead of residual connections."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies.memories.contract import FastForm, Memory, MemoryStep, Panel, State, Unrolled
from policies.memories.registry import register_memory
from policies.memories.shared.arguments import at_least
from policies.memories.shared.episode_buffer import Episodes

BLOCK = 32
"""Number of steps of a sequence that are computed together."""


class GRUGate(nn.Module):
    """GRU-type gating of a stream x and a submodule's output y (§3.2); initially close to the identity.

    r = σ(W_r y + U_r x)
    z = σ(W_z y + U_z x − b_g)
    ĥ = tanh(W_g y + U_g (r ∘ x))
    g(x, y) = (1 − z) ∘ x + z ∘ ĥ
    """

    def __init__(self, width: int, bias: float) -> None:
        super().__init__()
        self.of_y = nn.Linear(width, 3 * width, bias=False)  # W_r, W_z, W_g
        self.of_x = nn.Linear(width, 2 * width, bias=False)  # U_r, U_z
        self.of_reset = nn.Linear(width, width, bias=False)  # U_g
        self.bias = nn.Parameter(torch.full((width,), float(bias)))  # b_g

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        y_r, y_z, y_g = self.of_y(y).chunk(3, -1)
        x_r, x_z = self.of_x(x).chunk(2, -1)
        r, z = (y_r + x_r).sigmoid(), (y_z + x_z - self.bias).sigmoid()
        return torch.lerp(x, (y_g + self.of_reset(r * x)).tanh(), z)


class GTrXLLayer(nn.Module):
    """One layer; symbols as in `GTrXL`."""

    def __init__(self, width: int, heads: int, inner: int, gate_bias: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.position = nn.Linear(width, width, bias=False)  # W_R
        self.key_bias, self.position_bias = (nn.Parameter(torch.zeros(width)) for _ in range(2))  # u, v
        self.attended = nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, width))
        self.attention_gate, self.mlp_gate = (GRUGate(width, gate_bias) for _ in range(2))

    def forward(self, history: Tensor, positions: Tensor, allowed: Tensor) -> Tensor:
        """The layer's output for the last T inputs.

        Args:
            history: inputs of the layer, `[capacity + T, B, width]`.
            positions: R, `[capacity + 1, width]`, largest distance first.
            allowed: the mask from `attention_mask`.
        """
        weights, values = self.attention(history, positions, allowed)
        read = (weights @ values).movedim(3, 1).flatten(3)  # [blocks, Q, B, width]
        x = history[len(positions) - 1 :]
        return self.gated(x, read.flatten(0, 1)[: len(x)])

    def gated(self, x: Tensor, read: Tensor) -> Tensor:
        """The operations after the attention; x: inputs, `read`: attention read-outs, `[..., width]` each."""
        x = self.attention_gate(x, self.attended(read).relu())
        result: Tensor = self.mlp_gate(x, self.mlp(self.mlp_norm(x)).relu())
        return result

    def attention(self, history: Tensor, positions: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        """Attention weights `[blocks, B, heads, Q, capacity + Q]` and values, in blocks of Q steps."""
        blocks, _, _, steps, columns = allowed.shape
        context = len(positions) - 1
        normed = self.norm(history)
        if missing := context + blocks * steps - len(history):
            normed = torch.cat([normed, normed.new_zeros(missing, *normed.shape[1:])])

        def split(whole: Tensor) -> Tensor:
            return whole.view(*whole.shape[:-1], self.heads, -1)

        q = self.query(normed[context:]).view(blocks, steps, *normed.shape[1:])
        keys, values = (  # a block attends to itself and the `capacity` steps before it
            split(part).unfold(0, columns, steps).movedim(-1, 3)  # [blocks, B, heads, columns, size]
            for part in self.key_value(normed).chunk(2, -1)
        )
        # the score of query i and key j is (q_i + u) · k_j + (q_i + v) · W_R R_{i-j}
        content_scores = split(q + self.key_bias).movedim(1, 3) @ keys.mT
        position_scores = split(q + self.position_bias).movedim(1, 3) @ split(self.position(positions)).movedim(0, 1).mT
        scores = (content_scores + skewed(position_scores)) / math.sqrt(keys.shape[-1])
        return scores.masked_fill(~allowed, torch.finfo(scores.dtype).min).softmax(-1), values


def skewed(position_scores: Tensor) -> Tensor:
    """Shifts row i of `[..., Q, C + 1]` (by distance, C to 0) i columns to the right: `[..., Q, C + Q]` (by key)."""
    steps, distances = position_scores.shape[-2:]
    padded = F.pad(position_scores, (0, steps)).flatten(-2)[..., :-steps]
    return padded.view(*position_scores.shape[:-1], distances + steps - 1)


def attention_mask(earlier_steps: Tensor, capacity: int) -> Tensor:
    """Which keys each query may attend to, bool `[blocks, B, 1, Q, capacity + Q]`.

    These are the keys of its step and of the last `capacity` steps of the same episode.

    Args:
        earlier_steps: number of earlier steps of the same episode at each step, `[T, B]`; not limited to `capacity`.
        capacity: length of the window.
    """
    steps, device = min(BLOCK, len(earlier_steps)), earlier_steps.device
    earlier = F.pad(earlier_steps, (0, 0, 0, -len(earlier_steps) % steps)).view(-1, steps, earlier_steps.shape[1])
    query, key = torch.arange(steps, device=device), torch.arange(capacity + steps, device=device)
    distance = query.unsqueeze(1) + capacity - key
    near = (distance >= 0) & (distance <= capacity)
    return (near & (distance <= earlier.transpose(1, 2).unsqueeze(-1))).unsqueeze(2)


class AttentionBlocks(FastForm):
    """Computes layers over all steps in blocks, with resets at any step. A single step computes no keys or values."""

    memory: GTrXL

    def unroll(self, xs: Tensor, starts: Tensor | None, state: State, resets: Sequence[int] | None) -> Unrolled:
        return Unrolled(*self.memory.through(xs, state, starts), {})

    def step(self, x: Tensor, state: State) -> MemoryStep:
        memory, count = self.memory, state["count"]
        positions = memory.get_buffer("positions")
        distances = torch.arange(memory.capacity, -1, -1, device=x.device)
        allowed = (distances <= count.unsqueeze(1)).unsqueeze(1)
        x, windows = memory.embedding(x), []
        for index, layer in enumerate(memory.layers):
            assert isinstance(layer, GTrXLLayer)
            inputs = torch.cat([state["memory"][:, index], x.unsqueeze(1)], 1)
            windows.append(inputs[:, 1:])
            x = layer.gated(x, self.read(layer, inputs, positions, allowed))
        new_state = {"memory": torch.stack(windows, 1), "count": (count.detach() + 1).clamp(max=memory.capacity)}
        return MemoryStep(x, new_state, {})

    def read(self, layer: GTrXLLayer, inputs: Tensor, positions: Tensor, allowed: Tensor) -> Tensor:
        """The heads' read-outs, `[B, width]`: q · (W_k n) is computed as (W_kᵀ q) · n, and Σ a (W_v n) as W_v Σ a n.

        Args:
            layer: one of the memory's layers.
            inputs: its window and the current input, `[B, capacity + 1, width]`.
            positions: R, largest distance first.
            allowed: bool `[B, 1, capacity + 1]`, the steps of this episode.
        """
        normed, heads = layer.norm(inputs), layer.heads
        q = layer.query(normed[:, -1])
        by_head = (q.shape[0], heads, -1)
        keys, values = (
            part.view(heads, -1, part.shape[1]) for part in layer.key_value.weight.chunk(2)
        )  # [h, d, width]
        key_queries = torch.einsum("bhd,hdw->bhw", (q + layer.key_bias).view(by_head), keys)
        position_keys = layer.position(positions).view(len(positions), heads, -1)
        position_scores = torch.einsum("bhd,phd->bhp", (q + layer.position_bias).view(by_head), position_keys)
        scores = (key_queries @ normed.mT + position_scores) / math.sqrt(keys.shape[1])
        weights = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min).softmax(-1)
        return torch.einsum("bhw,hdw->bhd", weights @ normed, values).flatten(1)


@register_memory("gtrxl")
class GTrXL(Memory):
    """GTrXL with GRU-type gating (Parisotto et al., "Stabilizing Transformers for Reinforcement Learning", ICML 2020).

    Each of `num_layers` layers attends to its inputs of the last `capacity` steps, M, and to the current one, E:

        Y_t = g_1(E_t, ReLU(RelativeAttention(LayerNorm([M_t ; E_t]))))
        E'_t = g_2(Y_t, ReLU(f(LayerNorm(Y_t))))         f: two linear layers with a ReLU between them

    with layer norms only on the inputs of submodules (identity map reordering), gates g (`GRUGate`) and, in every head,
    the relative positions of Transformer-XL (Dai et al. 2019):

        score(i, j) = (q_i · k_j + q_i · W_R R_{i-j} + u · k_j + v · W_R R_{i-j}) / √d

    The first E is a linear embedding of the input. Gradients flow through M within a rollout and stop at its beginning,
    as with the paper's stop-gradient.

    State: `memory` `[B, num_layers, capacity, hidden_size]`, newest step last; `count` `[B]`, number of filled steps.

    Args:
        input_size: F, width of the input.
        hidden_size: width of the layers and of the output, a multiple of `heads` and of 2.
        num_layers: number of layers.
        heads: attention heads per layer.
        capacity: number of earlier steps that a layer attends to; L layers depend on up to L `capacity` steps.
        expansion: hidden width of f relative to `hidden_size`.
        gate_bias: initial b_g; with values above 0 the layers start close to the identity.

    Raises:
        ValueError: a size is below 1, or `hidden_size` is not a multiple of `heads` and of 2.
    """

    fast_form = AttentionBlocks

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 64,
        num_layers: int = 2,
        heads: int = 4,
        capacity: int = 64,
        expansion: int = 4,
        gate_bias: float = 2.0,
    ) -> None:
        super().__init__()
        at_least(1, num_layers=num_layers, heads=heads, capacity=capacity, expansion=expansion)
        if hidden_size < 1 or hidden_size % heads or hidden_size % 2:
            raise ValueError(f"hidden_size is {hidden_size}; it must be a multiple of heads, {heads}, and of 2")
        self.output_size, self.num_layers, self.capacity = hidden_size, num_layers, capacity
        self.embedding = nn.Linear(input_size, hidden_size)
        self.layers = nn.ModuleList(
            GTrXLLayer(hidden_size, heads, expansion * hidden_size, gate_bias) for _ in range(num_layers)
        )
        distances = torch.arange(capacity, -1, -1)
        angles = distances.unsqueeze(1) / 10_000 ** (torch.arange(0, hidden_size, 2) / hidden_size)
        self.register_buffer("positions", torch.cat([angles.sin(), angles.cos()], 1), persistent=False)  # R

    def initial_state(self, batch_size: int) -> State:
        memory = (self.num_layers, self.capacity, self.output_size)
        return self.zeros_state(batch_size, {"memory": memory, "count": ()})

    def forward(self, x: Tensor, state: State) -> MemoryStep:
        outputs, new_state = self.through(x.unsqueeze(0), state, None)
        return MemoryStep(outputs[0], new_state, {})

    def through(self, xs: Tensor, state: State, starts: Tensor | None) -> tuple[Tensor, State]:
        """Outputs of all steps, `[T, B, hidden_size]`, and the last state; resets may be at any step."""
        positions, episodes = self.get_buffer("positions"), Episodes.of(starts, state["count"], len(xs), self.capacity)
        allowed = attention_mask(episodes.earlier_steps, self.capacity)
        x, memory = self.embedding(xs), []
        for index, layer in enumerate(self.layers):
            history = torch.cat([state["memory"][:, index].transpose(0, 1), x])
            memory.append(episodes.buffer(history, self.capacity))
            x = layer(history, positions, allowed)
        count = (episodes.earlier_steps[-1] + 1).clamp(max=self.capacity)
        return x, {"memory": torch.stack(memory, 1), "count": count}

    def metrics(self, state: State) -> dict[str, Tensor]:
        """`used`: share of the window that is filled."""
        return {"used": state["count"] / self.capacity}

    def panels(self, state: State) -> dict[str, Panel]:
        """Attention weights of every head in the last step, and the window of the first layer."""
        memory, count = state["memory"][:1].detach(), state["count"][:1].detach()
        allowed = attention_mask((count - 1).unsqueeze(0), self.capacity - 1)
        weights = []
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, GTrXLLayer)
            rows = memory[:, index].transpose(0, 1)
            weights.append(layer.attention(rows, self.get_buffer("positions")[1:], allowed)[0].detach())
        shown = torch.cat(weights, 2)[0, 0, :, 0] * allowed[0, 0, :, 0]
        return {
            "attention": Panel(
                shown,
                "step in the window",
                "layer, head",
                (0.0, 1.0),
                "columns",
                about="attention weights of each head",
            ),
            "memory": Panel(memory[0, 0], "unit", "step in the window", about="inputs of the first layer, newest last"),
        }
