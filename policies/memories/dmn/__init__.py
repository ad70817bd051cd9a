"""Dynamic memory network (Kumar et al. 2016)."""

from policies.memories.dmn.memory import DMN

__all__ = ["DMN"]
