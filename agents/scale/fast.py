"""Which fast paths an agent takes: `--fast auto|off|compile|graph`.

Every fast path has a plain twin that it is tested against; they differ by rounding only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch

from policies.policy import MemoryActorCriticPolicy

if TYPE_CHECKING:
    from agents.learner import MemoryOnPolicyAlgorithm

Fast = Literal["auto", "off", "compile", "graph"]
Precision = Literal["float32", "bf16"]


def prepare(learner: MemoryOnPolicyAlgorithm) -> str:
    """Set a fresh policy up for the learner's `fast` and `precision`.

    Gives one line that says what could not be had and why, or nothing.

    - auto: the paths made by hand, and torch's kernels for whole sequences. Nothing is compiled: docs/performance.md
      has what it gained against what it takes to start.
    - off: plain steps and SB3's distributions throughout.
    - compile: as auto, and the memory's step goes through torch.compile; where that fails, as auto.
    - graph: as auto here; `agents.scale.cuda_graphs.replay` replays the iteration, or says why it cannot.

    With `precision` "bf16" whole sequences multiply in bfloat16 in memories that have a form for it: the LSTM, on an
    accelerator the GRU, and multigrid. That is PPO's replay, and what a supervised learner does where answers change
    nothing that is seen; acting, heads, loss and optimiser stay in float32. So the ratio of PPO's first minibatch is 1
    up to that rounding.

    Raises:
        ValueError: `precision` is none of the two, or is bf16 where nothing would use it.
    """
    policy, fast, precision, device = learner.policy, learner.fast, learner.precision, learner.device
    if precision not in get_args(Precision):
        raise ValueError(f"precision is {precision!r}, expected one of {', '.join(get_args(Precision))}")
    if precision == "bf16":
        if not learner.unrolls or fast == "off":
            raise ValueError(
                "precision is 'bf16', which is for whole sequences with fast paths: for PPO's replay, and "
                "for supervised where answers change nothing that is seen"
            )
        if not policy.memory.take_bf16():
            raise ValueError(f"precision is 'bf16', but {policy.memory_name} has no form for it on {device}")
    if fast == "off":
        policy.take_plain_twins()
    return _compile(policy, learner.n_envs if learner.env is not None else 1) if fast == "compile" else ""


def _compile(policy: MemoryActorCriticPolicy, copies: int) -> str:
    """torch.compile of the memory's step, tried out on one of `copies`; the reason where that fails."""
    memory = policy.memory
    if memory.input_kind != "vector" or memory.has_readers:
        return "fast is 'compile', which only memories that take a vector can be; going on as with auto"
    x = torch.zeros(copies, policy.features_extractor.features_dim, device=memory.device, dtype=memory.dtype)
    try:
        memory.compile()
        with torch.no_grad():
            memory(x, memory.initial_state(copies))
    except Exception as error:  # there may be no compiler, or the step may be more than it can take
        memory._compiled_call_impl = None
        reason = str(error).strip().splitlines() or [type(error).__name__]
        return f"fast is 'compile', but the step of {policy.memory_name} cannot be: {reason[0]}; going on as with auto"
    return ""
