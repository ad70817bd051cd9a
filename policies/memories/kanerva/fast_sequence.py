"""Kanerva++ over a whole sequence at once.

Reads do not affect writes. A step depends on earlier ones only through a running sum, a seed and the features shifted
from step to step; everything else is computed for all steps together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from policies.memories.contract import State, Unrolled
from policies.memories.kanerva.encoder import Encoder, split_time
from policies.memories.shared.noise import fingerprint, next_seed
from policies.memories.shared.readers import ReaderForm
from policies.memories.steps import Queries


class Parts(Protocol):
    """The part of `policies.memories.kanerva.pooled.PooledKanerva` that is used here."""

    sample: bool
    encoder: Encoder

    def writes(self, x: Tensor) -> Tensor: ...

    def answer(
        self,
        x: Tensor,
        embedding: Tensor,
        written: Tensor,
        total: Tensor,
        count: Tensor,
        seed: Tensor | None,
        queries: Queries | None,
    ) -> tuple[Tensor, Tensor, Tensor | None, dict[str, Tensor]]: ...


class Sources(NamedTuple):
    """The source of the features that are shifted into each step."""

    rows: Tensor
    """`[T + 1, B]`: 0 is the state before the sequence, 1 the initial state, t + 2 step t; the last row is for the
    state after the sequence."""
    columns: Tensor
    """The batch entries, `[B]`."""

    @classmethod
    def of(cls, written: Tensor, starts: Tensor | None) -> Sources:
        """`written`, `starts`: bool `[T, B]`."""
        length, batch_size = written.shape
        steps = torch.arange(length, device=written.device).unsqueeze(1).expand(-1, batch_size)
        none = torch.full_like(steps[:1], -1)

        def last(happens: Tensor) -> Tensor:
            return torch.where(happens, steps, -1).cummax(0).values

        before = torch.cat([none, last(written)])  # the last step before this one that was written, or -1
        begins = torch.cat([last(starts), last(starts)[-1:]]) if starts is not None else none.expand(length + 1, -1)
        # an episode that starts within the sequence does not use earlier steps
        default = torch.where(begins < 0, 0, 1)
        rows = torch.where((before >= begins) & (before >= 0), before + 2, default)
        return cls(rows, torch.arange(batch_size, device=rows.device))

    def gather(self, carried: Tensor, features: Tensor) -> Tensor:
        """The shifted features that enter each step, then those of the state after the sequence, `[T + 1, B, ...]`.

        Args:
            carried: the shifted features of the state before the sequence, `[B, ...]`.
            features: the features of each step, `[T, B, ...]`.
        """
        return torch.cat([torch.stack([carried, torch.zeros_like(carried)]), features])[self.rows, self.columns]


def unroll_at_once(memory: Parts, xs: Tensor, starts: Tensor | None, state: State, queries: Queries | None) -> Unrolled:
    """As `time.unroll`; `starts` may be true anywhere."""
    length, batch_size = xs.shape[:2]
    written = split_time(memory.writes(xs.flatten(0, 1)), length, batch_size)
    sources = Sources.of(written > 0, starts)
    shift_state: State = {}

    def shift(place: int, features: Tensor) -> Tensor:
        if not memory.encoder.shift_shapes:
            return features
        moves, name = memory.encoder.shift_shapes[place][0], f"shift_{place}"
        moved = sources.gather(state[name], split_time(features[:, :moves], length, batch_size))
        shift_state[name] = moved[-1]
        return torch.cat([moved[:-1].flatten(0, 1), features[:, moves:]], 1)

    embeddings = memory.encoder.run(xs.flatten(0, 1), shift)
    added = written.unsqueeze(2) * split_time(embeddings, length, batch_size)
    seen = fingerprint(xs, dims=2) if memory.sample else None
    names = ["sum", "count", *(["seed"] if memory.sample else [])]
    running = {name: state[name] for name in names}
    history: dict[str, list[Tensor]] = {name: [] for name in names}
    for t in range(length):
        if starts is not None:
            running = {
                name: value.masked_fill(starts[t].view(-1, *[1] * (value.dim() - 1)), 0)
                for name, value in running.items()
            }
        running["sum"] = running["sum"] + added[t]
        running["count"] = running["count"] + written[t]
        if seen is not None:
            running["seed"] = next_seed(running["seed"], seen[t])
        for name, value in running.items():
            history[name].append(value)

    steps = {name: torch.stack(values).flatten(0, 1) for name, values in history.items()}
    questions = None if queries is None else {name: query.flatten(0, 1) for name, query in queries.items()}
    keys, output, grid, losses = memory.answer(
        xs.flatten(0, 1), embeddings, written.flatten(), steps["sum"], steps["count"], steps.get("seed"), questions
    )
    return Unrolled(
        split_time(output, length, batch_size),
        {**running, **shift_state, "keys": keys[-batch_size:]},
        {name: split_time(loss, length, batch_size) for name, loss in losses.items()},
        None if grid is None else split_time(grid, length, batch_size),
    )


class FastPooled(ReaderForm):
    """Computes all steps of a sequence at once."""

    memory: Any

    def unroll(
        self,
        xs: Tensor,
        starts: Tensor | None,
        state: State,
        resets: Sequence[int] | None,
        queries: Queries | None = None,
    ) -> Unrolled:
        return unroll_at_once(self.memory, xs, starts, state, queries)
