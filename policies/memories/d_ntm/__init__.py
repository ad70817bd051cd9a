"""Dynamic neural Turing machine (Gulcehre et al. 2016)."""

from policies.memories.d_ntm.memory import DNTM

__all__ = ["DNTM"]
