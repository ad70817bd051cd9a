"""Checks a memory of another package against the contract, by one step when a policy is built."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from policies.memories.contract import Memory, MemoryStep, Panel, State

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
    if type(memory).step is not Memory.step:
        raise TypeError(f"{name} overrides Memory.step, expected another name: policies call that method")
    memory = copy.deepcopy(memory).eval()
    sizes = _sizes(memory)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        state = memory.initial_state(BATCH)
        _check_state(f"{name}.initial_state", state)
        before = {entry: value.clone() for entry, value in state.items()}
        shape = input_size if isinstance(input_size, tuple) else (input_size,)
        x, generator = torch.zeros(BATCH, *shape, device=memory.device, dtype=memory.dtype), torch.get_rng_state()
        try:
            step: Any = memory(x, state)
        except RuntimeError as error:
            for entry, value in state.items():
                if value.is_floating_point() and value.dtype != memory.dtype:
                    raise TypeError(
                        f"{name}.initial_state returned {entry!r} of {value.dtype} for a memory of {memory.dtype}, "
                        "expected tensors made with dtype=self.dtype, device=self.device"
                    ) from error
            raise
        _check_result(name, memory, step, before)
        if any(not torch.equal(state[entry], value) for entry, value in before.items()):
            raise TypeError(f"{name}.forward writes to the state it is given, expected new tensors")
        _check_numbers(f"{name}.metrics", "metrics", memory.metrics(step.state))
        _check_panels(f"{name}.panels", memory.panels(step.state))
        if (after := _sizes(memory)) != sizes:
            changed = ", ".join(sorted({entry for entry, _ in sizes.items() ^ after.items()}))
            raise TypeError(
                f"{name}.forward creates or resizes parameters or buffers: {changed}; expected all of them from "
                "__init__, or a checkpoint could not be loaded"
            )
        if not torch.isfinite(step.output).all():
            raise TypeError(f"{name}.forward returned infinite or NaN numbers for zeros at the initial state")
        _check_gradient(name, memory, x, state)
        torch.set_rng_state(generator)
        if not torch.equal(memory(x, state).output, step.output):
            raise TypeError(
                f"{name}.forward gives another output when a step is repeated from the same state: expected everything "
                "that persists between steps in the state, not in attributes"
            )


def _check_gradient(name: str, memory: Memory, x: Tensor, state: State) -> None:
    """Checks that parameters can be learned from what a step returns."""
    if not any(parameter.requires_grad for parameter in memory.parameters()):
        return
    with torch.enable_grad():
        step = memory(x, state)
    results = (step.output, *step.state.values(), *step.losses.values())
    if not any(value.requires_grad for value in results):
        raise TypeError(
            f"{name}.forward returned results without gradients, so its parameters would not learn: expected a step "
            "without torch.no_grad() and detach()"
        )


def _sizes(module: nn.Module) -> dict[str, tuple[int, ...] | None]:
    """Shapes of parameters and saved buffers; None for those of lazy modules, which the first step gives a shape."""
    return {name: None if is_lazy(value) else tuple(value.shape) for name, value in module.state_dict().items()}


def _check_result(name: str, memory: Memory, step: Any, before: State) -> None:
    """Checks what a step returned; `before` is the state before it."""
    if not isinstance(step, MemoryStep):
        raise TypeError(
            f"{name}.forward returned a {type(step).__name__}, expected MemoryStep(output=..., state=..., losses={{}}) "
            "of policies.memories.contract"
        )
    if step.output.shape != (BATCH, memory.output_size):
        raise TypeError(
            f"{name}.forward returned an output of shape {tuple(step.output.shape)} for {BATCH} environments, expected "
            f"{(BATCH, memory.output_size)}, as output_size says"
        )
    if step.output.dtype != memory.dtype:
        raise TypeError(
            f"{name}.forward returned an output of {step.output.dtype} for a memory of {memory.dtype}, expected equal "
            "types"
        )
    _check_state(f"{name}.forward", step.state)
    theirs, ours = ({entry: tuple(value.shape) for entry, value in each.items()} for each in (step.state, before))
    if theirs != ours:
        raise TypeError(
            f"{name}.forward returned the state {theirs}, expected {ours}, as initial_state gives it: a buffer needs a "
            "fixed number of slots"
        )
    for entry, value in step.state.items():
        if value.dtype != before[entry].dtype:
            raise TypeError(
                f"{name}.forward returned {entry!r} of {value.dtype}, and initial_state gives it as "
                f"{before[entry].dtype}: expected equal types; make states with dtype=self.dtype, device=self.device"
            )
    _check_numbers(f"{name}.forward", "losses", step.losses)


def _check_state(where: str, state: Any) -> None:
    if not isinstance(state, dict):
        raise TypeError(f"{where} returned a state of {type(state).__name__}, expected a dictionary of tensors")
    for entry, value in state.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{where} returned {entry!r} of {type(value).__name__}, expected a tensor, batch first")
        if value.shape[:1] != (BATCH,):
            raise TypeError(
                f"{where} returned {entry!r} of shape {tuple(value.shape)} for {BATCH} environments, expected the "
                f"batch first: ({BATCH}, ...)"
            )


def _check_numbers(where: str, what: str, found: Any) -> None:
    """Checks losses or metrics: one number per environment by name."""
    if not isinstance(found, dict):
        raise TypeError(f"{where} returned {what} of {type(found).__name__}, expected a dictionary of tensors")
    for entry, value in found.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{where} returned {entry!r} of {type(value).__name__}, expected a tensor [B]")
        if value.shape != (BATCH,):
            raise TypeError(
                f"{where} returned {entry!r} of shape {tuple(value.shape)} for {BATCH} environments, expected one "
                f"number each: ({BATCH},)"
            )


def _check_panels(where: str, found: Any) -> None:
    if not isinstance(found, dict):
        raise TypeError(f"{where} returned a {type(found).__name__}, expected a dictionary of Panel")
    for entry, panel in found.items():
        if not isinstance(panel, Panel):
            raise TypeError(f"{where} returned {entry!r} of {type(panel).__name__}, expected a Panel")
        shape = tuple(getattr(panel.image, "shape", ()))
        if len(shape) != 2 and not (len(shape) == 3 and shape[2] == 3):
            raise TypeError(
                f"{where} returned {entry!r} with an image of shape {shape}, expected [H, W] or [H, W, 3] of the first "
                "environment"
            )
