"""Checks a memory of another package against the contract, by one step when a policy is built."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from policies.memories.contract import Memory, MemoryStep, State

BATCH = 2


def try_step(memory: Memory, input_size: int | tuple[int, ...]) -> None:
    """Runs one step of a copy, on zeros. The state of random generators does not change.

    Raises:
        TypeError: the memory breaks the contract.
    """
    name = type(memory).__name__
    if not isinstance(getattr(memory, "output_size", None), int):
        raise TypeError(f"{name} has no output_size, expected __init__ to set it to the width of the output")
    if memory.device.type == "meta" or memory.has_readers:
        return
    memory = copy.deepcopy(memory)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        state = memory.initial_state(BATCH)
        _check_state(f"{name}.initial_state", state)
        before = {entry: value.clone() for entry, value in state.items()}
        shape = input_size if isinstance(input_size, tuple) else (input_size,)
        try:
            step: Any = memory(torch.zeros(BATCH, *shape, device=memory.device, dtype=memory.dtype), state)
        except RuntimeError as error:
            for entry, value in state.items():
                if value.is_floating_point() and value.dtype != memory.dtype:
                    raise TypeError(
                        f"{name}.initial_state gave {entry!r} of {value.dtype} for a memory of {memory.dtype}, "
                        "expected tensors made with dtype=self.dtype, device=self.device"
                    ) from error
            raise
    if not isinstance(step, MemoryStep):
        raise TypeError(
            f"{name}.forward gave a {type(step).__name__}, expected MemoryStep(output=..., state=..., losses={{}}) of "
            "policies.memories.contract"
        )
    if step.output.shape != (BATCH, memory.output_size):
        raise TypeError(
            f"{name}.forward gave an output of shape {tuple(step.output.shape)} for {BATCH} environments, expected "
            f"{(BATCH, memory.output_size)}, as output_size says"
        )
    _check_state(f"{name}.forward", step.state)
    theirs, ours = ({entry: tuple(value.shape) for entry, value in each.items()} for each in (step.state, before))
    if theirs != ours:
        raise TypeError(f"{name}.forward gave the state {theirs}, expected {ours}, as initial_state gives it")
    if any(not torch.equal(state[entry], value) for entry, value in before.items()):
        raise TypeError(f"{name}.forward writes to the state it is given, expected new tensors")


def _check_state(where: str, state: State) -> None:
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise TypeError(f"{where} gave a state of {type(state).__name__}, expected a dictionary of tensors")
    for entry, value in state.items():
        if value.shape[:1] != (BATCH,):
            raise TypeError(
                f"{where} gave {entry!r} of shape {tuple(value.shape)} for {BATCH} environments, expected the batch "
                f"first: ({BATCH}, ...)"
            )
