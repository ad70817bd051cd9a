"""LSTM and GRU."""

from policies.memories.recurrent.gru import GRU
from policies.memories.recurrent.lstm import LSTM

__all__ = ["GRU", "LSTM"]
