"""Kanerva++ (Ramapuram et al. 2021), as a policy's memory and as a generative model."""

from policies.memories.kanerva.memory import KanervaMemory

__all__ = ["KanervaMemory"]
