"""Differentiable plasticity (Miconi et al. 2018)."""

from policies.memories.plastic.memory import HomogeneousPlastic, Plastic

__all__ = ["HomogeneousPlastic", "Plastic"]
