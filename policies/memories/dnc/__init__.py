"""Differentiable neural computer (Graves et al. 2016)."""

from policies.memories.dnc.memory import DNC

__all__ = ["DNC"]
