"""What an agent's memory is worth: its score with the memory frozen, reset or exchanged, beside its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console

from agents.evaluation.controls import controlled
from agents.evaluation.scores import Score
from agents.evaluation.tables import print_table
from policies.policy import MemoryActorCriticPolicy

OWN, EXCHANGED = "its own", "another episode's"


def ablate(
    policy: MemoryActorCriticPolicy, own: Score, num_envs: int, every: int, score: Callable[[], Score]
) -> dict[str, Score]:
    """Scores by what was done to the memory.

    Args:
        policy: of the agent.
        own: its score with its memory as it is.
        num_envs: environments that play at once; with one there is no other episode to exchange with.
        every: steps between two resets.
        score: plays the episodes of `own` once more.

    Raises:
        ValueError: the memory has no state.
    """
    scores = {OWN: own}
    half = max(1, round(own.mean_length / 2))
    for label, control, steps in (
        (f"frozen after {half} steps", "frozen", half),
        ("frozen from the start", "frozen", 0),
        (f"reset every {every} steps", "reset", every),
        ("reset at every step", "reset", 1),
        (EXCHANGED, "exchanged", None),
    ):
        if (control == "exchanged" and num_envs < 2) or label == "reset every 1 steps":  # that is the next row
            continue
        with controlled(policy, control, steps=steps):  # type: ignore[arg-type]  # a literal of the tuple above
            scores[label] = score()
    return scores


def print_ablation(console: Console, memory: str, scores: Mapping[str, Score]) -> None:
    """The scores as a table, and what follows from them."""
    own = scores[OWN]
    headings = ["memory", "mean return", "change", *own.metrics]
    rows = [
        [
            label,
            str(score),
            "" if score is own else f"{score.mean - own.mean:+.3f}",
            *(f"{score.metrics[name]:.4g}" if name in score.metrics else "–" for name in own.metrics),
        ]
        for label, score in scores.items()
    ]
    print_table(console, f"{memory}: the score by what is done to its memory", headings, rows)
    console.print(verdict(scores), highlight=False)


def verdict(scores: Mapping[str, Score]) -> str:
    """Whether the memory is used, in a sentence: the intervals of the returns are compared."""
    own, other = scores[OWN], scores.get(EXCHANGED, scores["reset at every step"])
    how = "another episode's memory" if EXCHANGED in scores else "a memory reset at every step"
    if math.isnan(own.ci95):
        return "One episode gives no interval: use more --episodes to judge whether the memory is used."
    loss, noise = own.mean - other.mean, math.hypot(own.ci95, other.ci95)
    if loss > noise:
        return f"The memory is used: with {how} the return falls by {loss:.3f} (± {noise:.3f})."
    return f"No use of the memory was shown: with {how} the return changes by {-loss:+.3f}, within ± {noise:.3f}."


def as_json(scores: Mapping[str, Score]) -> dict[str, Any]:
    """For evaluation.json."""
    return {label: score.as_dict() for label, score in scores.items()}
