"""The temporal links of a DNC, one step after the other."""

from __future__ import annotations

from torch import Tensor

from policies.memories.shared.addressing import follow_links, next_linkage


class PlainLinks:
    """The linkage as autograd's own: every step makes a new one, and the graph keeps them all."""

    def __init__(self, linkage: Tensor) -> None:
        self._linkage = linkage

    def follow(
        self, write_weights: Tensor, precedence: Tensor, read_weights: Tensor, starts: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Make L_t, and follow it.

        Args:
            write_weights: w^w_t, `[B, H, N]`.
            precedence: p_{t-1}, `[B, H, N]`.
            read_weights: w^r_{t-1}, `[B, R, N]`.
            starts: where true, `[B]`, L_{t-1} is zero, as when an episode starts.

        Returns:
            f_t and b_t, `[B, H, R, N]` each.
        """
        if starts is not None:
            self._linkage = self._linkage.masked_fill(starts.view(-1, 1, 1, 1), 0)
        self._linkage = next_linkage(self._linkage, write_weights, precedence)
        return follow_links(self._linkage, read_weights)

    def current(self) -> Tensor:
        """L_t to look at or step on from, good until the next step."""
        return self._linkage

    def final(self) -> Tensor:
        """L_t with its graph, after the last step."""
        return self._linkage
