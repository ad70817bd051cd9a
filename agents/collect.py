"""Collectors fill a rollout, step by step or as one sequence. A learner chooses one in its method `collector`.

`FinalValues` has the values of the last observations of truncated episodes, from which their returns are bootstrapped.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from agents.environments import HostEnv
from agents.metrics.non_finite import raise_if_not_finite
from agents.metrics.report import count_stopped
from agents.returns import state_values
from agents.rollout import Rollout
from agents.sb3.callback_locals import StepLocals, run_callbacks
from agents.updates import Updates
from envs.preview import Preview
from envs.tensor_env import Info, Obs
from policies.memories.contract import State
from policies.memories.steps import MemoryStep
from policies.memories.time.checkpointing import max_stored_bytes
from policies.observations import obs_entries
from policies.policy import MemoryActorCriticPolicy

Act = Callable[[int, Tensor | None], Tensor]
"""Chooses the action `[N, *action_shape]` of step `t` for the observation in `model.rollout_state`, given a mask of
valid choices."""
After = Callable[[int, Obs, Info], bool]
"""Called after step `t` with the next observation and its `info`; False ends the rollout."""


class Collector:
    """Fills the rollout of a learner, from the learner's `rollout_state` and back into it.

    Args:
        model: the learner, with its policy and environments.
        targets: store the right answers. A learner with `learns_from_targets` also acts greedily.
    """

    sequences: ClassVar[bool] = False
    """Whether the memory processes a rollout as one sequence while collecting."""
    graph: bool = False
    """Whether the memory's graph is kept, for a learner that back-propagates through the rollout itself."""

    def __init__(self, model: Updates, targets: bool = False) -> None:
        self.model, self.targets, self.greedy = model, targets, model.learns_from_targets

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
        if isinstance(model.tensor_env, HostEnv):
            model.tensor_env.counted = []  # episodes of user code, such as an evaluation

    def play(self, act: Act, after: After | None = None, store_obs: bool = True, store_results: bool = True) -> bool:
        """The step loop of a rollout; False if `after` ended it.

        Args:
            act: chooses actions.
            after: called after each step.
            store_obs: store observations, starts, masks and targets.
            store_results: store actions, rewards, ends and metrics.
        """
        model, rollout, env, policy = self.model, self.model.rollout, self.model.tensor_env, self.model.policy
        info = env.describe() if self.targets or rollout.masks is not None else {}  # of the current observation
        targets: list[tuple[Tensor, Tensor]] = []
        task_metrics = model.task_metrics if model.task_metrics.names else None
        for t in range(len(rollout.rewards)):
            current = model.rollout_state
            if store_obs:
                if current.may_start:
                    rollout.resets.append(t)
                rollout.starts[t] = current.starts
                rollout.write_obs(t, current.obs)
                if rollout.masks is not None:
                    rollout.masks[t] = info["action_mask"]
                if self.targets:
                    targets.append((info["target"], info["weight"]))
            try:
                action = act(t, None if rollout.masks is None else rollout.masks[t])
            except RuntimeError as error:
                raise_if_not_finite(model, error)
                raise
            started = time.perf_counter()
            new_obs, rewards, terminated, truncated, info = env.step(policy.actions.to_env(action))
            model.env_seconds += time.perf_counter() - started
            if rollout.masks is None and "action_mask" in info:  # the first mask; until now everything was allowed
                rollout.allocate_masks(info["action_mask"], model.action_space, before=t + 1)
            if store_results:
                rollout.actions[t] = action
                rollout.rewards[t], rollout.terminated[t], rollout.truncated[t] = rewards, terminated, truncated
                rollout.record_episodes(t, info)
                if task_metrics is not None:
                    task_metrics.add(info)
            current.obs, current.starts, current.may_start = new_obs, terminated | truncated, "final_obs" in info
            if after is not None and not after(t, new_obs, info):
                count_stopped(model, t + 1)
                return False
            if after is not None and env.user_moves != model.user_moves:  # a callback reset or stepped the environments
                model.abort_episodes(t)
                info = env.describe()
        if targets:
            rollout.targets, rollout.weights = map(torch.stack, zip(*targets, strict=True))
        if store_results and task_metrics is not None:
            model.scores = task_metrics.sums()
        return True


class StepCollector(Collector):
    """One step after another: encode, remember, act.

    Args:
        model, targets: as in `Collector`.
        graph: keep the memory's graph, for a learner that back-propagates through the rollout itself.
        values: also compute values, and advantages and returns from them (`Updates.compute_advantages`).
        log_probs: also the log-probabilities of the actions.
    """

    def __init__(
        self,
        model: Updates,
        targets: bool = False,
        graph: bool = False,
        values: bool = False,
        log_probs: bool = False,
    ) -> None:
        super().__init__(model, targets)
        self.graph, self.values = graph, values
        self.log_probs = log_probs or (
            values and model.executor.callbacks_after_rollout  # callbacks read them after the rollout
        )

    def collect(self, callback: BaseCallback) -> bool:
        model, rollout, policy, env = self.model, self.model.rollout, self.model.policy, self.model.tensor_env
        started, env_seconds = time.perf_counter(), model.env_seconds
        self.begin()
        outputs, grids = list[Tensor](), list[Tensor]()
        length, all_envs = len(rollout.rewards), model.all_envs
        finals = FinalValues(policy, rollout) if self.values else None
        recording = None
        if self.graph:
            max_steps = min(length, env.horizon or 1)
            recording = policy.segments.record(model.rollout_state.memory, max_steps, length, model.n_envs)
        step: MemoryStep

        def act(t: int, mask: Tensor | None) -> Tensor:
            nonlocal step
            current = model.rollout_state
            with torch.set_grad_enabled(self.graph):
                step = policy.remember(current.obs, current.memory, current.resets, recording)
            with torch.no_grad():
                action = policy.act(step.output, self.greedy, step.grid, mask)
            outputs.append(step.output.detach())
            if policy.draws_maps and step.grid is not None:
                grids.append(step.grid.detach())
            current.memory = step.state
            return action

        fixed: dict[str, Any] = {"self": model, "env": model.env, "callback": callback, "n_rollout_steps": length}
        fixed |= {"rollout": rollout, "rollout_buffer": rollout}  # of the callback's `locals`

        def after(t: int, new_obs: Obs, info: Info) -> bool:
            # `truncates` is read at every step: on the host it says whether this one truncated an episode
            if finals is not None and env.truncates and model.rollout_state.may_start:
                finals.add(t, info["final_obs"], model.rollout_state.memory)
            model.num_timesteps += all_envs
            callback.update_locals({**fixed, "t": t, **StepLocals(model, t, (step, new_obs, info)).as_dict()})
            if not callback.on_step():
                return False
            if finals is not None and env.user_moves != model.user_moves:
                finals.finish()
            return True

        if not self.play(act, after):
            return False
        if finals is not None:
            finals.finish()
        if self.values:
            self._evaluate(torch.stack(outputs), torch.stack(grids) if policy.draws_maps else None)
        if recording is not None:
            rollout.keep_graph(recording.unrolled())
        model.memory_seconds += time.perf_counter() - started - (model.env_seconds - env_seconds)
        callback.on_rollout_end()
        return True

    @torch.no_grad()
    def _evaluate(self, latents: Tensor, maps: Tensor | None) -> None:
        """Computes the values and log-probabilities of all steps at once; acting did not need them."""
        model, rollout, policy = self.model, self.model.rollout, self.model.policy
        rollout.values = policy.value(latents.flatten(0, 1)).view(latents.shape[:2])
        if self.log_probs:
            rollout.log_probs = policy.log_prob(latents, rollout.actions, maps, mask=rollout.masks)
        current = model.rollout_state
        rollout.last_values = state_values(policy, current.obs, current.memory, current.resets)
        model.compute_advantages(rollout)


class SequenceCollector(Collector):
    """All steps as one sequence, for environments whose observations do not depend on actions.

    The memory processes the observations as one sequence, and then the environments take all steps with the resulting
    actions. Observations are those of `TensorEnv.preview`. Without a preview, the environments are stepped with blank
    actions to collect them (`TensorEnv.ignores_actions`), their state is restored, and they are stepped again.
    """

    sequences = True
    graph = True

    def collect(self, callback: BaseCallback) -> bool:
        model, rollout, policy, env = self.model, self.model.rollout, self.model.policy, self.model.tensor_env
        started, env_seconds = time.perf_counter(), model.env_seconds
        preview = env.preview(len(rollout.rewards)) if rollout.masks is None else None
        if preview is None and not env.ignores_actions:  # user code has moved the environments
            return StepCollector(model, self.targets, graph=True).collect(callback)
        self.begin()
        if preview is None:
            self._look_ahead()
        else:
            model.env_seconds += time.perf_counter() - started
            self._store(preview)
        unrolled = policy.remember_sequence(rollout.obs, rollout.starts, rollout.state, rollout.resets)
        with torch.no_grad():
            rollout.actions = policy.act(unrolled.outputs, self.greedy, unrolled.grids, rollout.masks)
        rollout.keep_graph(unrolled)
        model.rollout_state.memory = unrolled.state
        if preview is None:
            self.play(lambda t, mask: rollout.actions[t], store_obs=False)
        else:
            self._take(preview)
        model.memory_seconds += time.perf_counter() - started - (model.env_seconds - env_seconds)
        return run_callbacks(model, callback)

    def _look_ahead(self) -> None:
        """Stores the observations by stepping the environments with blank actions, and restores their state."""
        model, env = self.model, self.model.tensor_env
        env_state, rollout_state = env.state_dict(), replace(model.rollout_state)
        blank = torch.zeros_like(model.rollout.actions[0])
        self.play(lambda t, mask: blank, store_results=False)
        env.load_state_dict(env_state)
        model.rollout_state = rollout_state

    def _store(self, preview: Preview) -> None:
        """What `play` stores before the actions are known."""
        rollout, current = self.model.rollout, self.model.rollout_state
        if current.may_start:
            rollout.resets.append(0)
        rollout.starts.zero_()[0] = current.starts
        rollout.write_obs(slice(None), preview.obs)
        rollout.targets, rollout.weights = preview.targets, preview.weights

    def _take(self, preview: Preview) -> None:
        """Takes the steps, and stores what `play` stores of them."""
        model, rollout, current = self.model, self.model.rollout, self.model.rollout_state
        started = time.perf_counter()
        taken = preview.take(model.policy.actions.to_env(rollout.actions))
        model.env_seconds += time.perf_counter() - started
        rollout.rewards.copy_(taken.rewards)
        rollout.terminated.zero_()[-1] = taken.ended
        rollout.truncated.zero_()
        model.task_metrics.add_steps(taken.metrics)
        model.scores = model.task_metrics.sums()
        current.obs, current.may_start = taken.obs, taken.ended
        current.starts = torch.full_like(current.starts, taken.ended)


BUDGET_DIVISOR = 16
"""On a GPU, stored final observations and states use at most the memory budget of a sequence's backward pass divided by
this."""


class FinalValues:
    """Writes `rollout.final_values` where episodes were truncated.

    A final observation needs an additional step of the memory, from the state at the end of the episode. Only the
    device knows which environments were truncated, so the step is computed for all of them. On a CPU this is done
    immediately. On a GPU it would double the launches of a rollout, so observations and memory states of many steps are
    stored and processed as one batch.

    Args:
        policy: computes the values.
        rollout: its `final_values` are written.
        batch_steps: number of steps in one batch; None: as many as fit into memory on a GPU, 1 elsewhere.
    """

    def __init__(self, policy: MemoryActorCriticPolicy, rollout: Rollout, batch_steps: int | None = None) -> None:
        self.policy, self.rollout, self.batch_steps = policy, rollout, batch_steps
        self._first = self._count = 0
        self._obs_buffers, self._state_buffers = dict[str, Tensor](), dict[str, Tensor]()

    @torch.no_grad()
    def add(self, t: int, obs: Obs, state: State) -> None:
        """Adds the final observations `[N, ...]` of step `t` and the memory's state before them.

        `rollout.truncated[t]` must be written before.
        """
        if self.batch_steps is None:
            self.batch_steps = self._steps_that_fit(obs, state)
        if self.batch_steps == 1:
            self._write(slice(t, t + 1), state_values(self.policy, obs, state))
            return
        if self._count and t != self._first + self._count:
            self.finish()
        if not self._count:
            self._first = t
        for buffers, parts in ((self._obs_buffers, obs_entries(obs)), (self._state_buffers, state)):
            for name, value in parts.items():
                if name not in buffers:
                    buffers[name] = value.new_empty(self.batch_steps, *value.shape)
                buffers[name][self._count] = value
        self._count += 1
        if self._count == self.batch_steps:
            self.finish()

    @torch.no_grad()
    def finish(self) -> None:
        """Writes the values of the stored observations."""
        if not self._count:
            return
        obs, state = (
            {name: buffer[: self._count].flatten(0, 1) for name, buffer in buffers.items()}
            for buffers in (self._obs_buffers, self._state_buffers)
        )
        values = state_values(self.policy, obs if isinstance(self.rollout.obs, dict) else obs[""], state)
        self._write(slice(self._first, self._first + self._count), values)
        self._count = 0

    def _write(self, steps: slice, values: Tensor) -> None:
        truncated = self.rollout.truncated[steps]
        self.rollout.final_values[steps] = values.view(truncated.shape).masked_fill(~truncated, 0.0)

    def _steps_that_fit(self, obs: Obs, state: State) -> int:
        device = self.rollout.truncated.device
        if device.type != "cuda":
            return 1
        stored = [*obs_entries(obs).values(), *state.values()]
        step_bytes = sum(value.numel() * value.element_size() for value in stored)
        return max(
            1, min(len(self.rollout.truncated), max_stored_bytes(device) // BUDGET_DIVISOR // max(step_bytes, 1))
        )
