"""Dynamic memory network: several passes of an attention GRU over the most recent facts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from policies.memories.contract import Memory, MemoryStep, Panel, State, Unrolled
from policies.memories.dmn.episode import attention_gru
from policies.memories.dmn.fast_episode import FastDMN
from policies.memories.recurrent.gru import GRU
from policies.memories.registry import register_memory
from policies.memories.shared.arguments import at_least, one_of
from policies.memories.shared.episode_buffer import Episodes

Attend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@register_memory("dmn")
class DMN(Memory):
    """Dynamic memory network (Kumar et al., "Ask Me Anything", ICML 2016), with a question at every step.

    Input module: a GRU over the inputs of the episode. Its state at each step is a fact c_t, like the state at the end
    of each sentence in the paper. The last `capacity` facts are stored, including the current one; a new one overwrites
    the oldest. Question module: a GRU over a one-word question, the current input; from a zero state that is
    q = (1 - z) tanh(W x + b), z = σ(W_z x + b_z). Episodic memory: passes i = 1 ... `passes` over the facts in order,

        z(c, m, q) = [c, m, q, c∘q, c∘m, |c-q|, |c-m|, cᵀW^b q, cᵀW^b m]
        g^i_t = σ(W² tanh(W¹ z(c_t, m^{i-1}, q) + b¹) + b²)
        h^i_t = g^i_t GRU(c_t, h^i_{t-1}) + (1 - g^i_t) h^i_{t-1},    e^i = h^i of the last fact
        m^i = GRU(e^i, m^{i-1}),  m^0 = q

    Gates of missing facts are 0. Output: the answer module's state; the policy's heads replace the paper's W^a. With
    supervision of the relevant facts, the paper stops when the gate selects an end-of-passes fact; without, it makes a
    fixed number of passes, as here.

    State: `hidden` `[B, 1, d]`, of the input module; `facts` `[B, capacity, d]`, oldest first, of which the last
    `count` `[B]` are filled and the others zero; `gates` `[B, passes, capacity]`, g of the last step, for the panels
    only. Facts in the state are not encoded again: gradients reach the input module through the facts of the same
    rollout.

    Args:
        input_size: F, width of the input.
        hidden_size: d, of all modules, which is also the output size.
        capacity: maximum number of stored facts; a pass is this many sequential GRU steps.
        passes: T_M; the paper's bAbI model takes up to 5.
        gate_size: units of the gate's hidden layer, not given in the paper; None: hidden_size.
        smooth: squares instead of absolute values, and no bilinear terms, in z, as in a public implementation whose |·|
            gives NaN for equal vectors; here its gradient is 0 there.
        answer: "memory": a = m of the last pass, the paper's a_0; "gru": a_1 = GRU([y_0, q], a_0), one step of the
            answer module, without y_0, because no word has been output.

    Raises:
        ValueError: a size is below 1, or answer is unknown.
    """

    fast_form = FastDMN
    chunk_size = 2**15
    """Maximum number of facts, over steps and batch, that are read together; longer sequences are read in chunks."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 64,
        capacity: int = 32,
        passes: int = 3,
        gate_size: int | None = None,
        smooth: bool = False,
        answer: Literal["memory", "gru"] = "memory",
    ) -> None:
        super().__init__()
        one_of("answer", answer, "memory", "gru")
        gate_size = hidden_size if gate_size is None else gate_size
        at_least(1, hidden_size=hidden_size, capacity=capacity, passes=passes, gate_size=gate_size)
        d = self.output_size = self.hidden_size = hidden_size
        self.capacity = capacity
        self.passes = passes
        self.smooth = smooth
        self.input = GRU(input_size, d)
        self.question = nn.Linear(input_size, 2 * d)  # z, then the candidate
        # column blocks of W¹, in the order of z
        self.blocks = [d] * 7 + ([] if smooth else [1, 1])
        self.gate_hidden = nn.Linear(sum(self.blocks), gate_size)
        self.gate_out = nn.Linear(gate_size, 1)
        self.bilinear = None if smooth else nn.Parameter(torch.empty(d, d).uniform_(-(d**-0.5), d**-0.5))  # W^b
        self.episode = nn.GRUCell(d, d)
        self.update = nn.GRUCell(d, d)
        self.answer = nn.GRUCell(d, d) if answer == "gru" else None

    def initial_state(self, batch_size: int) -> State:
        sizes = {
            "hidden": (1, self.hidden_size),
            "facts": (self.capacity, self.hidden_size),
            "count": (),
            "gates": (self.passes, self.capacity),
        }
        return self.zeros_state(batch_size, sizes)

    def forward(self, x: Tensor, state: State) -> MemoryStep:
        return self.answered(self.input(x, {"hidden": state["hidden"]}), x, state, attention_gru)

    def answered(self, encoded: MemoryStep, x: Tensor, state: State, attend: Attend) -> MemoryStep:
        """The part of a step after the input module, whose step is `encoded`."""
        result = self.ask(encoded.output.unsqueeze(0), encoded.state, x.unsqueeze(0), None, state, attend)
        return MemoryStep(result.outputs[0], result.state, {})

    def ask(
        self, facts: Tensor, hidden: State, xs: Tensor, starts: Tensor | None, state: State, attend: Attend
    ) -> Unrolled:
        """Answers the questions of T steps from the facts up to each step; facts are `[T, B, d]`.

        `attend`: `attention_gru`, or its fast form.
        """
        size, length, batch = self.capacity, len(xs), xs.shape[1]
        z, candidate = self.question(xs).chunk(2, 2)
        q = torch.sigmoid(-z) * torch.tanh(candidate)  # 1 - σ(z) = σ(-z)
        episodes = Episodes.of(starts, state["count"], length, size)
        history = torch.cat([state["facts"].transpose(0, 1), facts])
        read = history[1:]  # the last fact of a step's window is its own
        ages = torch.arange(size - 1, -1, -1, device=xs.device)
        filled = ages.view(-1, 1, 1) <= episodes.earlier_steps
        products = F.linear(read, self.episode.weight_ih, self.episode.bias_ih)
        in_gate = F.linear(read, self.gate_hidden.weight[:, : self.hidden_size], self.gate_hidden.bias)

        # for export, a single step must not depend on the batch size
        chunk = 1 if length == 1 else max(1, self.chunk_size // (size * batch))
        memories, gates = [], state["gates"]
        for begin in range(0, length, chunk):
            steps = slice(begin, min(begin + chunk, length))
            rows = slice(begin, steps.stop + size - 1)
            arguments = (read[rows], products[rows], in_gate[rows], q[steps], filled[:, steps], attend)
            if chunk < length and torch.is_grad_enabled():
                m, gates = checkpoint(self.recall, *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                m, gates = self.recall(*arguments)
            memories.append(m)
        output = torch.cat(memories)
        if self.answer is not None:
            output = self.answer(q.flatten(0, 1), output.flatten(0, 1)).view_as(output)
        new_state = {
            "hidden": hidden["hidden"],
            "facts": episodes.buffer(history, size),
            "count": (episodes.earlier_steps[-1] + 1).clamp(max=size),
            "gates": gates,
        }
        return Unrolled(output, new_state, {})

    def recall(
        self, facts: Tensor, products: Tensor, in_gate: Tensor, q: Tensor, filled: Tensor, attend: Attend
    ) -> tuple[Tensor, Tensor]:
        """All passes of `n` steps over their windows of N facts.

        Terms without m are computed once; terms of c alone are computed once for all windows that contain c.

        Args:
            facts: c, `[N - 1 + n, B, d]`.
            products: the facts' part of the episode's GRU, `[N - 1 + n, B, 3 d]`.
            in_gate: the part of W¹ z + b¹ that depends only on c, `[N - 1 + n, B, gate_size]`.
            q: `[n, B, d]`.
            filled: which facts of each window exist, `[N, n, B]`.
            attend: the attention function, see `ask`.

        Returns:
            m of the last pass, `[n, B, d]`, and the gates of the last step, `[B, passes, N]`.
        """
        _, w_m, w_q, w_cq, w_cm, w_dq, w_dm, *w_b = torch.split(self.gate_hidden.weight, self.blocks, 1)
        c = self.windows(facts)
        # weights of the terms that are linear in q or m, then W^b
        bilinear = [] if self.bilinear is None else [self.bilinear]
        from_q, from_m = (torch.cat([w, *bilinear]) for w in (w_q, w_m))
        compares_q, compares_m = torch.cat([w_cq, w_dq], 1).t(), torch.cat([w_cm, w_dm], 1).t()

        def compared(base: Tensor, other: Tensor, linear: Tensor, compares: Tensor, w_form: Tensor | None) -> Tensor:
            """`base` and the terms of W¹ z with q or m: linear, product, distance, bilinear form."""
            distance = (c - other).square() if self.smooth else (c - other).abs()
            both = torch.cat([c * other, distance], 3).flatten(0, 2)
            of_other = F.linear(other, linear)
            terms = torch.addmm(base.flatten(0, 2), both, compares).view(base.shape) + of_other[..., : len(w_m)]
            if w_form is None:
                return terms
            form = c.permute(1, 2, 0, 3) @ of_other[..., len(w_m) :].unsqueeze(3)  # [n, B, N, 1]
            return torch.addcmul(terms, form.permute(2, 0, 1, 3), w_form.squeeze(1))

        fixed = compared(self.windows(in_gate), q, from_q, compares_q, w_b[0] if w_b else None)
        m, gates = q, []
        for _ in range(self.passes):
            hidden = compared(fixed, m, from_m, compares_m, w_b[1] if w_b else None)
            gate = torch.sigmoid(self.gate_out(hidden.tanh())).squeeze(3) * filled
            e = attend(products, gate, self.episode.weight_hh, self.episode.bias_hh)
            m = self.update(e.flatten(0, 1), m.flatten(0, 1)).view_as(m)
            gates.append(gate[:, -1])
        return m, torch.stack(gates).permute(2, 0, 1)

    def windows(self, rows: Tensor) -> Tensor:
        """`[N - 1 + n, B, D]` to `[N, n, B, D]`, without a copy: entry j, t is row t + j."""
        return rows.unfold(0, self.capacity, 1).permute(3, 0, 1, 2)

    def metrics(self, state: State) -> dict[str, Tensor]:
        """`used`: share of filled facts; `gate`: mean gate over these facts and all passes."""
        count = state["count"]
        gate = state["gates"].sum(2).mean(1) / count.clamp(min=1)
        return {"used": count / self.capacity, "gate": gate}

    def panels(self, state: State) -> dict[str, Panel]:
        """Gates of each pass of the last step, and the stored facts."""
        return {
            "gates": Panel(
                state["gates"][0].detach(),
                "fact, oldest first",
                "pass",
                (0.0, 1.0),
                about="gate of each fact in each pass",
            ),
            "facts": Panel(
                state["facts"][0].detach(),
                "unit",
                "fact, oldest first",
                (-1.0, 1.0),
                about="stored facts",
            ),
        }
