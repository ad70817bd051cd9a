"""Sparse differentiable neural computer: a step reads, writes and links K slots, independent of their number."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from policies.memories.contract import Memory, MemoryStep, Panel, State
from policies.memories.registry import register_memory
from policies.memories.sdnc.fast import FastSDNC
from policies.memories.sdnc.sparse import NO_SLOT, Links, Rows, copied, slot_totals
from policies.memories.shared.addressing import content_weights, inverse_norms, oneplus
from policies.memories.shared.arguments import at_least, one_of
from policies.memories.shared.numbers import focus
from policies.memories.shared.pictures import read_panel, vector_panel, write_panel
from policies.memories.steps import reset

SMALL = ("hidden", "cell", "read_vectors", "read_weights", "read_slots", "write_weights", "write_slots", "time")
"""Parts of the state that each step replaces; the others (`Rows`, `Links`, `last_access`) are updated in place."""

LARGEST_PICTURE = 512
"""Maximum number of slots for which links are shown as a slots × slots matrix."""


@register_memory("sdnc")
class SDNC(Memory):
    """Sparse DNC (Rae et al., NIPS 2016, arXiv:1610.09027), supplement D: reads and writes of SAM, with temporal links.

    An LSTM reads the input and the R words read last, and emits write and read parameters:

        w^W_t = α (γ w^R_{t-1} + (1 - γ) I^U)             slots read last, or the least recently used one     (5)
        M_t = (1 - I^U 1ᵀ) M_{t-1} + w^W_t aᵀ             that slot is erased before                          (8)
        N_t(i, j) = (1 - w^W(i)) N_{t-1}(i, j) + w^W(i) p_{t-1}(j)    written before i; K_L largest per row      (19)
        P_t(i, j) = (1 - w^W(j)) P_{t-1}(i, j) + w^W(j) p_{t-1}(i)    written after i; the same                  (20)
        p_t = (1 - Σ_i w^W(i)) p_{t-1} + w^W_t                        K_L largest                                (11)
        b = N_tᵀ w^r_{t-1},  f = P_tᵀ w^r_{t-1},  c = softmax of β cos(k, M_t) over the K words nearest to k
        w^r_t = K largest of π_1 b + π_2 c + π_3 f,  r_t = Σ_i w^r_t(i) M_t(i)                          for each head

    Choices where the paper is open or differs; docs/memories/sdnc.md has the reasons:

    - one write head, because p and N are defined for one; w^R is the mean of the heads' read weights;
    - a slot is used at t if the weights of all accesses to it, w^W + Σ_r w^r, exceed δ; I^U is the least recently used
      slot, and of several unused ones the one with the smallest index;
    - f and b are read from rows of P and N; equations (21) and (22) have N w and P w, the same products as with the
      DNC's L, but their cost grows with N (`link_reads`);
    - the nearest words are found by exact search over all slots; the paper also has approximate search.

    State: `hidden`, `cell` `[B, hidden_size]`; `read_vectors` `[B, R, word_size]`; `memory` `[B, N, word_size]` and
    `inverse_norm` of its words `[B, N]`; sparse weightings as weights and slots, `read_weights`, `read_slots`
    `[B, R, K]` and `write_weights`, `write_slots` `[B, R K + 1]`; `last_access` `[B, N]`, the time of a slot's last
    use, and `time` `[B, 1]`; `predecessors` (N), `successors` (P), `log_retained`, `precedence` (p) as in
    `sparse.Links`. Slots and times have the module's dtype: exact up to 2^24 in single precision.

    Args:
        input_size: F, width of the input.
        hidden_size: units of the controller.
        output_size: width of the output, a linear map of hidden state and read vectors; None: hidden_size.
        slots: N.
        word_size: W, width of a slot.
        read_heads: R, number of read heads.
        sparse_reads: K, number of slots that a head reads.
        sparse_links: K_L, number of links stored per slot in each of N and P.
        link_reads: "rows": f and b from the rows of P and N at the slots read last, at a cost independent of N;
            "products": N w and P w as in equations (21) and (22), at a cost proportional to N.
        access_threshold: δ in [0, 1): a weight above δ counts as use.
        memory_seed: seed of M_0: small random numbers, equal for all episodes, saved and never trained.

    Raises:
        ValueError: a size is below 1, slots is below sparse_reads, access_threshold is not in [0, 1), or link_reads is
            unknown.
    """

    fast_form = FastSDNC

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 100,
        output_size: int | None = None,
        slots: int = 256,
        word_size: int = 32,
        read_heads: int = 4,
        sparse_reads: int = 4,
        sparse_links: int = 8,
        link_reads: Literal["rows", "products"] = "rows",
        access_threshold: float = 0.005,
        memory_seed: int = 0,
    ) -> None:
        super().__init__()
        at_least(1, hidden_size=hidden_size, output_size=output_size, word_size=word_size)
        at_least(1, read_heads=read_heads, sparse_reads=sparse_reads, sparse_links=sparse_links)
        one_of("link_reads", link_reads, "rows", "products")
        if slots < sparse_reads:
            raise ValueError(f"slots is {slots}; it must be at least sparse_reads, {sparse_reads}")
        if not 0 <= access_threshold < 1:
            raise ValueError(f"access_threshold is {access_threshold}; it must be in [0, 1)")
        self.output_size = output_size or hidden_size
        self.hidden_size, self.slots, self.word_size = hidden_size, slots, word_size
        self.read_heads, self.sparse_reads, self.sparse_links = read_heads, sparse_reads, sparse_links
        self.link_reads, self.access_threshold = link_reads, access_threshold

        self.controller = nn.LSTMCell(input_size + read_heads * word_size, hidden_size)
        # k, β; a; α, γ; π
        self.splits = [read_heads * word_size, read_heads, word_size, 2, 3 * read_heads]
        self.interface = nn.Linear(hidden_size, sum(self.splits))
        self.output = nn.Linear(hidden_size + read_heads * word_size, self.output_size)

        # small, so that all cosines are nearly 0; random, because the order of equal slots depends on the device
        generator = torch.Generator().manual_seed(memory_seed)
        self.register_buffer("initial_memory", 1e-6 * torch.randn(slots, word_size, generator=generator))

    def initial_state(self, batch_size: int) -> State:
        heads, links, slots = self.read_heads, self.sparse_links, self.slots
        writes = heads * self.sparse_reads + 1

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, device=self.device, dtype=self.dtype)

        no_links = zeros(2, links)
        no_links[1] = NO_SLOT
        memory = self.get_buffer("initial_memory")
        state = {
            "hidden": zeros(self.hidden_size),
            "cell": zeros(self.hidden_size),
            "read_vectors": zeros(heads, self.word_size),
            "memory": memory,
            "inverse_norm": inverse_norms(memory),
            "read_weights": zeros(heads, self.sparse_reads),
            "read_slots": zeros(heads, self.sparse_reads),
            "write_weights": zeros(writes),
            "write_slots": zeros(writes),
            "last_access": torch.arange(-slots, 0, device=self.device, dtype=self.dtype),  # slot 0 is the oldest
            "time": zeros(1),
            "predecessors": no_links.expand(slots, -1, -1),
            "successors": no_links.expand(slots, -1, -1),
            "log_retained": zeros(slots),
            "precedence": no_links,
        }
        return {name: value.expand(batch_size, *value.shape) for name, value in state.items()}

    def forward(self, x: Tensor, state: State) -> MemoryStep:
        work = self.workspace(state, Rows)
        return MemoryStep(self.output(work.step(x)), work.release(), {})

    def workspace(self, state: State, rows: type[Rows]) -> Workspace:
        """A working copy of `state`, with a memory of class `rows`."""
        return Workspace(self, state, rows(state["memory"], state["inverse_norm"]))

    def metrics(self, state: State) -> dict[str, Tensor]:
        """`used`: share of slots used in this episode; `write_strength`, `read_focus`: as of `DNC`."""
        used = (state["last_access"] > 0).to(self.dtype).mean(1)
        written = state["write_weights"].sum(1)
        return {"used": used, "write_strength": written, "read_focus": focus(state["read_weights"])}

    def panels(self, state: State) -> dict[str, Panel]:
        """Memory, steps since each slot was used, weightings, and the links N and P.

        Links are a slots × slots matrix, or with more than `LARGEST_PICTURE` slots the K_L weights per slot.
        """
        with torch.no_grad():
            first = {name: value[:1].detach() for name, value in state.items()}
            links = Links(*(first[name] for name in Links.NAMES))
            all_slots = torch.arange(self.slots, device=links.precedence.device)[None]
            panels = {
                "memory": Panel(first["memory"][0], "word", "slot", about="what each slot holds"),
                "steps since use": vector_panel(
                    first["time"] - first["last_access"], "slot", limits=None, about="age of each slot"
                ),
                "read_weights": read_panel(self._dense(first["read_weights"], first["read_slots"])[0], "head"),
                "write_weights": write_panel(self._dense(first["write_weights"], first["write_slots"]), "write"),
            }
            for title, label, what, (weights, slots) in (
                ("links N", "written before", "slots written before each slot", links.before(all_slots)),
                ("links P", "written after", "slots written after each slot", links.after(all_slots)),
            ):
                if self.slots <= LARGEST_PICTURE:
                    panels[title] = Panel(self._dense(weights, slots)[0], label, "slot", (0.0, 1.0), about=what)
                else:
                    panels[title] = Panel(weights[0], f"{label}, strongest first", "slot", (0.0, 1.0), about=what)
            return panels

    def _dense(self, weights: Tensor, slots: Tensor) -> Tensor:
        """A sparse weighting `[..., S]` as a dense one, `[..., N]`."""
        empty = weights.new_zeros(*weights.shape[:-1], self.slots)
        return empty.scatter_add(-1, slots.clamp_min(0).long(), weights)


class Workspace:
    """A state over many steps: its large parts are copied once and updated in place.

    Args:
        sdnc: the memory.
        state: the state before the first step; not modified.
        rows: M and its norms.
    """

    def __init__(self, sdnc: SDNC, state: State, rows: Any) -> None:
        self.sdnc = sdnc
        self.small = {name: state[name] for name in SMALL}
        self.rows = rows
        self.links = Links(*(state[name] for name in Links.NAMES))
        self.last_access = copied(state["last_access"].detach())
        batch, heads = self.last_access.shape[0], sdnc.read_heads
        # buffers of `_select`: `scratch` is zero between calls; `order` numbers the candidates
        self.scratch = self.last_access.new_zeros(batch, heads, sdnc.slots)
        candidates = sdnc.sparse_reads * (1 + 2 * sdnc.sparse_links)
        self.order = torch.arange(candidates, device=self.scratch.device, dtype=self.scratch.dtype)

    def step(self, x: Tensor) -> Tensor:
        """Runs a step on `x` `[B, F]`; returns hidden state and read vectors, `[B, hidden_size + R W]`."""
        sdnc, small = self.sdnc, self.small
        heads = sdnc.read_heads
        inputs = torch.cat([x, small["read_vectors"].flatten(1)], 1)
        hidden, cell = sdnc.controller(inputs, (small["hidden"], small["cell"]))
        keys, strengths, word, gates, modes = sdnc.interface(hidden).split(sdnc.splits, 1)
        keys = keys.reshape(-1, heads, sdnc.word_size)

        # (5): w^W = α (γ w^R + (1 - γ) I^U); (8)
        alpha, gamma = gates.sigmoid().split(1, 1)
        weights, slots = small["read_weights"], small["read_slots"].detach().long()
        write_weights = alpha * torch.cat([gamma / heads * weights.flatten(1), 1 - gamma], 1)
        write_slots = torch.cat([slots.flatten(1), self.last_access.argmin(1, keepdim=True)], 1)
        self.rows.write(write_slots, write_weights, word)
        self.links.write(write_slots, write_weights.detach())

        # (2) over the K nearest words
        near = self.rows.nearest(keys.detach(), sdnc.sparse_reads)
        near_words = self.rows.read(near.flatten(1)).view(-1, sdnc.sparse_reads, sdnc.word_size)
        content = content_weights(near_words, keys.reshape(-1, 1, sdnc.word_size), oneplus(strengths).view(-1, 1))

        # π_1 b + π_2 c + π_3 f
        pi = modes.view(*strengths.shape, 3).softmax(2)
        read_links = self._follow_rows if sdnc.link_reads == "rows" else self._follow_products
        weights, slots = read_links(weights, slots, pi, content.view_as(near), near)

        # (4): r = Σ_i w^r(i) M(i)
        words = self.rows.read(slots.flatten(1)).view(-1, sdnc.sparse_reads, sdnc.word_size)
        read_vectors = (weights.view(-1, 1, sdnc.sparse_reads) @ words).view_as(keys)

        time = small["time"].detach() + 1
        self._record_access(torch.cat([write_slots, slots.flatten(1)], 1), write_weights, weights, time)
        self.small = {
            "hidden": hidden,
            "cell": cell,
            "read_vectors": read_vectors,
            "read_weights": weights,
            "read_slots": slots.to(time.dtype),
            "write_weights": write_weights,
            "write_slots": write_slots.to(time.dtype),
            "time": time,
        }
        return torch.cat([hidden, read_vectors.flatten(1)], 1)

    def _follow_rows(
        self, weights: Tensor, slots: Tensor, pi: Tensor, content: Tensor, near: Tensor
    ) -> tuple[Tensor, Tensor]:
        """w^r from b(j) = Σ_i w(i) N(i, j), f(j) = Σ_i w(i) P(i, j) and c, over the slots i that were read last.

        Args:
            weights, slots: w^r_{t-1}, `[B, R, K]` each.
            pi: π, `[B, R, 3]`.
            content, near: weights and slots of c, `[B, R, K]` each.

        Returns:
            Weights and slots of w^r_t, `[B, R, K]`.
        """
        read = slots.flatten(1)
        (before, before_slots), (after, after_slots) = self.links.before(read), self.links.after(read)
        linked = torch.cat([before, after], 2).view(*slots.shape, 2, -1)  # [B, R, K, 2, K_L]
        linked = (weights[..., None] * pi[:, :, None, 0::2])[..., None] * linked
        linked_slots = torch.cat([before_slots, after_slots], 2).clamp_min_(0).long()
        # candidate slots and their terms of w^r; a slot may occur several times
        candidates = torch.cat([near, linked_slots.view(*slots.shape[:2], -1)], 2)
        terms = torch.cat([pi[:, :, 1:2] * content, linked.flatten(2)], 2)
        slots = self._select(candidates, terms.detach())
        return torch.where(slots[..., None] == candidates[:, :, None], terms[:, :, None], 0.0).sum(3), slots

    def _follow_products(
        self, weights: Tensor, slots: Tensor, pi: Tensor, content: Tensor, near: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As `_follow_rows`, with b = P w (22) and f = N w (21)."""
        empty = torch.zeros_like(self.scratch)
        backward, forward = self.links.products(empty.scatter_add(2, slots, weights))
        content_w = empty.scatter(2, near, content)
        mixed = (torch.stack([backward, content_w, forward], 3) * pi[:, :, None]).sum(3)
        slots = mixed.detach().topk(self.sdnc.sparse_reads).indices
        return mixed.gather(2, slots), slots

    @torch.no_grad()
    def _select(self, candidates: Tensor, terms: Tensor) -> Tensor:
        """The K slots with the largest sums of `terms`, `[B, R, K]`, from slots and terms `[B, R, C]`."""
        scratch = self.scratch
        sums = scratch.scatter_add_(2, candidates, terms).gather(2, candidates)
        # keep one arbitrary occurrence of each slot
        order = self.order.expand_as(sums)
        repeated = scratch.scatter_(2, candidates, order).gather(2, candidates) != order
        scratch.scatter_(2, candidates, 0)
        largest = sums.masked_fill_(repeated, -1).topk(self.sdnc.sparse_reads).indices
        return candidates.gather(2, largest)

    @torch.no_grad()
    def _record_access(self, slots: Tensor, write_weights: Tensor, read_weights: Tensor, time: Tensor) -> None:
        """Sets the last access of every slot where w^W + w^R exceeds δ to `time`."""
        totals, _ = slot_totals(slots, torch.cat([write_weights, read_weights.flatten(1)], 1))
        latest = torch.where(totals > self.sdnc.access_threshold, time, self.last_access.gather(1, slots))
        self.last_access.scatter_(1, slots, latest)

    def reset(self, starts: Tensor) -> None:
        """As `steps.reset`."""
        initial = self.sdnc.initial_state(len(starts))
        self.small = reset(self.small, starts, initial)
        self.rows.reset(starts, initial["memory"], initial["inverse_norm"])
        self.links.reset(starts, [initial[name] for name in Links.NAMES])
        torch.where(starts[:, None], initial["last_access"], self.last_access, out=self.last_access)

    def state(self) -> State:
        """The current state, valid until the next step; the memory without its graph."""
        rest = {"memory": self.rows.memory.detach(), "inverse_norm": self.rows.inverse_norm}
        return self.small | rest | {"last_access": self.last_access} | self.links.tensors()

    def release(self) -> State:
        """The state with its graph. No step may follow."""
        return self.state() | {"memory": self.rows.release()}
