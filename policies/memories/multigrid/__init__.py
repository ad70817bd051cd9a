"""Multigrid neural memory (Huynh et al. 2020)."""

from policies.memories.multigrid.memory import Multigrid

__all__ = ["Multigrid"]
