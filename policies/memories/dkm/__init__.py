"""Dynamic Kanerva machine (Wu et al. 2018)."""

from policies.memories.dkm.memory import DKM, write

__all__ = ["DKM", "write"]
