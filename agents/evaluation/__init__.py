"""Evaluation: scores of an agent, breakdowns of its errors, and the command that shows them."""

from agents.evaluation.scores import Score, check_spaces, evaluate, play, random_actions, random_score

__all__ = ["Score", "check_spaces", "evaluate", "play", "random_actions", "random_score"]
