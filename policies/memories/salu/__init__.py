"""LSTM with a soft-attention look-up table."""

from policies.memories.salu.memory import SALU

__all__ = ["SALU"]
