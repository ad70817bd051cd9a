"""Gated DeltaNet: a matrix memory with a forget gate and delta-rule writes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies.memories.contract import FastForm, Memory, MemoryStep, Panel, State, Unrolled
from policies.memories.registry import register_memory
from policies.memories.shared.arguments import at_least
from policies.memories.shared.numbers import rms

CHUNK = 32
"""Number of steps of a sequence that are computed together."""
NORM_EPS = 1e-6
"""Added to squared norms of queries and keys."""


class GatedDeltaRule(nn.Module):
    """The token mixer of a block; symbols as in `GatedDeltaNet`.

    Args:
        width: width of inputs and outputs.
        heads: h, number of matrices.
        key_size, value_size: d_k and d_v.
        conv_size: length of the short convolution.
    """

    def __init__(self, width: int, heads: int, key_size: int, value_size: int, conv_size: int) -> None:
        super().__init__()
        self.heads, self.key_size, self.value_size, self.conv_size = heads, key_size, value_size, conv_size
        channels = heads * (2 * key_size + value_size)
        self.vectors = nn.Linear(width, channels, bias=False)  # W_q, W_k, W_v
        bound = 1 / math.sqrt(conv_size)
        self.convolution = nn.Parameter(torch.empty(conv_size, channels).uniform_(-bound, bound))
        self.rates = nn.Linear(width, 2 * heads, bias=False)  # W_α, W_β
        # as in Mamba2: decay rates from 0 to 16, times steps of 0.001 to 0.1
        self.decay_log = nn.Parameter(torch.empty(heads).uniform_(0.1, 16).log())
        step = torch.empty(heads).uniform_(math.log(0.001), math.log(0.1)).exp()
        self.step_bias = nn.Parameter(step.expm1().log())  # softplus of it is `step`
        self.gate = nn.Linear(width, heads * value_size, bias=False)  # W_g
        self.norm = nn.RMSNorm(value_size, eps=1e-5)
        self.output = nn.Linear(heads * value_size, width, bias=False)  # W_o

    def forward(
        self, u: Tensor, memory: Tensor, recent: Tensor, episode: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The block's output, S and the convolution's last inputs, after one step or a sequence.

        Args:
            u: `[B, width]`, or a sequence `[T, B, width]`.
            memory: S before, `[B, h, d_v, d_k]`.
            recent: the last inputs of the convolution, `[B, conv_size - 1, channels]`.
            episode: number of episodes started up to each step of a sequence, `[T, B]`.
        """
        if episode is not None:
            return self.sequence(u, memory, recent, episode)
        window = torch.cat([recent, self.vectors(u).unsqueeze(1)], 1)
        q, k, v = self.split((window * self.convolution).sum(1))
        log_alpha, beta = self.rates_of(u)
        memory = log_alpha.exp()[..., None, None] * memory
        error = v - (memory @ k.unsqueeze(-1)).squeeze(-1)
        memory = torch.addcmul(memory, (beta.unsqueeze(-1) * error).unsqueeze(-1), k.unsqueeze(-2))  # eq. (10)
        return self.read(u, (memory @ q.unsqueeze(-1)).squeeze(-1)), memory, window[:, 1:]

    def split(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k `[..., h, d_k]`, normalised, and v `[..., h, d_v]` from the convolution's output."""
        keys, values = self.heads * self.key_size, self.heads * self.value_size
        parts = torch.split(F.silu(mixed), [keys, keys, values], -1)
        q, k, v = (part.view(*part.shape[:-1], self.heads, -1) for part in parts)
        q, k = (part * (part.square().sum(-1, keepdim=True) + NORM_EPS).rsqrt() for part in (q, k))
        return q, k, v

    def rates_of(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """log α and β, `[..., h]`."""
        decay, write = self.rates(u).chunk(2, -1)
        return -self.decay_log.exp() * F.softplus(decay + self.step_bias), write.sigmoid()

    def read(self, u: Tensor, o: Tensor) -> Tensor:
        """The block's output for read-outs o, `[..., h, d_v]`."""
        gate = F.silu(self.gate(u)).view(o.shape)
        result: Tensor = self.output((self.norm(o) * gate).flatten(-2))
        return result

    # -- a whole sequence --------------------------------------------------------------------------------------------

    def sequence(self, u: Tensor, memory: Tensor, recent: Tensor, episode: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`forward` for a sequence."""
        history = torch.cat([recent.transpose(0, 1), self.vectors(u)])
        owner = F.pad(episode, (0, 0, self.conv_size - 1, 0))  # of each row of the history
        mixed = torch.zeros_like(history[: len(u)])
        for tap, weight in enumerate(self.convolution):
            span = slice(tap, tap + len(u))
            same = (owner[span] == episode).unsqueeze(-1)
            mixed = torch.addcmul(mixed, history[span] * same, weight)
        rest = slice(len(u), None)
        recent = history[rest] * (owner[rest] == episode[-1]).unsqueeze(-1)
        o, memory = delta_chunks(*self.split(mixed), *self.rates_of(u), memory, episode)
        return self.read(u, o), memory, recent.transpose(0, 1)


def delta_chunks(
    q: Tensor, k: Tensor, v: Tensor, log_alpha: Tensor, beta: Tensor, memory: Tensor, episode: Tensor
) -> tuple[Tensor, Tensor]:
    """All read-outs o_t = S_t q_t, `[T, B, h, d_v]`, and the last S, by the chunked WY form of §3.3 and appendix A.

    S_t = γ_t S_0 + Σ_{i≤t} (γ_t / γ_i) δ_i k_iᵀ with corrections δ_i = β_i (v_i − α_i S_{i-1} k_i) and γ_t = α_1 ⋯ α_t.
    The δ of a chunk solve a triangular system whose right-hand side alone depends on S_0. Ratios γ_t / γ_i are computed
    as differences of logarithms, and are 0 if an episode starts between i and t.

    Args:
        q, k, v: `[T, B, h, d]`.
        log_alpha, beta: `[T, B, h]`.
        memory: S before the first step, `[B, h, d_v, d_k]`.
        episode: number of episodes started up to each step, `[T, B]`.
    """
    length, missing = len(q), -len(q) % CHUNK

    def chunks(whole: Tensor) -> Tensor:
        """`[T, B, h, ...]` as `[N, B, h, C, ...]`, the last chunk padded with steps that change nothing."""
        whole = torch.cat([whole, whole.new_zeros(missing, *whole.shape[1:])]) if missing else whole
        return whole.view(-1, CHUNK, *whole.shape[1:]).movedim(1, 3)

    q, k, v, log_alpha, beta = (chunks(whole) for whole in (q, k, v, log_alpha, beta))
    episode = torch.cat([episode, episode[-1:].expand(missing, -1)]).view(-1, CHUNK, episode.shape[1])
    before = torch.cat([episode.new_zeros(1, episode.shape[2]), episode[:-1, -1]])  # before each chunk
    episode = episode.transpose(1, 2).unsqueeze(2)  # [N, B, 1, C]

    log_gamma = log_alpha.cumsum(-1)
    same_episode = (episode.unsqueeze(-1) == episode.unsqueeze(-2)).tril()  # i <= t and of the same episode
    ratios = (log_gamma.unsqueeze(-1) - log_gamma.unsqueeze(-2)).masked_fill(~same_episode, -math.inf).exp()
    gamma = log_gamma.exp() * (episode == before[:, :, None, None])
    system = beta.unsqueeze(-1) * (k @ k.mT) * ratios  # the solver takes its diagonal as 1
    right = beta.unsqueeze(-1) * torch.cat([v, gamma.unsqueeze(-1) * k], -1)
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    u, w = torch.split(solved, [v.shape[-1], k.shape[-1]], -1)  # δ = u - w S_0ᵀ
    k_left = ratios[..., -1, :].unsqueeze(-1) * k
    states, deltas = [], []
    for index, last_gamma in enumerate(gamma[..., -1, None, None]):
        states.append(memory)
        deltas.append(u[index] - w[index] @ memory.mT)
        memory = last_gamma * memory + deltas[-1].mT @ k_left[index]
    o = (gamma.unsqueeze(-1) * q) @ torch.stack(states).mT + (q @ k.mT * ratios) @ torch.stack(deltas)
    return o.movedim(3, 1).flatten(0, 1)[:length], memory


class DeltaChunks(FastForm):
    """Computes sequences in chunks of `CHUNK` steps, with resets at any step."""

    memory: GatedDeltaNet

    def unroll(self, xs: Tensor, starts: Tensor | None, state: State, resets: Sequence[int] | None) -> Unrolled:
        no_starts = torch.zeros(xs.shape[:2], dtype=torch.int64, device=xs.device)
        return Unrolled(*self.memory.through(xs, state, no_starts if starts is None else starts.cumsum(0)), {})


@register_memory("gated-deltanet")
class GatedDeltaNet(Memory):
    """Gated DeltaNet (Yang, Kautz, Hatamizadeh, "Gated Delta Networks: Improving Mamba2 with Delta Rule", 2024).

    Of each of h heads, with u_t the RMS norm of the block's input:

        q_t, k_t, v_t = SiLU(conv(W u))                 a causal convolution over `conv_size` steps; q, k of length 1
        α_t = exp(−A softplus(W_α u_t + b))             forget gate, in (0, 1)
        β_t = σ(W_β u_t)                                write strength
        S_t = S_{t-1} (α_t (I − β_t k_t k_tᵀ)) + β_t v_t k_tᵀ                                          (eq. 10)
        o_t = S_t q_t
        y_t = W_o (RMSNorm(o_t) ∘ SiLU(W_g u_t))        over all heads

    A block adds y and then a SwiGLU layer to its input, each after a norm (figure 1). A linear embedding precedes the
    first block; an RMS norm follows the last.

    State: `memory` `[B, num_layers, h, d_v, d_k]`, S; `recent` `[B, num_layers, conv_size - 1, h (2 d_k + d_v)]`, the
    last inputs of the convolution; both initially 0.

    Args:
        input_size: F, width of the input.
        hidden_size: width of the blocks and of the output.
        num_layers: number of blocks.
        heads: h, number of matrices per block.
        key_size: d_k.
        value_size: d_v; None: twice `key_size`.
        conv_size: length of the short convolution in steps, at least 2.
        expansion: width of the SwiGLU layer, relative to `hidden_size`.

    Raises:
        ValueError: a size is too small.
    """

    fast_form = DeltaChunks

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 128,
        num_layers: int = 2,
        heads: int = 2,
        key_size: int = 32,
        value_size: int | None = None,
        conv_size: int = 4,
        expansion: int = 2,
    ) -> None:
        super().__init__()
        at_least(1, hidden_size=hidden_size, num_layers=num_layers, heads=heads)
        at_least(1, key_size=key_size, value_size=value_size, expansion=expansion)
        at_least(2, conv_size=conv_size)
        self.output_size, self.num_layers = hidden_size, num_layers
        self.embedding = nn.Linear(input_size, hidden_size)
        value_size = value_size or 2 * key_size
        self.shapes = {
            "memory": (heads, value_size, key_size),
            "recent": (conv_size - 1, heads * (2 * key_size + value_size)),
        }
        self.rules = nn.ModuleList(
            GatedDeltaRule(hidden_size, heads, key_size, value_size, conv_size) for _ in range(num_layers)
        )
        self.norms, self.mlp_norms = (
            nn.ModuleList(nn.RMSNorm(hidden_size, eps=1e-5) for _ in range(num_layers)) for _ in range(2)
        )
        inner = expansion * hidden_size
        self.mlp_in = nn.ModuleList(nn.Linear(hidden_size, 2 * inner, bias=False) for _ in range(num_layers))
        self.mlp_out = nn.ModuleList(nn.Linear(inner, hidden_size, bias=False) for _ in range(num_layers))
        self.norm = nn.RMSNorm(hidden_size, eps=1e-5)

    def initial_state(self, batch_size: int) -> State:
        shapes = {name: (self.num_layers, *shape) for name, shape in self.shapes.items()}
        return self.zeros_state(batch_size, shapes)

    def forward(self, x: Tensor, state: State) -> MemoryStep:
        return MemoryStep(*self.through(x, state), {})

    def through(self, x: Tensor, state: State, *episode: Tensor) -> tuple[Tensor, State]:
        """The output and the last state, for one step; for a sequence if `episode` `[T, B]` counts the starts."""
        x, memories, recents = self.embedding(x), [], []
        for index, rule in enumerate(self.rules):
            u, memory, recent = self.norms[index](x), state["memory"][:, index], state["recent"][:, index]
            y, memory, recent = rule(u, memory, recent, *episode)
            x = x + y
            gate, value = self.mlp_in[index](self.mlp_norms[index](x)).chunk(2, -1)
            x = x + self.mlp_out[index](F.silu(gate) * value)
            memories.append(memory)
            recents.append(recent)
        return self.norm(x), {"memory": torch.stack(memories, 1), "recent": torch.stack(recents, 1)}

    def metrics(self, state: State) -> dict[str, Tensor]:
        """`memory_rms`: root mean square of S."""
        return {"memory_rms": rms(state["memory"])}

    def panels(self, state: State) -> dict[str, Panel]:
        """S of every head of every block, stacked, and the last inputs of the convolutions."""
        memory, recent = state["memory"][0].detach(), state["recent"][0].detach()
        return {
            "memory": Panel(
                memory.flatten(0, 2), "key unit", "block, head, value unit", about="fast weights S of every head"
            ),
            "recent": Panel(recent.flatten(0, 1), "channel", "block, step", about="last inputs of the convolutions"),
        }
