"""Memories by name: the built-in ones, and those of other packages with entry points in `engram.memories`."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

from policies.memories.checks import try_step
from policies.memories.contract import Memory
from policies.plugins import Registry

memories = Registry("memory", "memories", Memory)

register_memory = memories.register
"""Class decorator that registers a memory, as in `@register_memory("lstm")`; see `Registry.register`."""
registered = memories.names
built_in = memories.built_in
memory_class = memories.find


FORMER: dict[str, dict[str, tuple[str, dict[Any, Any]]]] = {
    "d-ntm": {"memory_size": ("slots", {}), "content_size": ("word_size", {})},
    "dkm": {"memory_size": ("slots", {}), "code_size": ("word_size", {}), "solve": ("variant", {"ridge": "paper"})},
    "dnc": {"controller_layers": ("num_layers", {}), "read_mode_order": ("variant", {})},
    "kanerva++": {"reads": ("read_heads", {})},
    "memn2n": {"embedding_size": ("hidden_size", {})},
    "ntm": {"memory_size": ("slots", {}), "read_first": ("variant", {False: "paper", True: "code"})},
}
"""Former names of arguments, with their current names and changed values."""


def current_arguments(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Converts a memory's arguments to their current names, with a warning about former ones.

    >>> current_arguments("lstm", {"hidden_size": 8})
    {'hidden_size': 8}
    """
    former = {old: new for old, new in FORMER.get(name, {}).items() if old in arguments}
    if former:
        renamed_to = ", ".join(f"{old} is {new}" for old, (new, _) in former.items())
        warnings.warn(f"memory {name!r}: arguments have new names: {renamed_to}", FutureWarning, stacklevel=3)
    renamed = {new: values.get(arguments[old], arguments[old]) for old, (new, values) in former.items()}
    return {key: value for key, value in arguments.items() if key not in former} | renamed


def make_memory(name: str, *, input_size: int | tuple[int, ...], fast: bool = True, **kwargs: Any) -> Memory:
    """Builds a memory by name.

    >>> import torch
    >>> from policies.memories import make_memory, registered
    >>> "lstm" in registered()
    True
    >>> memory = make_memory("lstm", input_size=5, hidden_size=8)
    >>> step = memory(torch.zeros(2, 5), memory.initial_state(2))
    >>> step.output.shape, sorted(step.state)
    (torch.Size([2, 8]), ['cell', 'hidden'])
    >>> make_memory("lstn", input_size=5)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: no memory is called 'lstn'; known: ...; did you mean 'lstm'?...

    Args:
        name: one of `registered()`.
        input_size: F, the width of one input vector, or the shape `(C, L)` or `(C, H, W)` of one input grid.
        fast: use the memory's fast form, if it has one; False: only its equations.
        kwargs: the memory's own arguments; see its class.

    Raises:
        ValueError: there is no such memory, or one of its arguments is out of its range.
        TypeError: it does not have an argument, or it is of another package and breaks the contract in its first step.
    """
    cls, kwargs = memory_class(name), current_arguments(name, kwargs)
    signature = inspect.signature(cls)
    try:
        signature.bind(input_size, **kwargs)
    except TypeError as error:
        raise TypeError(f"memory {name!r}: {error}; it takes {_arguments(signature)}") from None
    memory = cls(input_size, **kwargs)  # type: ignore[call-arg]
    if not cls.__module__.startswith("policies."):
        try_step(memory, input_size)
    memory.use_fast_form(fast)
    return memory


def _arguments(signature: inspect.Signature) -> str:
    """Argument names with their defaults, on one line."""
    return ", ".join(
        name if parameter.default is parameter.empty else f"{name}={parameter.default!r}"
        for name, parameter in signature.parameters.items()
        if name not in ("input_size", "queries")  # set by the policy
    )
