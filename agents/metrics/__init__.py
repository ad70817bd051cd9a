"""What an iteration measures: rewards and episodes, task scores, the critic, and the one transfer to the host."""
