"""Neural Turing machine (Graves et al. 2014)."""

from policies.memories.ntm.memory import NTM

__all__ = ["NTM"]
