"""Sparse differentiable neural computer (Rae et al. 2016)."""

from policies.memories.sdnc.memory import SDNC

__all__ = ["SDNC"]
