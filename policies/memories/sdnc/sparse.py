"""The memory and the links of a sparse DNC, as copies of which a step updates a few rows in place.

Rae et al., "Scaling Memory-Augmented Neural Networks with Sparse Reads and Writes", NIPS 2016 (arXiv:1610.09027): the
memory is in §3.2 and §3.4, the links in supplement D. The number of rows that a step changes is independent of N. Only
the exact searches for the nearest words and the least recently used slot pass over all slots, each as one operation.

Sizes: B batch, N slots, W word size, S entries of a write, K_L links per row. Weightings are sparse: slots and their
weights. A slot may occur several times in a weighting; its weights add up.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from policies.memories.shared.addressing import inverse_norms

NO_SLOT = -1
"""Slot index of an empty link."""

RETAINED_FLOOR = 1e-6
"""Minimum factor by which a write scales links in P: its logarithm must be finite."""


def copied(tensor: Tensor) -> Tensor:
    """A contiguous copy, which may be modified."""
    return tensor.clone(memory_format=torch.contiguous_format)


def row_offsets(tensor: Tensor) -> Tensor:
    """Offsets `[B, 1]` that turn slots `[B, S]` of `tensor` `[B, N, ...]` into rows of `[B * N, ...]`."""
    batch, size = tensor.shape[:2]
    return torch.arange(0, batch * size, size, device=tensor.device)[:, None]


def slot_totals(slots: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The total weight of each entry's slot, and which entries have the same slot.

    Args:
        slots, weights: a sparse weighting, `[B, S]` each.

    Returns:
        `[B, S]`, and bool `[B, S, S]`.
    """
    same = slots[:, :, None] == slots[:, None]
    return torch.where(same, weights[:, None], 0.0).sum(2), same


class Rows:
    """The memory M and the norms of its words; each write creates a new memory.

    Args:
        memory: M, `[B, N, W]`; not modified.
        inverse_norm: `inverse_norms` of its words, `[B, N]`; not modified.
    """

    def __init__(self, memory: Tensor, inverse_norm: Tensor) -> None:
        self.memory = memory
        self.inverse_norm = copied(inverse_norm.detach())
        self.offsets = row_offsets(memory)

    def write(self, slots: Tensor, weights: Tensor, word: Tensor) -> None:
        """Erases the slot of the last entry, then adds `weights` times `word`.

        Args:
            slots, weights: `[B, S]`.
            word: a, `[B, W]`.
        """
        rows = (slots + self.offsets).flatten()
        self.memory = self.written(rows, slots, weights, word)
        with torch.no_grad():
            words = self.memory.flatten(0, 1).index_select(0, rows)
            self.inverse_norm.scatter_(1, slots, inverse_norms(words).view_as(slots))

    def written(self, rows: Tensor, slots: Tensor, weights: Tensor, word: Tensor) -> Tensor:
        """M after a write; arguments as of `write`; `rows` `[B * S]`: the slots as rows of `[B * N, W]`."""
        dense = torch.zeros_like(self.memory[:, :, 0]).scatter_add(1, slots, weights)
        erased = torch.zeros_like(dense).scatter(1, slots[:, -1:], 1)
        return (1 - erased)[:, :, None] * self.memory + dense[:, :, None] * word[:, None]

    def read(self, slots: Tensor) -> Tensor:
        """The words at `slots` `[B, S]`: `[B * S, W]`."""
        return self.memory.flatten(0, 1).index_select(0, (slots + self.offsets).flatten())

    @torch.no_grad()
    def nearest(self, keys: Tensor, count: int) -> Tensor:
        """The slots whose words have the largest cosines with `keys` `[B, R, W]`: `[B, R, count]`. No gradient."""
        cosines = torch.bmm(keys, self.memory.transpose(1, 2)).mul_(
            self.inverse_norm[:, None]
        )  # the factor |key| does not change the order
        return cosines.topk(count).indices

    def release(self) -> Tensor:
        """M for the state. No write may follow."""
        return self.memory


class Links:
    """N, P and p of supplement D.1: the order in which slots were written. Not differentiated, as in the paper.

    N[i] contains the K_L strongest links from slot i to the slots written before it, P[i] those to the slots written
    after it, each as weights and slots. A write at j decays the links in row N[j], and the links to j in all rows of P,
    (20). To avoid a search of P, an entry of P is stored as the logarithm of its weight minus the value of
    `log_retained[j]` = Σ_t log(1 - w^W_t(j)) when it was stored; adding the current value gives the current weight.
    This is (20), except for `RETAINED_FLOOR`.

    Args:
        predecessors: N, `[B, N, 2, K_L]`: weights, then slots, `NO_SLOT` for empty links; not modified, as all others.
        successors: P, as N, with logarithms as above instead of weights.
        log_retained: `[B, N]`.
        precedence: p, `[B, 2, K_L]`: weights and slots.
    """

    NAMES = ("predecessors", "successors", "log_retained", "precedence")

    def __init__(self, predecessors: Tensor, successors: Tensor, log_retained: Tensor, precedence: Tensor) -> None:
        self.predecessors, self.successors = copied(predecessors.detach()), copied(successors.detach())
        self.log_retained, self.precedence = copied(log_retained.detach()), copied(precedence.detach())
        self.max_links = precedence.shape[2]
        self.offsets = row_offsets(log_retained)

    @torch.no_grad()
    def write(self, slots: Tensor, weights: Tensor) -> None:
        """Links the slots written with `weights` w^W `[B, S]` to those written before."""
        totals, same = slot_totals(slots, weights)
        unique = totals.masked_fill(same.tril(-1).any(2), 0)  # the total at the first entry of each slot, else 0
        remaining = 1 - totals
        before, before_slots = self.precedence.unbind(1)

        # (19): N(i, j) = (1 - w^W(i)) N(i, j) + w^W(i) p(j), in the written rows i
        rows = (slots + self.offsets).flatten()
        old = self.predecessors.view(-1, 2, self.max_links).index_select(0, rows).view(*slots.shape, 2, -1)
        new = totals[:, :, None] * before[:, None]
        linked = self.strongest(remaining[:, :, None] * old[:, :, 0], old[:, :, 1], new, before_slots[:, None])
        self.predecessors.view(-1, 2, self.max_links).index_copy_(0, rows, linked.flatten(0, 1))

        # (20): P(i, j) = (1 - w^W(j)) P(i, j) + w^W(j) p(i): every row decays, and those with p(i) > 0 also grow
        log_retained = self.log_retained.gather(1, slots).add_(remaining.clamp_min_(RETAINED_FLOOR).log_())
        self.log_retained.scatter_(1, slots, log_retained)
        used = before_slots >= 0  # empty entries of p are replaced by its first
        i = torch.where(used, before_slots, before_slots[:, :1]).clamp_min_(0).long()
        p_i = torch.where(used, before, before[:, :1])
        decayed, decayed_slots = self.after(i)
        # (11) has the same form: p = (1 - Σ_j w^W(j)) p + w^W
        decayed = torch.cat([decayed, ((1 - weights.sum(1, keepdim=True)) * before)[:, None]], 1)
        decayed_slots = torch.cat([decayed_slots, before_slots[:, None]], 1)
        new = torch.cat([p_i, torch.ones_like(p_i[:, :1])], 1)[:, :, None] * unique[:, None]
        linked = self.strongest(decayed, decayed_slots, new, slots.to(new.dtype)[:, None])
        self.precedence = linked[:, -1]
        linked = linked[:, :-1].flatten(0, 1)
        sums = self.retained(linked[:, 1].view_as(decayed_slots[:, :-1])).view(-1, self.max_links)
        linked[:, 0] = linked[:, 0].clamp_min(torch.finfo(linked.dtype).tiny).log_() - sums
        self.successors.view(-1, 2, self.max_links).index_copy_(0, (i + self.offsets).flatten(), linked)

    @torch.no_grad()
    def before(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of N at `slots` `[B, S]`: weights and slots, `[B, S, K_L]` each."""
        rows = self.predecessors.view(-1, 2, self.max_links).index_select(0, (slots + self.offsets).flatten())
        weights, linked = rows.view(*slots.shape, 2, -1).unbind(2)
        return weights, linked

    @torch.no_grad()
    def after(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of P, as `before`."""
        rows = self.successors.view(-1, 2, self.max_links).index_select(0, (slots + self.offsets).flatten())
        logs, linked = rows.view(*slots.shape, 2, -1).unbind(2)
        return (logs + self.retained(linked)).exp_().masked_fill_(linked < 0, 0), linked

    def products(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """P w and N w for weights w over all slots, `[B, R, N]` each. The cost is proportional to N."""
        all_slots = torch.arange(weights.shape[2], device=weights.device).expand(weights.shape[0], -1)
        by_slot = weights.transpose(1, 2).flatten(0, 1)  # [B * N, R]
        results = []
        for links, slots in (self.after(all_slots), self.before(all_slots)):
            rows = (slots.clamp_min(0).long().flatten(1) + self.offsets).flatten()
            linked_weights = by_slot.index_select(0, rows).view(*slots.shape, -1)  # [B, N, K_L, R]
            results.append((links[..., None] * linked_weights).sum(2).transpose(1, 2))
        return results[0], results[1]

    def retained(self, slots: Tensor) -> Tensor:
        """`log_retained` at `slots` `[B, ...]`; for empty links the value of slot 0."""
        return self.log_retained.gather(1, slots.clamp_min(0).long().flatten(1)).view(slots.shape)

    def strongest(self, weights: Tensor, slots: Tensor, new_weights: Tensor, new_slots: Tensor) -> Tensor:
        """The K_L largest weights of the sum of two sparse rows, with their slots, `[..., 2, K_L]`.

        A slot occurs at most once in `slots`; in `new_slots` it may occur again with weight zero.
        """
        same = slots[..., :, None] == new_slots[..., None, :]
        weights = weights + torch.where(same, new_weights[..., None, :], 0.0).sum(-1)
        new_weights = new_weights.masked_fill(same.any(-2), 0)
        weights, order = torch.cat([weights, new_weights], -1).topk(self.max_links)
        slots = torch.cat([slots, new_slots.expand_as(new_weights)], -1).gather(-1, order)
        slots = slots.masked_fill_(weights <= 0, NO_SLOT)
        # rounding can give weights below 0: (11) with a total write weight of 1
        return torch.stack([weights.clamp_min_(0), slots], -2)

    def reset(self, starts: Tensor, initial: Sequence[Tensor]) -> None:
        """As `steps.reset`; `initial` in the order of `NAMES`."""
        for name, first in zip(self.NAMES, initial, strict=True):
            value = getattr(self, name)
            torch.where(starts.view(-1, *[1] * (value.dim() - 1)), first, value, out=value)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, not copied."""
        return {name: getattr(self, name) for name in self.NAMES}
