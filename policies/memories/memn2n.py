"""End-to-end memory network over a bounded buffer of inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from policies.memories.contract import FastForm, Memory, MemoryStep, Panel, State, Unrolled
from policies.memories.registry import register_memory
from policies.memories.shared.arguments import at_least, one_of
from policies.memories.shared.episode_buffer import Episodes
from policies.memories.shared.numbers import focus


class MemN2NForm(FastForm):
    """Computes all steps together, because the memory contains only inputs.

    The history is read in chunks of `capacity` steps, so that time and memory are linear in T. Resets are masks; there
    is no synchronisation.
    """

    memory: MemN2N

    def unroll(self, xs: Tensor, starts: Tensor | None, state: State, resets: Sequence[int] | None) -> Unrolled:
        size, length = self.memory.capacity, len(xs)
        episodes = Episodes.of(starts, state["count"], length, size)
        history = torch.cat([state["memories"].flip(1).transpose(0, 1), xs])
        by_entry, counts, questions = history.transpose(0, 1), episodes.earlier_steps.t(), xs.transpose(0, 1)
        outputs, attention = [], torch.empty(0)
        for begin in range(0, length, size):
            chunk = slice(begin, min(begin + size, length))
            band = _SequenceMemories(by_entry[:, begin : chunk.stop + size], size)
            output, attention = self.memory.read(questions[:, chunk], counts[:, chunk], band)
            outputs.append(output)
        new_state = {
            "memories": episodes.buffer(history, size).flip(1),
            "count": (episodes.earlier_steps[-1] + 1).clamp(max=size),
            "attention": attention[:, :, -1],
        }
        return Unrolled(torch.cat(outputs, 1).transpose(0, 1), new_state, {})


@register_memory("memn2n")
class MemN2N(Memory):
    """End-to-end memory network (Sukhbaatar et al., NeurIPS 2015) over the last inputs of the episode.

    The memories x_1 ... x_N are the inputs *before* the current one, most recent first, as the paper numbers sentences.
    The question is the current input. Each of `hops` hops attends to the memories and adds its read-out to u:

        u^1 = B q                                               question
        p_i = softmax_i(u^k · (A^k x_i + T_A^k(i)))             addresses, eq. (1), with §4.1's temporal encoding
        o^k = Σ_i p_i (C^k x_i + T_C^k(i))                      eq. (2)
        u^{k+1} = u^k + o^k  or  H u^k + o^k                    eq. (4), §2.2

    The output is u^{K+1} = u^K + o^K. The policy's heads replace the paper's answer layer W; they are not tied to C^K.
    At an episode's first step the memory is empty and o = 0. As in the paper, there are no biases.

    State: `memories` `[B, capacity, F]`, inputs, most recent first, zero beyond the first `count` `[B]`; `attention`
    `[B, hops, capacity]`, p of the last step, for the panels only.

    Omitted: position encoding, which weights the words of a sentence, because an input is one vector; random noise
    (10 % empty memories during training), because a replay would draw other noise and PPO's ratio would not start at
    1; the ReLU on half of the units, used for language modelling; the linear start (initial training without softmax),
    because the learner would have to decide when to end it.

    Args:
        input_size: F, width of the input.
        hidden_size: d, which is also the output size. The paper uses 20 for one bAbI task, 50 for all jointly.
        capacity: N, maximum number of stored inputs; a new one replaces the oldest. The paper reads 50 sentences.
        hops: K, number of hops.
        tying: "adjacent": A^{k+1} = C^k and B = A^1, so there are K + 1 embeddings; "layer-wise": A and C are the same
            in all hops, B is separate, and H maps u from hop to hop, as in an RNN. T_A and T_C are tied like A and C.

    Raises:
        ValueError: a size is below 1, or tying is unknown.
    """

    fast_form = MemN2NForm

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 64,
        capacity: int = 50,
        hops: int = 3,
        tying: Literal["adjacent", "layer-wise"] = "adjacent",
    ) -> None:
        super().__init__()
        one_of("tying", tying, "adjacent", "layer-wise")
        at_least(1, hidden_size=hidden_size, capacity=capacity, hops=hops)
        self.output_size = hidden_size
        self.input_size = input_size
        self.capacity = capacity
        self.hops = hops
        adjacent = tying == "adjacent"
        # Adjacent: A^1 = B, then C^1 = A^2 and so on up to C^K. Layer-wise: A, C, B.
        self.embeddings = nn.Parameter(torch.empty(hops + 1 if adjacent else 3, hidden_size, input_size))
        self.temporal = nn.Parameter(torch.empty(hops + 1 if adjacent else 2, capacity, hidden_size))
        self.between = None if adjacent else nn.Parameter(torch.empty(hidden_size, hidden_size))  # H
        self.used = [(k, k + 1) for k in range(hops)] if adjacent else [(0, 1)] * hops
        """Indices of the embeddings A^k and C^k."""
        self.question = 0 if adjacent else 2
        """Index of the embedding B."""
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.1)  # §4.2

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        state_dict.pop(f"{prefix}linear", None)  # saved by versions with the linear start
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def initial_state(self, batch_size: int) -> State:
        sizes = {"memories": (self.capacity, self.input_size), "count": (), "attention": (self.hops, self.capacity)}
        return self.zeros_state(batch_size, sizes)

    def forward(self, x: Tensor, state: State) -> MemoryStep:
        memories, count = state["memories"], state["count"].detach()
        output, attention = self.read(x.unsqueeze(1), count.unsqueeze(1), _StepMemories(memories))
        new_state = {
            "memories": torch.cat([x.unsqueeze(1), memories[:, :-1]], 1),
            "count": (count + 1).clamp(max=self.capacity),
            "attention": attention[:, :, 0],
        }
        return MemoryStep(output[:, 0], new_state, {})

    def read(
        self, questions: Tensor, count: Tensor, memories: _StepMemories | _SequenceMemories
    ) -> tuple[Tensor, Tensor]:
        """Runs all hops for n steps.

        The embeddings are applied to u and to the weighted mean of the memories, not to every memory:
        u · A x_i = (Aᵀ u) · x_i and Σ_i p_i C x_i = C Σ_i p_i x_i.

        Args:
            questions: q, `[B, n, F]`.
            count: number of memories at each step, `[B, n]`; at most `capacity` are read.
            memories: the memories of each step.

        Returns:
            u^{K+1}, `[B, n, d]`, and p of each hop, `[B, K, n, capacity]`.
        """
        ages = torch.arange(self.capacity, device=questions.device)
        filled = ages < count.unsqueeze(2)
        u, attention = questions @ self.embeddings[self.question].t(), []
        for a, c in self.used:
            scores = memories.scores(u @ self.embeddings[a]) + u @ self.temporal[a].t()
            # a finite number instead of minus infinity, which would give NaN if nothing is filled
            p = scores.masked_fill(~filled, torch.finfo(scores.dtype).min).softmax(2) * filled
            o = memories.mean(p) @ self.embeddings[c].t() + p @ self.temporal[c]
            u = (u if self.between is None else u @ self.between.t()) + o
            attention.append(p)
        return u, torch.stack(attention, 1)

    def metrics(self, state: State) -> dict[str, Tensor]:
        """`used`: share of filled memories; `read_focus`: `focus` of the attention over hops."""
        return {"used": state["count"] / self.capacity, "read_focus": focus(state["attention"])}

    def panels(self, state: State) -> dict[str, Panel]:
        """Attention of each hop in the last step, and the stored inputs."""
        return {
            "attention": Panel(
                state["attention"][0].detach(), "memory, newest first", "hop", about="attention of each hop"
            ),
            "memories": Panel(state["memories"][0].detach(), "feature", "memory, newest first", about="stored inputs"),
        }


class _StepMemories:
    """The memories `[B, N, F]` of a single step, newest first."""

    def __init__(self, memories: Tensor) -> None:
        self.memories = memories

    def scores(self, keys: Tensor) -> Tensor:
        """Dot products of keys `[B, n, F]` and memories, `[B, n, N]`."""
        return torch.bmm(keys, self.memories.transpose(1, 2))

    def mean(self, p: Tensor) -> Tensor:
        """The memories weighted by `p` `[B, n, N]`: `[B, n, F]`."""
        return torch.bmm(p, self.memories)


class _SequenceMemories(_StepMemories):
    """The memories of `n` steps: step t has rows t + N - 1 down to t of a history `[B, N + n, F]`.

    Products are computed with all N + n rows; the rows of each step lie in a band, which is gathered or scattered.
    """

    def __init__(self, history: Tensor, size: int) -> None:
        super().__init__(history)
        steps = torch.arange(history.shape[1] - size, device=history.device)
        ages = torch.arange(1, size + 1, device=history.device)
        self.rows = (steps.unsqueeze(1) + size - ages).expand(len(history), -1, -1)

    def scores(self, keys: Tensor) -> Tensor:
        return super().scores(keys).gather(2, self.rows)

    def mean(self, p: Tensor) -> Tensor:
        return super().mean(p.new_zeros(*p.shape[:2], self.memories.shape[1]).scatter(2, self.rows, p))
