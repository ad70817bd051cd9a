"""What the paper looks at to see how MNM uses its memory: the similarity of keys and values over time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from policies.memories.contract import Panel, State
from policies.memories.mnm.memory import MNM
from policies.memories.steps import reset, select


@torch.no_grad()
def similarity(memory: MNM, xs: Tensor, starts: Tensor | None, state: State) -> dict[str, Panel]:
    """Cosine similarity of what was read and written at every two steps, as in §4.2 and figure 5 of the MNM paper.

    Row t₂, column t₁ of a picture compares a vector of step t₂ with one of step t₁:

    - `read_value, write_value`: v^r_{t₂} and v^w_{t₁}; bright where what was stored at t₁ is retrieved at t₂ > t₁
      (figure 5a, and row 1 of 5b);
    - `write_value, write_value`: dark columns and rows where new content is written (row 2);
    - `write_key, write_key`: bright where a place in memory is written to again (row 3);
    - `read_key, write_key`: bright where a place written to at t₁ is asked for at t₂, one of the further combinations
      that the paper's text allows.

    With several heads a picture is the mean over heads of the similarity of head i to head i; v^r, which the heads
    share, is compared with each. The paper does not say how it treats heads.

    Args:
        memory: MNM-p or MNM-g.
        xs: inputs, `[T, B, F]`; only the first batch entry is looked at.
        starts: as in `time.unroll`, `[T, B]`; None: nothing starts here.
        state: the state before the first step.

    Returns:
        Pictures `[T, T]` with values in -1 ... 1, on the memory's device.
    """
    state = select(state, slice(1))
    initial = memory.initial_state(1)
    hidden, read_values = [], []
    for t, x in enumerate(xs[:, :1]):
        if starts is not None:
            state = reset(state, starts[t, :1], initial)
        state = memory(x, state).state
        hidden.append(state["hidden"][0])
        read_values.append(state["read_value"][0])
    keys, write_values, _ = memory.interact(torch.stack(hidden))
    vectors = {
        "read_key": keys[:, : memory.heads],
        "write_key": keys[:, memory.heads :],
        "read_value": torch.stack(read_values).unsqueeze(1).expand_as(write_values),
        "write_value": write_values,
    }
    unit = {name: F.normalize(value, dim=2).transpose(0, 1) for name, value in vectors.items()}  # [H, T, d]
    pairs = (
        ("read_value", "write_value"),
        ("write_value", "write_value"),
        ("write_key", "write_key"),
        ("read_key", "write_key"),
    )
    return {
        f"{row}, {column}": Panel(
            torch.bmm(unit[row], unit[column].transpose(1, 2)).mean(0),
            f"{column} of step",
            f"{row} of step",
            (-1.0, 1.0),
        )
        for row, column in pairs
    }
