"""Metrics of an iteration: rewards, episodes, task scores, the critic, and their one transfer to the host."""
