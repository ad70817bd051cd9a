"""Which memories and environments can be captured as CUDA graphs: all of them, and why that is believed without a GPU.

Twice over: replayed on a `Tape`, which does again what a graph would, an iteration is the ordinary one; and on the
`meta` device, whose tensors have no values, it runs to the end without an operand from the host.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import gymnasium
import pytest
import torch
from cases import ENVIRONMENTS, LEARNERS, MEMORIES, small
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from tape import Tape
from test_checkpoint import fingerprint
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import agents.sb3.vec_env
import envs  # noqa: F401 (registers the environments)
from agents import A2C, PPO, MemoryOnPolicyAlgorithm
from agents.replaying import ReplayLearner
from agents.scale.cuda_graphs.eligible import why_not_capturable_on_any_device
from agents.scale.cuda_graphs.replay import Graphs
from agents.scale.executor import Executor
from envs.tensor_env import TensorEnv
from policies.memories.time.scopes import no_host_reads

COPIES = 3
READS_AT_THE_START = ("Babi", "GraphInference", "ShortestPath")  # data is looked at once, before any iteration


@pytest.fixture(autouse=True)
def _by_torchs_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """C loops, which a tape does not see, give other last bits."""
    monkeypatch.setenv("ENGRAM_NATIVE", "0")


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU `one_hot` looks whether the numbers are in range; on a GPU it leaves that to the kernel."""

    def one_hot(x: Tensor, num_classes: int) -> Tensor:
        return x.new_zeros(*x.shape, num_classes).scatter_(-1, x[..., None], 1)

    monkeypatch.setattr(torch.nn.functional, "one_hot", one_hot)


def environment(name: str, device: str = "cpu") -> TensorEnv:
    env = gymnasium.make_vec(f"Engram/{name}-v0", num_envs=COPIES, device=device, **small(ENVIRONMENTS[name]))
    assert isinstance(env, TensorEnv)
    return env


def build(
    learner: type[MemoryOnPolicyAlgorithm],
    env: TensorEnv,
    memory: str,
    device: str = "cpu",
    n_steps: int | None = None,
    **options: Any,
) -> MemoryOnPolicyAlgorithm:
    policy = {"memory": memory, "memory_kwargs": small(MEMORIES[memory]), "optimizer_class": torch.optim.RMSprop}
    kwargs = small(next(row for row in LEARNERS.values() if row.learner is learner)) | options
    n_steps = n_steps or env.horizon or 4
    return learner("MemoryPolicy", env, n_steps=n_steps, seed=0, policy_kwargs=policy, device=device, **kwargs)


def replayed(
    learner: type[MemoryOnPolicyAlgorithm], env: str, memory: str, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> None:
    found = []
    ways: list[Callable[[MemoryOnPolicyAlgorithm], Executor]] = [Executor]
    for way in [*ways, lambda model: Graphs(model, Tape, strict=True)]:
        monkeypatch.setattr(MemoryOnPolicyAlgorithm, "make_executor", lambda model, way=way: way(model))
        model = build(learner, environment(env), memory, **options)
        assert why_not_capturable_on_any_device(model) is None
        found.append(fingerprint(model.learn(4 * model.n_steps * COPIES)))  # plain, taken down, twice replayed
    assert len(model.executor.graphs) == (2 if issubclass(learner, ReplayLearner) else 1)
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=0, atol=0, equal_nan=True, msg=name)


PAIRS = [(learner, memory) for learner in (A2C, PPO) for memory in sorted(MEMORIES)]
"""A learner that differentiates its own rollout and one that replays it, with all memories; the others with one."""
PAIRS += [(row.learner, "gru") for row in LEARNERS.values() if not row.targets and row.learner not in (A2C, PPO)]


@pytest.mark.parametrize(("learner", "memory"), PAIRS)
def test_every_memory_is_replayed(
    learner: type[MemoryOnPolicyAlgorithm], memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    replayed(learner, "RepeatFirst", memory, monkeypatch)


@pytest.mark.parametrize("env", sorted(ENVIRONMENTS))
def test_every_environment_is_replayed(env: str, monkeypatch: pytest.MonkeyPatch) -> None:
    replayed(A2C, env, "identity", monkeypatch)


@pytest.mark.parametrize("learner", [A2C, PPO])
def test_right_answers_are_replayed(learner: type[MemoryOnPolicyAlgorithm], monkeypatch: pytest.MonkeyPatch) -> None:
    replayed(learner, "RepeatFirst", "gru", monkeypatch, target_coef=0.5)


class Operands(TorchDispatchMode):
    """Looks where the operands of every operation are."""

    def __init__(self) -> None:
        super().__init__()
        self.from_host: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        leaves = (each if isinstance(each, (list, tuple)) else (each,) for each in (*args, *kwargs.values()))
        tensors = [leaf for several in leaves for leaf in several if isinstance(leaf, Tensor)]
        here = [tensor for tensor in tensors if tensor.device.type == "cpu"]
        # a number in an arithmetic kernel's arguments is no copy; an index, or what is written to one, is
        numbers = all(tensor.dim() == 0 for tensor in here) and not any(w in name for w in ("index", "copy"))
        crosses = "copy" in name and str(kwargs.get("device", "meta")) != "meta"
        if (len(here) < len(tensors) and here and not numbers) or (tensors and not here and crosses):
            ours = [f for f in traceback.extract_stack() if "/policies/" in f.filename or "/envs/" in f.filename]
            self.from_host.add(f"{name} at {ours[-1].filename}:{ours[-1].lineno}" if ours else name)
        return func(*args, **kwargs)


Generator = torch.Generator


class MetaGenerator(Generator):
    """Says that it lives where the tensors have no values."""

    device = torch.device("meta")

    def __new__(cls, device: Any = None) -> MetaGenerator:
        return Generator.__new__(cls)

    def __init__(self, device: Any = None) -> None: ...


class Deaf(BaseCallback):
    def on_step(self) -> bool:
        return True

    def _on_step(self) -> bool:
        return True


def without_values(
    learner: type[MemoryOnPolicyAlgorithm],
    env: str,
    memory: str,
    monkeypatch: pytest.MonkeyPatch,
    n_steps: int | None = None,
    **options: Any,
) -> None:
    monkeypatch.setattr(torch, "Generator", MetaGenerator)
    model = build(learner, environment(env, "meta"), memory, "meta", n_steps, **options)
    model.tensor_env.reset()
    model.begin_episodes()
    model._logger = Logger(None, [])
    for _ in range(2):
        with Operands() as operands, no_host_reads():
            model.collect_rollouts(model.env, Deaf(), model.rollout, model.n_steps)
            model.learn_from(model.rollout)
    assert operands.from_host == set()


@pytest.mark.parametrize(("learner", "memory"), PAIRS)
def test_no_memory_needs_values_on_the_host(
    learner: type[MemoryOnPolicyAlgorithm], memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In two halves of an episode, as an operation without values takes a tenth of a millisecond."""
    without_values(learner, "RepeatFirst", memory, monkeypatch, n_steps=2)


@pytest.mark.parametrize("env", sorted(set(ENVIRONMENTS) - set(READS_AT_THE_START)))
def test_no_environment_needs_values_on_the_host(env: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents.sb3.vec_env, "as_numpy", lambda obs: obs)
    without_values(A2C, env, "identity", monkeypatch)


@pytest.mark.parametrize("learner", [A2C, PPO])
def test_right_answers_need_no_values_on_the_host(
    learner: type[MemoryOnPolicyAlgorithm], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_values(learner, "RepeatFirst", "gru", monkeypatch, n_steps=2, target_coef=0.5)
