"""DynamicNGrams: predict the next bit of a source whose statistics are new in every episode."""

from __future__ import annotations

import math

import torch
from gymnasium import spaces
from torch import Tensor

from envs.single_env import single as _single
from envs.tasks.sequence.base import BitTask, Sequences


class DynamicNGrams(BitTask):
    """Predict every bit of a sequence that a random table of conditional probabilities makes.

    Description:
        Each episode draws 2^context probabilities from Beta(1/2, 1/2), one for each setting of the last `context` bits.
        The first `context` bits are fair coins; each later bit is 1 with the probability of the bits before it. To
        predict well, count what followed each context.

    Observation: `Box(float32)` `[1]`: the bit before the one to predict; 0 at the first step.

    Action: `MultiBinary(1)`: the next bit. `info["target"]` (int8 `[num_envs, 1]`) is that bit, `info["weight"]`
        (float32 `[num_envs]`) 1: every bit counts, the coins too.

    Reward: `[action == target] / length`.

    Termination: after `length` bits.

    Metrics:
        `error` (% of bits); beside it what the optimal estimator does on the same sequences. It takes the next bit for
        a 1 with probability (N1 + 1/2) / (N0 + N1 + 1), where N0 and N1 count the zeros and ones that followed this
        context before.
        `optimal_error`: % of bits that are not the likelier one for it, half for a tie: `error - optimal_error` is the
        policy's regret.
        `optimal_bits`: its cost, the sum of -log2 of its probability of each bit, in bits per sequence.

    Args:
        num_envs: number of environments.
        length: bits in a sequence, more than `context`.
        context: bits that the next one depends on, 1 to 16 (5 makes 6-grams).
        device: where everything lives.
        render_mode: None or "rgb_array".

    Scores:
        Without memory at best 0.537, by saying the last bit again: runs of equal bits lead to contexts that go on with
        the same bit, and those are visited longest. The optimal estimator returns 0.762 (an `optimal_error` of 23.8) at
        a cost of 133.3 bits per sequence. (All measured on 200,000 sequences.)

    Raises:
        ValueError: an argument is out of its range.

    Source: Graves, Wayne, Danihelka, "Neural Turing Machines" (arXiv 1410.5401, 2014), section 4.4: 6-grams, 200 bits;
        the estimator is its equation 10 (Murphy, 2012).
    """

    metric_names = ("error", "optimal_error", "optimal_bits")
    state_names = (*BitTask.state_names, "optimal")

    def __init__(
        self,
        num_envs: int = 1,
        *,
        length: int = 200,
        context: int = 5,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ) -> None:
        if not 1 <= context <= 16 or length <= context:
            raise ValueError(f"context is {context}, length {length}; expected 1 <= context <= 16 and length > context")
        super().__init__(
            num_envs, spaces.Box(0.0, 1.0, (1,)), spaces.MultiBinary(1), length, device, render_mode=render_mode
        )
        self.context = context

    def _sequences(self) -> Sequences:
        length, copies, contexts = self.length, self.num_envs, 2**self.context
        # The arcsine law: sin²(πU/2) is Beta(1/2, 1/2).
        table = (self._uniform(copies * contexts) * (math.pi / 2)).sin().square()
        draws = self._uniform(length, copies)
        ones, zeros = torch.full((2, copies * contexts), 0.5, device=self.device)
        bits, estimates = [], []
        first = self._copies * contexts  # where an environment's counts begin
        past = torch.zeros_like(first)  # the last bits as a number
        for step in range(length):
            if step < self.context:
                probability = estimate = torch.full((copies,), 0.5, device=self.device)
            else:
                place = first + past
                probability = table[place]
                estimate = ones[place] / (ones[place] + zeros[place])
            bit = (draws[step] < probability).float()
            if step >= self.context:
                ones.index_add_(0, place, bit)
                zeros.index_add_(0, place, 1.0 - bit)
            past = (2 * past + bit.long()) % contexts
            bits.append(bit)
            estimates.append(estimate)
        made = torch.stack(bits)
        self.optimal = torch.stack(estimates)  # its probability that a bit is 1, [T, N]
        inputs = torch.cat([torch.zeros_like(made[:1]), made[:-1]])[..., None]
        return Sequences(inputs, made[..., None].to(torch.int8), torch.ones_like(made))

    def _metrics(self, wrong: Tensor, asked: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        estimate, bit = self.optimal[self._elapsed], self.targets[self._elapsed, :, 0]
        of_bit = torch.where(bit == 1, estimate, 1.0 - estimate)
        missed = (of_bit < 0.5).float() + 0.5 * (of_bit == 0.5)
        return {
            "error": (100.0 * wrong, asked),
            "optimal_error": (100.0 * missed, asked.clone()),
            "optimal_bits": (-of_bit.log2(), self._ended()),
        }

    def _caption(self) -> str:
        return f"bit {self._elapsed} / {self.length}"


single = _single(DynamicNGrams)
