"""`ReplayLearner`: base of learners that pass over a rollout several times, replaying the memory from its stored state.

A minibatch is a set of environments with all of their steps in order. The memory is unrolled over it from its state at
the start of the rollout, so nothing is padded. Only this start state was computed with earlier parameters.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from agents.collect import Collector, StepCollector
from agents.learner import MemoryOnPolicyAlgorithm
from agents.metrics.report import PackedMetrics, check_metrics
from agents.rollout import Rollout
from agents.scale import distributed

Number = float | Tensor
"""A number that may change from update to update; a tensor where a CUDA graph reads it."""


class ReplayLearner(MemoryOnPolicyAlgorithm):
    """Base of learners that replay; a subclass writes `loss`, and `learn_from`, which calls `run_epochs`.

    Its hyper-parameters have `n_epochs` and `n_minibatches`.
    """

    n_epochs: int
    n_minibatches: int | None
    """A number once the learner is built."""

    def collector(self) -> Collector:
        return StepCollector(self, targets=self.target_coef > 0, values=True, log_probs=True)

    def _setup_model(self) -> None:
        if missing := [name for name in ("n_epochs", "n_minibatches") if not hasattr(self, name)]:
            raise ValueError(f"{self.config_class.__name__} has no {missing[0]}, which a ReplayLearner needs")
        if self.n_minibatches is None:  # launches cost more than rows on a GPU
            self.n_minibatches = 1 if self.device.type == "cuda" else 4
        super()._setup_model()

    def _setup_env(self) -> None:
        super()._setup_env()
        assert self.n_minibatches is not None
        if self.n_envs < min(self.n_minibatches, self.all_envs):  # every rank gives its share to every minibatch
            raise ValueError(
                f"n_minibatches is {self.n_minibatches}, but each of the {distributed.size()} ranks has {self.n_envs} "
                f"environments: expected n_minibatches <= {self.n_envs}"
            )

    def loss(self, rollout: Rollout, *numbers: Number | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one minibatch and its parts by the names they are logged under."""
        raise NotImplementedError

    def run_epochs(
        self, rollout: Rollout, *numbers: float | None, stop_early: Callable[[dict[str, Tensor]], bool] | None = None
    ) -> dict[str, Tensor]:
        """`n_epochs` passes over a rollout, with one update per minibatch; returns the means of the metrics.

        Args:
            rollout: to learn from.
            numbers: for `loss`, such as a clip range that follows a schedule.
            stop_early: called after each pass with the means of its metrics; True ends the passes.
        """
        self.policy.set_training_mode(True)
        self.convert_first_values(rollout)
        assert self.n_minibatches is not None
        n_minibatches = min(self.n_minibatches, self.n_envs)
        results: list[PackedMetrics] = []

        def means(updates: list[PackedMetrics]) -> dict[str, Tensor]:
            return dict(zip(updates[0].names, torch.stack([each.numbers for each in updates]).mean(0), strict=True))

        for _ in range(self.n_epochs):
            minibatches = torch.randperm(self.n_envs, device=self.device).tensor_split(n_minibatches)
            results += [
                self.executor.minibatch(self.learn_minibatch, rollout, index, *numbers) for index in minibatches
            ]
            if stop_early is not None and stop_early(means(results[-n_minibatches:])):
                break
        return means(results)

    def learn_minibatch(self, rollout: Rollout, index: Tensor, *numbers: Number | None) -> PackedMetrics:
        """One update from the environments `index` `[n]` of a rollout; returns its metrics."""
        loss, parts = self.loss(rollout.environments(index), *numbers)
        check_metrics(type(self), parts)
        parts["train/grad_norm"] = self.update(loss)
        return PackedMetrics(tuple(parts), torch.stack([part.detach().float() for part in parts.values()]))
