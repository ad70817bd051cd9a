"""Memories, by name: `make_memory("mnm-p", input_size=...)`. A new one is a file here and a line below."""

from policies.memories import (  # noqa: F401  (each registers what it holds)
    d_ntm,
    dkm,
    dmn,
    dnc,
    gated_deltanet,
    gtrxl,
    identity,
    kanerva,
    lru,
    memn2n,
    mingru,
    mnm,
    multigrid,
    ntm,
    plastic,
    recurrent,
    salu,
    sdnc,
    stack_rnn,
)
from policies.memories.contract import FastForm, Memory, MemoryStep, Panel, State, Unrolled
from policies.memories.registry import built_in, make_memory, memory_class, register_memory, registered

__all__ = [
    "FastForm",
    "Memory",
    "MemoryStep",
    "Panel",
    "State",
    "Unrolled",
    "built_in",
    "make_memory",
    "memory_class",
    "register_memory",
    "registered",
]
