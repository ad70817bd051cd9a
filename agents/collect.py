"""Collectors fill a rollout, step by step or as one sequence. A learner chooses one in its method `collector`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from agents.bootstrap import FinalValues
from agents.metrics.non_finite import raise_if_not_finite
from agents.sb3.callback_locals import Step, tell
from agents.sb3.training_env import TrainingEnv
from envs.tensor_env import Info, Obs
from policies.memories.steps import MemoryStep

Act = Callable[[int, Tensor | None], Tensor]
"""Chooses the action `[N, *action_shape]` of step `t` for the observation in `model.rollout_state`, given a mask of
valid choices."""
After = Callable[[int, Obs, Info], bool]
"""Called after step `t` with the next observation and its `info`; False ends the rollout."""


class Collector:
    """Fills the rollout of a learner, from the learner's `rollout_state` and back into it.

    Args:
        model: the learner, with its policy and environments.
        targets: store the right answers, and act greedily.
    """

    sequences: ClassVar[bool] = False
    """Whether the memory processes a rollout as one sequence while collecting."""
    graph: bool = False
    """Whether the memory's graph is kept, for a learner that back-propagates through the rollout itself."""

    def __init__(self, model: TrainingEnv, targets: bool = False) -> None:
        self.model, self.targets = model, targets

    def collect(self, callback: BaseCallback) -> bool:
        """Fills the rollout; False if a callback asked to stop. `on_rollout_start` was already called."""
        raise NotImplementedError

    def begin(self) -> None:
        """Before the first step of a rollout."""
        model = self.model
        model.policy.set_training_mode(self.graph)
        model.rollout_began = model.num_timesteps
        model.rollout_state.detach()
        model.rollout.begin(model.rollout_state.memory)

    def play(self, act: Act, after: After | None = None, see: bool = True, count: bool = True) -> bool:
        """The step loop of a rollout; False if `after` ended it.

        Args:
            act: chooses actions.
            after: called after each step.
            see: store observations, starts, masks and targets.
            count: store rewards, ends and metrics.
        """
        model, rollout, env, policy = self.model, self.model.rollout, self.model.tensor_env, self.model.policy
        shown = env.describe() if self.targets or rollout.masks is not None else {}  # beside the observation to come
        answers: list[tuple[Tensor, Tensor]] = []
        for t in range(len(rollout.rewards)):
            now = model.rollout_state
            if see:
                if now.may_start:
                    rollout.resets.append(t)
                rollout.starts[t] = now.starts
                rollout.write_obs(t, now.obs)
                if rollout.masks is not None:
                    rollout.masks[t] = shown["action_mask"]
                if self.targets:
                    answers.append((shown["target"], shown["weight"]))
            try:
                action = act(t, None if rollout.masks is None else rollout.masks[t])
            except RuntimeError as error:
                raise_if_not_finite(model, error)
                raise
            before = time.perf_counter()
            new_obs, rewards, terminated, truncated, shown = env.step(policy.actions.to_env(action))
            model.env_seconds += time.perf_counter() - before
            if count:
                rollout.actions[t] = action
                rollout.rewards[t], rollout.terminated[t], rollout.truncated[t] = rewards, terminated, truncated
                rollout.hear(t, shown)
                model.task_metrics.add(shown)
            now.obs, now.starts, now.may_start = new_obs, terminated | truncated, "final_obs" in shown
            if after is not None and not after(t, new_obs, shown):
                return False
            if after is not None and model.visited():
                model.give_up(t)
                shown = env.describe()
        if answers:
            rollout.targets, rollout.weights = map(torch.stack, zip(*answers, strict=True))
        return True


class StepCollector(Collector):
    """One step after another: encode, remember, act.

    Args:
        model, targets: as in `Collector`.
        graph: keep the memory's graph, for a learner that back-propagates through the rollout itself.
        values: also compute values, and the learner's estimates from them (`TrainingEnv.estimate`).
        log_probs: also the log-probabilities of the actions.
    """

    def __init__(
        self,
        model: TrainingEnv,
        targets: bool = False,
        graph: bool = False,
        values: bool = False,
        log_probs: bool = False,
    ) -> None:
        super().__init__(model, targets)
        self.graph, self.values = graph, values
        self.log_probs = log_probs or (values and model.executor.tells_later)  # then callbacks read them afterwards

    def collect(self, callback: BaseCallback) -> bool:
        model, rollout, policy, env = self.model, self.model.rollout, self.model.policy, self.model.tensor_env
        started, in_envs = time.perf_counter(), model.env_seconds
        self.begin()
        outputs, grids = list[Tensor](), list[Tensor]()
        length, all_envs = len(rollout.rewards), model.all_envs
        finals = FinalValues(policy, rollout) if self.values else None
        recording = None
        if self.graph:
            room = min(length, env.horizon or 1)
            recording = policy.segments.record(model.rollout_state.memory, room, length, model.n_envs)
        step: MemoryStep

        def act(t: int, mask: Tensor | None) -> Tensor:
            nonlocal step
            now = model.rollout_state
            with torch.set_grad_enabled(self.graph):
                step = policy.remember(now.obs, now.memory, now.resets, recording)
            with torch.no_grad():
                action = policy.act(step.output, self.targets, step.grid, mask)
            outputs.append(step.output.detach())
            if policy.draws_maps and step.grid is not None:
                grids.append(step.grid.detach())
            now.memory = step.state
            return action

        known: dict[str, Any] = {"self": model, "env": model.env, "callback": callback, "n_rollout_steps": length}
        known |= {"rollout": rollout, "rollout_buffer": rollout}

        def after(t: int, new_obs: Obs, info: Info) -> bool:
            if finals is not None and env.truncates and model.rollout_state.may_start:  # some learn late that they do
                finals.add(t, info["final_obs"], model.rollout_state.memory)
            model.num_timesteps += all_envs
            callback.update_locals({**known, "t": t, **Step(model, t, step, new_obs, info).names()})
            if not callback.on_step():
                return False
            if finals is not None and model.visited():
                finals.finish()
            return True

        if not self.play(act, after):
            return False
        if finals is not None:
            finals.finish()
        if self.values:
            self._judge(torch.stack(outputs), torch.stack(grids) if policy.draws_maps else None)
        if recording is not None:
            unrolled = recording.unrolled()
            rollout.latents, rollout.grids, rollout.losses = unrolled.outputs, unrolled.grids, unrolled.losses
        model.scores = model.task_metrics.sums()
        model.memory_seconds += time.perf_counter() - started - (model.env_seconds - in_envs)
        callback.on_rollout_end()
        return True

    @torch.no_grad()
    def _judge(self, latents: Tensor, maps: Tensor | None) -> None:
        """Computes values and log-probabilities that acting did not need, for all steps at once."""
        model, rollout, policy = self.model, self.model.rollout, self.model.policy
        rollout.values = policy.value(latents.flatten(0, 1)).view(latents.shape[:2])
        if self.log_probs:
            rollout.log_probs = policy.log_prob(latents, rollout.actions, maps, mask=rollout.masks)
        now = model.rollout_state
        rollout.last_values = policy.predict_values(now.obs, now.memory, now.resets)
        model.estimate(rollout)


class SequenceCollector(Collector):
    """All steps as one sequence, for environments whose observations do not depend on actions
    (`TensorEnv.ignores_actions`).

    First the environments are stepped with blank actions to observe the rollout. Then their state is restored, the
    memory processes the observations as one sequence, and the environments are stepped with the answers.
    """

    sequences = True
    graph = True

    def collect(self, callback: BaseCallback) -> bool:
        model, rollout, policy, env = self.model, self.model.rollout, self.model.policy, self.model.tensor_env
        started, in_envs = time.perf_counter(), model.env_seconds
        self.begin()
        before, carried = env.state_dict(), replace(model.rollout_state)
        blank = torch.zeros_like(rollout.actions[0])
        self.play(lambda t, mask: blank, count=False)
        env.load_state_dict(before)
        model.rollout_state = carried
        unrolled = policy.remember_sequence(rollout.obs, rollout.starts, rollout.state, rollout.resets)
        with torch.no_grad():
            maps = None if unrolled.grids is None else unrolled.grids.flatten(0, 1)
            masks = None if rollout.masks is None else rollout.masks.flatten(0, 1)
            answers = policy.act(unrolled.outputs.flatten(0, 1), self.targets, maps, masks)
        rollout.actions = answers.view(rollout.actions.shape)
        rollout.latents, rollout.grids, rollout.losses = unrolled.outputs, unrolled.grids, unrolled.losses
        model.rollout_state.memory = unrolled.state
        self.play(lambda t, mask: rollout.actions[t], see=False)
        model.scores = model.task_metrics.sums()
        model.memory_seconds += time.perf_counter() - started - (model.env_seconds - in_envs)
        return tell(model, callback)
