"""REINFORCE for the discrete addresses of a D-NTM: for learners that know the return of each step.

A memory sees no reward while it steps, and A2C and PPO weigh the action's log-probability alone, so under them discrete
addressing learns by the straight-through gradient. A learner of one's own can do as the paper does:

    memory = make_memory("d-ntm", input_size=F, addressing="discrete", estimator="reinforce", entropy_coef=1e-3)
    reinforce = AddressReinforce(memory.output_size)
    unrolled, log_probs = unroll_addresses(memory, xs, starts, state)
    returns = ...                                             # [T, B]; the paper's is the log-likelihood of the answer
    loss = task_loss + sum(term.mean() for term in reinforce(returns, log_probs, unrolled.outputs).values())
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from policies.memories.contract import Memory, State, Unrolled
from policies.memories.time.recording import Recording


def unroll_addresses(memory: Memory, xs: Tensor, starts: Tensor | None, state: State) -> tuple[Unrolled, Tensor]:
    """As `time.unroll`, and the log-probability of the slots drawn at each step, `[T, B]`, with its graph."""
    recording = Recording(memory, state)
    for t, x in enumerate(xs):
        recording.step(x, None if starts is None else starts[t])
    log_probs = torch.stack([step.state["log_prob"] for step in recording.steps])
    return recording.unrolled(), log_probs


class AddressReinforce(nn.Module):
    """The paper's estimator for drawn slots, with its two baselines.

    Returns R are centred and scaled by running averages, R̃ = (R - b) / √(σ² + ε); from that a linear function of the
    memory's output is subtracted, b(x), which is fitted to R̃ by the Huber loss. What is left weighs the
    log-probability of the slots. The entropy term is the memory's own loss.

    Args:
        features: width of the memory's output.
        coef: λ_1, weight of the policy term.
        decay: of the running averages; 0.9 in the authors' code.
        huber_delta: δ, from where the baseline's loss grows linearly.
    """

    def __init__(self, features: int, coef: float = 1.0, decay: float = 0.9, huber_delta: float = 1.0) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; it must be at least 0 and below 1")
        if huber_delta <= 0:
            raise ValueError(f"huber_delta is {huber_delta}; it must be above 0")
        self.coef, self.decay, self.huber_delta = coef, decay, huber_delta
        self.baseline = nn.Linear(features, 1)
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("variance", torch.zeros(()))
        self.register_buffer("updates", torch.zeros(()))

    def forward(self, returns: Tensor, log_probs: Tensor, outputs: Tensor) -> dict[str, Tensor]:
        """The terms `policy` and `baseline`, `[T, B]` each, to be minimised; the running averages move on.

        Args:
            returns: R, what followed each step, `[T, B]`.
            log_probs: from `unroll_addresses`, `[T, B]`.
            outputs: of the memory, `[T, B, features]`; the baseline sends no gradient into them.
        """
        returns = returns.detach()
        mean, variance, updates = (self.get_buffer(name) for name in ("mean", "variance", "updates"))
        updates += 1
        # averages that start at 0 are too small by 1 - decay^n
        grown = 1 - self.decay**updates
        mean += (1 - self.decay) * (returns.mean() - mean)
        spread = (returns - mean / grown).square().mean()
        variance += (1 - self.decay) * (spread - variance)
        scaled = (returns - mean / grown) / (variance / grown + 1e-6).sqrt()
        error = scaled - self.baseline(outputs.detach()).squeeze(2)
        size = error.abs()
        huber = torch.where(size <= self.huber_delta, error.square(), self.huber_delta * (2 * size - self.huber_delta))
        return {"policy": -self.coef * error.detach() * log_probs, "baseline": huber}
