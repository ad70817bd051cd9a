"""Replays whole training iterations as CUDA graphs.

One step of environment and memory takes about a hundred small kernels. Python needs longer to launch each than a GPU
needs to run it; a graph is launched as one. An iteration of A2C or the supervised learner is one graph: rollout, loss,
backward pass, clipping, optimiser. PPO has two: the rollout, and the update from one minibatch. Random numbers,
minibatch orders, learning rates and clip ranges still change from replay to replay.

`Graphs` does everything except the capture, which a `Capture` does: `CudaCapture`, or the reference implementation
`EagerCapture`, which re-runs the Python body over the same buffers on any device. See docs/gpu.md.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from agents.hyperparameters import hints_of
from agents.metrics.report import PackedMetrics, log_metrics, pack_metrics
from agents.rollout import Rollout
from agents.sb3.callback_locals import run_callbacks
from agents.sb3.training_env import TrainingEnv
from agents.scale.cuda_graphs.buffers import Buffers, MovedError, identity_of, scalars
from agents.scale.cuda_graphs.capture import Capture, CapturedPart, CudaCapture, EagerCapture
from agents.scale.cuda_graphs.eligible import (
    MAX_GRAPHS,
    generators,
    make_capturable,
    release_generators,
    why_not_capturable,
)
from agents.scale.executor import Executor
from policies.memories.time.scopes import no_host_reads

TESTED_ON_GPU = False
"""Whether tests/agents/test_cuda_graphs_gpu.py has passed on a GPU; until then fast="auto" does not use graphs."""
PATIENCE = 16
"""Consecutive eager iterations after which a warning says why nothing is captured."""


class Graphs(Executor):
    """Captures and replays the iterations of a model.

    Each distinct configuration runs eagerly once and is captured the second time. The eager run is a warm-up for
    libraries and finds the tensors carried between iterations. The configuration (cache key) consists of the numbers,
    flags and strings among the attributes of environment, learner, modules and optimiser, and of the parameters'
    addresses. A callback may change any of them.

    Args:
        model: the learner whose iterations are replayed.
        capture: creates a capture.
        stream: side stream for warm-ups and captures; None on a CPU.
        strict: raise an error if something cannot be captured, instead of running it eagerly.
    """

    callbacks_after_rollout = True

    def __init__(
        self,
        model: TrainingEnv,
        capture: Callable[[], Capture] = EagerCapture,
        stream: torch.cuda.Stream | None = None,
        strict: bool = False,
    ) -> None:
        super().__init__(model)
        self.capture, self.stream, self.strict = capture, stream, strict
        self.buffers = Buffers(self._owners)
        self.graphs: dict[Hashable, CapturedPart] = {}
        self.eager_iterations = 0
        """Number of consecutive eager iterations."""
        self.failed = False
        self._objects = self._captured_objects()
        self._moved = "rollouts never begin alike"
        self._seen: set[Hashable] = set()
        self._key: tuple[tuple[str, Any], ...] = ()
        self._rolled_out = False
        self._arguments = sorted({*hints_of(model.config_class)} - {*model.config_class.schedules})

    def _captured_objects(self) -> tuple[Any, ...]:
        return self.model.tensor_env, self.model.rollout, self.model.policy.optimizer

    def fits(self) -> bool:
        """Whether the model still has the environment, rollout and optimiser of the captures."""
        return all(one is other for one, other in zip(self._objects, self._captured_objects(), strict=True))

    # -- an iteration ----------------------------------------------------------------------------------------------

    def iterate(self, callback: BaseCallback) -> bool:
        """As the learner's own `iterate`. Callbacks are called after all steps of the rollout, see docs/gpu.md."""
        model = self.model
        if model.step_by_step or self.failed:
            self._rolled_out = False
            with self._on_side_stream():
                return bool(model.iterate(callback))
        began, started = model.num_timesteps, time.perf_counter()
        model.rollout_began = began
        if self.stream is not None:  # loading an optimiser's state reverts it
            make_capturable(model.policy.optimizer, model.device)
        self._key = self._cache_key()
        if not model.collector().graph:
            self._rolled_out = self._run("rollout", self._collect)[1]
            model.memory_seconds += time.perf_counter() - started
            if not run_callbacks(model, callback):
                return False
            model._update_current_progress_remaining(model.num_timesteps, model._total_timesteps)
            started = time.perf_counter()
            model.train()
            model.learn_seconds += time.perf_counter() - started
            return True
        model._update_current_progress_remaining(began + model.n_steps * model.all_envs, model._total_timesteps)
        model._update_learning_rate(model.policy.optimizer)
        numbers, _ = self._run("iteration", self._whole)
        model.learn_seconds += time.perf_counter() - started
        continues = run_callbacks(model, callback)
        log_metrics(model, PackedMetrics(self._names, numbers))
        return continues

    def minibatch(
        self, learn: Callable[..., PackedMetrics], rollout: Rollout, index: Tensor, *numbers: float | None
    ) -> PackedMetrics:
        if not self._rolled_out:  # the rollout is not in the graph's buffers
            with self._on_side_stream():
                return learn(rollout, index, *numbers)

        def body(*inputs: Any) -> Tensor:
            found = learn(rollout, *inputs)
            self._names = found.names
            return found.numbers

        given = [None if number is None else float(number) for number in numbers]
        numbers_of = self._run("minibatch", body, index, *given)[0].clone()
        return PackedMetrics(self._names, numbers_of)

    def _collect(self) -> Tensor:
        model = self.model
        began = model.num_timesteps
        model.collect_rollouts(model.env, _Silent(), model.rollout, model.n_steps)
        model.num_timesteps = began
        rewards: Tensor = model.rollout.rewards
        return rewards

    def _whole(self) -> Tensor:
        self._collect()
        found = pack_metrics(self.model, self.model.learn_and_update_obs_norm(self.model.rollout))
        self._names = found.names
        return found.numbers

    # -- a part of it ----------------------------------------------------------------------------------------------

    def _run(self, part: str, function: Callable[..., Tensor], *inputs: Tensor | float | None) -> tuple[Tensor, bool]:
        """The result of `function`, and whether a graph produced it."""
        key = (part, self._key, tuple(len(x) if isinstance(x, Tensor) else x is None for x in inputs))
        graph = self._graph(key, function, inputs)
        if graph is None:
            with self._on_side_stream(), no_host_reads():
                before = self.buffers.find()
                output = function(*inputs)
                if self.buffers.watch(before):  # captured graphs do not include it
                    self.graphs.clear()
            return output, False
        graph.copy_inputs(inputs)
        updates = self.model._n_updates
        output = graph.capture.replay()
        self.model._n_updates = updates + graph.updates
        self._restore_host_scalars(graph.after)
        return output, True

    def _graph(self, key: Hashable, function: Callable[..., Tensor], inputs: tuple[Any, ...]) -> CapturedPart | None:
        """The graph for `key`, with its buffers filled; None: run eagerly."""
        if key not in self._seen or self.failed:
            self._seen.add(key)
            return None
        try:
            self.buffers.enter()
            if key not in self.graphs:
                if len(self.graphs) >= 4 * MAX_GRAPHS:
                    return None
                self.graphs[key] = self._record(function, CapturedPart(self.capture(), inputs, self.model.device))
        except MovedError as error:
            self._moved = str(error)
            self.graphs.clear()
            return None
        except RuntimeError as error:
            if self.strict or self.stream is None:
                raise
            warnings.warn(f"fast: no CUDA graph, since capturing failed: {str(error).splitlines()[0]}", stacklevel=2)
            release_generators(self.model)
            self.failed = True
            return None
        return self.graphs[key]

    def _record(self, function: Callable[..., Tensor], graph: CapturedPart) -> CapturedPart:
        model, before = self.model, self._host_scalars()
        counted, updates = model.num_timesteps, model._n_updates

        def body() -> Tensor:
            began = model._n_updates
            with no_host_reads():
                output = function(*graph.inputs)
            self.buffers.leave()
            graph.updates, graph.after = model._n_updates - began, self._host_scalars()
            return output

        try:
            graph.capture.record(body)
        finally:  # capturing runs nothing on the device
            self.buffers.set_attributes(self.buffers.buffers)
            self._restore_host_scalars(before)
            model.num_timesteps, model._n_updates = counted, updates
            model.task_metrics.steps = []
        return graph

    # -- values on the host, which a graph does not update -----------------------------------------------------------

    def _owners(self) -> Iterator[tuple[str, Any, list[str]]]:
        model = self.model
        yield "environment", model.tensor_env, list(vars(model.tensor_env))
        yield "learner", model.rollout_state, ["obs", "starts", "memory"]
        yield "learner", model, ["scores"]
        yield "rollout", model.rollout, [entry.name for entry in fields(model.rollout)]

    def _host_scalars(self) -> tuple[dict[str, Any], bool, list[int]]:
        return scalars(self.model.tensor_env), self.model.rollout_state.may_start, self.model.rollout.resets

    def _restore_host_scalars(self, numbers: tuple[dict[str, Any], bool, list[int]]) -> None:
        env, self.model.rollout_state.may_start, self.model.rollout.resets = numbers
        for name, value in env.items():
            setattr(self.model.tensor_env, name, value)

    def _cache_key(self) -> tuple[tuple[str, Any], ...]:
        """The cache key: all values that Python may branch on, with their names. Warns if it never repeats."""
        model, optimizer = self.model, self.model.policy.optimizer
        values = {f"{type(model.tensor_env).__name__}.{name}": v for name, v in scalars(model.tensor_env).items()}
        values |= {name: getattr(model, name) for name in self._arguments if isinstance(getattr(model, name), Hashable)}
        values["may_start"] = model.rollout_state.may_start
        for name, module in model.policy.named_modules():
            values |= {f"policy.{name}.{word}": v for word, v in scalars(module, exclude=("training",)).items()}
        for number, group in enumerate(optimizer.param_groups):
            values |= {f"optimizer.{number}.{n}": v for n, v in group.items() if isinstance(v, Hashable)}
        values["parameters"] = tuple((p.data_ptr(), p.requires_grad) for p in model.policy.parameters())
        values["moments"] = tuple(v for state in optimizer.state.values() for v in state.values())
        key = tuple((name, identity_of(value)) for name, value in values.items())
        self.eager_iterations = 0 if any(key == known[1] for known in self.graphs) else self.eager_iterations + 1  # type: ignore[index]
        if self.eager_iterations == PATIENCE:
            last = dict(self._key)
            changed = ", ".join(name for name, value in key if last.get(name) != value)
            why = f"{changed} is new at every iteration" if changed else self._moved
            warnings.warn(f"fast: no CUDA graph so far: {why}", stacklevel=2)
        return key

    @contextmanager
    def _on_side_stream(self) -> Iterator[None]:
        """Context manager for the captures' stream, so that autograd's tensors belong to it."""
        if self.stream is None:
            yield
            return
        current = torch.cuda.current_stream(self.model.device)  # without an argument it is the first GPU's
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            yield
        current.wait_stream(self.stream)


class _Silent(BaseCallback):
    """A callback that does nothing."""

    def on_step(self) -> bool:
        return True

    def update_locals(self, locals_: dict[str, Any]) -> None:
        """Does nothing."""

    def _on_step(self) -> bool:
        return True


def graphs_for(model: TrainingEnv) -> Graphs | None:
    """The `Graphs` for `model`, if `model.fast` and the model allow it.

    Raises:
        ValueError: `model.fast` is "graph", and the model cannot be captured.
    """
    if model.fast not in ("auto", "graph") or (model.fast == "auto" and not TESTED_ON_GPU):
        return None
    if found := why_not_capturable(model):
        if model.fast == "graph":
            raise ValueError(f"fast is 'graph', but {found}")
        if model.device.type == "cuda":
            warnings.warn(f"fast: no CUDA graph, since {found}", stacklevel=2)
        return None
    if isinstance(model.executor, Graphs) and model.executor.fits():
        return model.executor
    make_capturable(model.policy.optimizer, model.device)
    drawing, pool = list(generators(model)), torch.cuda.graph_pool_handle()
    stream: torch.cuda.Stream = torch.cuda.Stream(model.device)  # type: ignore[no-untyped-call]
    return Graphs(model, lambda: CudaCapture(drawing, pool, stream), stream, strict=model.fast == "graph")
