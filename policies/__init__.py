"""What decides and what remembers; imports neither envs nor agents."""
