"""The temporal links of a DNC over time: the linkage is rewritten in place, and training does not keep it.

A linkage has N² numbers, so a step of a DNC costs what passing over it costs, and a graph that keeps it at every step
runs out of memory. Here

- one buffer holds the linkage and is updated in place; `follow` gives what reading needs of it, the vectors f and b;
- every so many steps a copy is kept, and between copies only what the updates were made of, O(N) a step. The backward
  pass makes the linkages between two copies again, from the earlier one on. (Undoing the updates instead would divide
  by 1 - w[i] - w[j], which may be zero.)
- autograd sees the linkage as a tensor of the right shape that holds nothing; its gradient is real, and handed down
  from step to step in one buffer.

Symbols as in `addressing.py`, of which `next_linkage` and `follow_links` are the plain form of what is here.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from policies.memories.dnc.links import PlainLinks

CACHED_BYTES = 4 * 2**20
"""How much of each linkage buffer is worked on at once on a CPU; several share the cache."""


class TapedLinks(PlainLinks):
    """As `PlainLinks`, with a linkage that is updated in place and recomputed in the backward pass.

    Args:
        linkage: L before the first step, `[B, H, N, N]`; left as it is.
        length: how many steps are expected: their root is how often a copy is kept. Any number may follow.
    """

    def __init__(self, linkage: Tensor, length: int) -> None:
        self._tape = _Linkage(linkage.detach(), max(1, math.isqrt(length)), torch.is_grad_enabled())
        self._ghost: Tensor = _Enter.apply(linkage)  # type: ignore[no-untyped-call]

    def follow(
        self, write_weights: Tensor, precedence: Tensor, read_weights: Tensor, starts: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        self._ghost, forward, backward = _Follow.apply(  # type: ignore[no-untyped-call]
            self._tape, self._ghost, write_weights, precedence, read_weights, starts
        )
        return forward, backward

    def current(self) -> Tensor:
        return self._tape.linkage.view(self._tape.shape)

    def final(self) -> Tensor:
        linkage: Tensor = _Leave.apply(self._tape, self._ghost)  # type: ignore[no-untyped-call]
        return linkage


class _Update(NamedTuple):
    """L_t = (rows - columns) ∘ L_{t-1} + w pᵀ; with k = 0 where an episode starts and else 1, G = B H:"""

    rows: Tensor
    """k (1 - w), `[G, N, 1]`."""
    columns: Tensor
    """k w, `[G, 1, N]`."""
    write_weights: Tensor
    """w, `[G, N, 1]`."""
    precedence: Tensor
    """p, `[G, 1, N]`."""


class _Linkage:
    """The linkage in one buffer, with the updates needed to recompute it. Independent of autograd.

    The linkages of a batch entry's write heads count as entries: `[G, N, N]` with G = B H. On a CPU torch's operations
    work on a few at a time, so that what one writes the next finds in the cache.
    """

    def __init__(self, linkage: Tensor, every: int, keep: bool) -> None:
        self.shape, self.every, self.keep = linkage.shape, every, keep
        self.linkage = self.room(linkage).copy_(linkage.flatten(0, 1))
        entries = len(self.linkage)
        at_once = entries
        if linkage.device.type == "cpu":
            at_once = max(1, CACHED_BYTES // (self.linkage[0].numel() * linkage.element_size()))
        self.chunks = [slice(begin, begin + at_once) for begin in range(0, entries, at_once)]
        self.scratch = self.room(linkage, min(at_once, entries))
        self.updates: list[_Update] = []
        self.copies: list[Tensor] = []
        """Before steps 0, `every`, 2 `every` ..."""
        self.remade: list[Tensor] = []
        """After the steps since copy number `remade_from`."""
        self.remade_from = -1

    def room(self, like: Tensor, entries: int | None = None) -> Tensor:
        """A blank buffer `[G, N, N]`, with rows at multiples of 64 bytes: matrix products are faster."""
        batch, heads, slots = self.shape[:3]
        return like.new_empty(entries or batch * heads, slots, -(-slots // 16) * 16)[:, :, :slots]

    def ghost(self) -> Tensor:
        """What autograd sees in place of the linkage."""
        return self.linkage.new_zeros(()).expand(self.shape)

    def step(
        self, write_weights: Tensor, precedence: Tensor, reads: Tensor, starts: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """L_{t-1} becomes L_t; f and b of w^r for each entry, `[G, R, N]` each."""
        w = write_weights.flatten(0, 1)
        rows, columns = 1 - w, w
        if starts is not None:
            kept = starts.logical_not().to(w.dtype).repeat_interleave(self.shape[1])[:, None]
            rows, columns = rows * kept, columns * kept
        parts = (part.contiguous() for part in (rows, columns, w, precedence.flatten(0, 1)))
        rows, columns, w, p = parts
        update = _Update(rows[..., None], columns[:, None], w[..., None], p[:, None])
        if self.keep:
            if len(self.updates) % self.every == 0:
                self.copies.append(self.room(w).copy_(self.linkage))
            self.updates.append(update)
        forward, backward = torch.empty_like(reads), torch.empty_like(reads)
        for chunk in self.chunks:
            self.apply(update, chunk, self.linkage, self.linkage)
            linkage = self.linkage[chunk]
            torch.bmm(reads[chunk], linkage.transpose(1, 2), out=forward[chunk])
            torch.bmm(reads[chunk], linkage, out=backward[chunk])
        return forward, backward

    def apply(self, update: _Update, chunk: slice, before: Tensor, after: Tensor) -> None:
        """Some entries of L_{t-1} to those of L_t."""
        rows, columns, w, p = (part[chunk] for part in update)
        after = after[chunk]
        torch.mul(before[chunk], torch.sub(rows, columns, out=self.scratch[: len(w)]), out=after)
        after.addcmul_(w, p).diagonal(dim1=1, dim2=2).zero_()

    def around(self, step: int) -> tuple[Tensor, Tensor]:
        """The linkages before and after a step."""
        number, index = divmod(step, self.every)
        if number != self.remade_from:
            updates = self.updates[number * self.every : (number + 1) * self.every]
            self.remade += [self.room(self.linkage) for _ in range(len(updates) - len(self.remade))]
            for chunk in self.chunks:
                before = self.copies[number]
                for update, after in zip(updates, self.remade, strict=False):
                    self.apply(update, chunk, before, after)
                    before = after
            self.remade_from = number
        return self.remade[index - 1] if index else self.copies[number], self.remade[index]

    def back(
        self, step: int, d_linkage: Tensor, reads: Tensor, d_forward: Tensor, d_backward: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The derivative of `step`: that of L_t becomes that of L_{t-1}; those of w^w, p and w^r for each entry."""
        update, (before, after) = self.updates[step], self.around(step)
        d_w, d_p, d_reads = (torch.empty_like(part) for part in (update.columns, update.precedence, reads))
        left, right = torch.cat([d_forward, reads], 1).transpose(1, 2), torch.cat([reads, d_backward], 1)
        for chunk in self.chunks:
            rows, columns, w, p = (part[chunk] for part in update)
            d, linkage = d_linkage[chunk], after[chunk]
            scratch = self.scratch[: len(d)]
            # f = L w^r, b = Lᵀ w^r
            torch.bmm(d_forward[chunk], linkage, out=d_reads[chunk])
            d_reads[chunk].baddbmm_(d_backward[chunk], linkage.transpose(1, 2))
            d.baddbmm_(left[chunk], right[chunk]).diagonal(dim1=1, dim2=2).zero_()
            # L_t = (k (1 - w) - k wᵀ) ∘ L_{t-1} + w pᵀ, where rows + columns = k
            moved = torch.mul(d, before[chunk], out=scratch)
            d_scale = (moved.sum(2) + moved.sum(1)).unsqueeze(1) * (rows.transpose(1, 2) + columns)
            torch.sub(torch.bmm(p, d.transpose(1, 2)), d_scale, out=d_w[chunk])
            torch.bmm(w.transpose(1, 2), d, out=d_p[chunk])
            d.mul_(torch.sub(rows, columns, out=scratch))
        return d_w, d_p, d_reads


class _Enter(torch.autograd.Function):
    """The linkage before the first step becomes a ghost."""

    @staticmethod
    def forward(ctx: Any, linkage: Tensor) -> Tensor:
        return linkage.new_zeros(()).expand_as(linkage)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_linkage: Tensor) -> Tensor:
        return d_linkage


class _Follow(torch.autograd.Function):
    """A step of the tape: L_{t-1} (as a ghost), w^w_t, p_{t-1}, w^r_{t-1} to L_t (as a ghost), f_t, b_t."""

    @staticmethod
    def forward(
        ctx: Any,
        tape: _Linkage,
        ghost: Tensor,
        write_weights: Tensor,
        precedence: Tensor,
        read_weights: Tensor,
        starts: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.tape, ctx.step = tape, len(tape.updates)
        ctx.set_materialize_grads(False)
        reads = read_weights.repeat_interleave(tape.shape[1], 0)
        ctx.save_for_backward(reads)
        # detached: the tape must not hold the graph that holds the tape
        ways = tape.step(write_weights.detach(), precedence.detach(), reads.detach(), starts)
        forward, backward = (way.view(*tape.shape[:2], *way.shape[1:]) for way in ways)
        return tape.ghost(), forward, backward

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_linkage: Tensor | None, d_forward: Tensor | None, d_backward: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        tape, (reads,) = ctx.tape, ctx.saved_tensors
        # ours to write to: it comes from the next step or from `_Leave`, which made it
        d_linkage = tape.room(reads).zero_() if d_linkage is None else d_linkage.flatten(0, 1)
        ways = (torch.zeros_like(reads) if way is None else way.flatten(0, 1) for way in (d_forward, d_backward))
        d_w, d_p, d_reads = tape.back(ctx.step, d_linkage, reads, *ways)
        d_w, d_p = (part.view(tape.shape[:3]) for part in (d_w, d_p))
        d_reads = d_reads.view(*tape.shape[:2], *d_reads.shape[1:]).sum(1)
        return None, d_linkage.view(tape.shape), d_w, d_p, d_reads, None


class _Leave(torch.autograd.Function):
    """The ghost after the last step becomes the linkage."""

    @staticmethod
    def forward(ctx: Any, tape: _Linkage, ghost: Tensor) -> Tensor:
        ctx.tape = tape
        linkage: Tensor = tape.linkage.view(tape.shape).clone(memory_format=torch.contiguous_format)
        return linkage

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_linkage: Tensor) -> tuple[None, Tensor]:
        tape = ctx.tape
        return None, tape.room(d_linkage).copy_(d_linkage.flatten(0, 1)).view(tape.shape)
