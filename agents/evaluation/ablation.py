"""Ablation of an agent's memory: scores with the memory intact, frozen, reset, or swapped with another episode's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console

from agents.evaluation.controls import controlled
from agents.evaluation.scores import Score
from agents.evaluation.tables import print_table, with_unit
from policies.policy import MemoryActorCriticPolicy

INTACT, EXCHANGED = "intact", "from another episode"


def ablate(
    policy: MemoryActorCriticPolicy, intact: Score, num_envs: int, every: int, play: Callable[[], Score]
) -> dict[str, Score]:
    """The score under each ablation, by label.

    Args:
        policy: the agent's policy.
        intact: the score with the intact memory.
        num_envs: number of parallel environments. With one there is no other episode to swap memories with.
        every: steps between two resets.
        play: plays the episodes of `intact` again and returns the score.

    Raises:
        ValueError: the memory has no state.
    """
    scores = {INTACT: intact}
    half = max(1, round(intact.mean_length / 2))
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
            scores[label] = play()
    return scores


def print_ablation(console: Console, memory: str, scores: Mapping[str, Score]) -> None:
    """Prints the scores as a table, and the conclusion.

    A score's parts, such as `error_qa1` beside `error`, have no column: twenty would not fit on a terminal.
    """
    intact = scores[INTACT]
    wholes = [name for name in intact.metrics if not any(name.startswith(f"{other}_") for other in intact.metrics)]
    headings = ["memory", "mean return", "change", *map(with_unit, wholes)]
    rows = [
        [
            label,
            str(score),
            "" if score is intact else f"{score.mean - intact.mean:+.3f}",
            *(f"{score.metrics[name]:.4g}" if name in score.metrics else "–" for name in wholes),
        ]
        for label, score in scores.items()
    ]
    print_table(console, f"{memory}: the score under each ablation of its memory", headings, rows)
    if len(wholes) < len(intact.metrics):
        console.print("The parts of the scores are in evaluation.json.", highlight=False)
    console.print(conclusion(scores), highlight=False)


def conclusion(scores: Mapping[str, Score]) -> str:
    """One sentence on whether the memory is used, from the confidence intervals of the returns."""
    intact, ablated = scores[INTACT], scores.get(EXCHANGED, scores["reset at every step"])
    ablation = "another episode's memory" if EXCHANGED in scores else "a memory reset at every step"
    if math.isnan(intact.ci95):
        return "One episode gives no interval: use more --episodes to judge whether the memory is used."
    loss, noise = intact.mean - ablated.mean, math.hypot(intact.ci95, ablated.ci95)
    if loss > noise:
        return f"The memory is used: with {ablation} the return falls by {loss:.3f} (± {noise:.3f})."
    change = round(-loss, 3) + 0.0  # not -0.0
    return f"No use of the memory was shown: with {ablation} the return changes by {change:+.3f}, within ± {noise:.3f}."


def as_json(scores: Mapping[str, Score]) -> dict[str, Any]:
    """For evaluation.json."""
    return {label: score.as_dict() for label, score in scores.items()}
