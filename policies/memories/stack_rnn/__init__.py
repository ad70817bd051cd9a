"""Stack-augmented recurrent network (Joulin and Mikolov 2015)."""

from policies.memories.stack_rnn.memory import StackRNN

__all__ = ["StackRNN"]
