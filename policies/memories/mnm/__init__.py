"""Metalearned neural memory (Munkhdalai et al. 2019)."""

from policies.memories.mnm.memory import MNMg, MNMp

__all__ = ["MNMg", "MNMp"]
