"""LSTM with a soft-attention look-up table (Munkhdalai et al. 2019)."""

from policies.memories.salu.memory import SALU

__all__ = ["SALU"]
