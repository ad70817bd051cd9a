"""Which fast forms an agent uses: `--fast auto|off|compile|graph`.

Every fast form is tested against a reference implementation; they differ only by rounding.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch

from policies.policy import MemoryActorCriticPolicy

Fast = Literal["auto", "off", "compile", "graph"]
Precision = Literal["float32", "bf16"]


def prepare(policy: MemoryActorCriticPolicy, fast: str, precision: str, sequences: bool, num_envs: int) -> str:
    """Sets up a new policy.

    Returns one line on what is not available and why; empty if everything is.

    - auto: custom fast forms, and torch's sequence kernels. Nothing is compiled: docs/performance.md compares the gain
      with the start-up time.
    - off: eager steps and SB3's distributions.
    - compile: as auto, with the memory's step compiled by torch.compile; if that fails, as auto.
    - graph: as auto; `agents.scale.cuda_graphs.replay` then replays the iteration, or says why it cannot.

    With `precision` "bf16" some memories multiply in bfloat16 when they process whole sequences: the LSTM, multigrid,
    and on an accelerator the GRU. Whole sequences occur in PPO's replay, and in supervised learning where actions do
    not affect observations. Acting, heads, loss and optimiser stay in float32, so the ratio of PPO's first minibatch is
    1 only up to rounding.

    Args:
        policy: of a learner.
        fast, precision: see above.
        sequences: whether the learner processes whole sequences.
        num_envs: number of environments.

    Raises:
        ValueError: `precision` is neither "float32" nor "bf16", or it is "bf16" and nothing would use it.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision is {precision!r}, expected one of {', '.join(get_args(Precision))}")
    if precision == "bf16":
        if fast == "off":
            raise ValueError("precision is 'bf16', which needs fast forms, but fast is 'off'")
        if not sequences:
            raise ValueError(
                "precision is 'bf16', which needs whole sequences: expected PPO or V-trace, or supervised in an "
                "environment whose observations do not depend on actions"
            )
        if not policy.memory.use_bf16():
            name = policy.memory_name
            raise ValueError(
                f"precision is 'bf16', but {name} does not support it on {policy.device}: expected 'float32'"
            )
        if policy.device.type == "cpu" and not multiplies_bf16():
            return "this processor has no instructions for bfloat16: precision='float32' is several times as fast on it"
    if fast == "off":
        policy.use_reference_implementations()
    return _compile(policy, num_envs) if fast == "compile" else ""


def multiplies_bf16() -> bool:
    """Whether PyTorch has fast products and convolutions in bfloat16 for this processor: x86 needs AVX-512."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _compile(policy: MemoryActorCriticPolicy, num_envs: int) -> str:
    """Compiles the memory's step and tries it on a batch of `num_envs`; returns the reason if that fails."""
    memory = policy.memory
    if memory.input_kind != "vector" or memory.has_readers:
        return "fast='compile' supports only memories with vector input; continuing with fast='auto'"
    x = torch.zeros(num_envs, policy.features_extractor.features_dim, device=memory.device, dtype=memory.dtype)
    try:
        memory.compile()
        with torch.no_grad():
            memory(x, memory.initial_state(num_envs))
    except Exception as error:  # no compiler, or the step cannot be compiled
        memory._compiled_call_impl = None
        reason = str(error).strip().splitlines() or [type(error).__name__]
        return f"torch cannot compile the step of {policy.memory_name} ({reason[0]}); continuing with fast='auto'"
    return ""
