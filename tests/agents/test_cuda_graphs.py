"""Iterations that are replayed equal those that are not, bit for bit.

`Tape` replays on the CPU what a CUDA graph would replay on a GPU; `EagerCapture` lets Python do it over the same
buffers.
Which memories and environments can be captured: test_cuda_graphs_everywhere.py.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import LinearSchedule
from tape import HostReadError, Tape
from test_checkpoint import SMALL, assert_same, fingerprint, scramble
from torch import Tensor

from agents import A2C, PPO, MemoryOnPolicyAlgorithm, Supervised
from agents.scale.cuda_graphs.capture import Capture, EagerCapture
from agents.scale.cuda_graphs.eligible import make_capturable, why_not_capturable, why_not_capturable_on_any_device
from agents.scale.cuda_graphs.replay import PATIENCE, Graphs
from agents.scale.executor import Executor
from envs.maze import InvisibleGoalMaze
from envs.repeat_first import RepeatFirst
from envs.tensor_env import TensorEnv
from envs.tmaze import TMaze

STEPS, COPIES = 4, 4
ITERATION = STEPS * COPIES
ENVS: dict[str, Callable[[], TensorEnv]] = {
    "repeat-first": lambda: RepeatFirst(COPIES, length=STEPS),  # every rollout is an episode
    "maze": lambda: InvisibleGoalMaze(COPIES, size=5, episode_length=2 * STEPS),  # begins in two ways: two graphs
    "tmaze": lambda: TMaze(COPIES, length=2, max_steps=7),  # every copy ends when it likes, some are cut
}


@pytest.fixture(autouse=True)
def _by_torchs_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """C loops, which a tape does not see, give other last bits."""
    monkeypatch.setenv("ENGRAM_NATIVE", "0")


def build(
    learner: type[MemoryOnPolicyAlgorithm], env: TensorEnv | str, memory: str = "mnm-p", **kwargs: Any
) -> MemoryOnPolicyAlgorithm:
    if learner is PPO:
        kwargs = {"n_epochs": 2, "n_minibatches": 2, **kwargs}
    kwargs.setdefault("policy_kwargs", {"memory": memory, "memory_kwargs": SMALL.get(memory, {})})
    kwargs.setdefault("normalize_obs", True)
    model = learner(
        "MemoryPolicy", ENVS[env]() if isinstance(env, str) else env, n_steps=STEPS, seed=5, device="cpu", **kwargs
    )
    if isinstance(model, Supervised):
        model.whole_sequences = False  # graphs go step by step
    return model


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Capture] | None], None]:
    """Says how learners replay from now on; with None they do not."""

    def use(capture: Callable[[], Capture] | None) -> None:
        def make(model: MemoryOnPolicyAlgorithm) -> Executor:
            if capture is None:
                return Executor(model)
            return model.executor if isinstance(model.executor, Graphs) else Graphs(model, capture, strict=True)

        monkeypatch.setattr(MemoryOnPolicyAlgorithm, "make_executor", make)

    return use


@pytest.fixture
def capturable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets optimisers count their steps and read their rates as they do on a GPU."""
    for name in ("adam", "rmsprop"):
        module = importlib.import_module(f"torch.optim.{name}")
        monkeypatch.setattr(module, "_get_capturable_supported_devices", lambda *_, **__: ["cpu"])
    ordinary = MemoryOnPolicyAlgorithm._setup_learn

    def setup(self: Any, *args: Any, **kwargs: Any) -> Any:
        make_capturable(self.policy.optimizer, self.device)
        return ordinary(self, *args, **kwargs)

    monkeypatch.setattr(MemoryOnPolicyAlgorithm, "_setup_learn", setup)


CASES = [(A2C, "mnm-p", env) for env in ENVS] + [(PPO, "mnm-p", env) for env in ENVS]
CASES += [(A2C, "lstm", "maze"), (PPO, "lstm", "repeat-first"), (Supervised, "mnm-p", "repeat-first")]


@pytest.mark.parametrize(("learner", "memory", "env"), CASES)
@pytest.mark.parametrize("capture", [EagerCapture, Tape])
@pytest.mark.usefixtures("capturable")
def test_replayed_iterations_are_the_ordinary_ones(
    learner: type[MemoryOnPolicyAlgorithm], memory: str, env: str, capture: Callable[[], Capture], graphs: Any
) -> None:
    """Also what is logged, with a learning rate that falls and, for PPO, clip ranges that do."""
    falling = {"learning_rate": LinearSchedule(1e-2, 1e-3, 1.0)}
    if learner is PPO:
        falling |= {"clip_range": LinearSchedule(0.3, 0.01, 1.0), "clip_range_vf": LinearSchedule(0.3, 0.01, 1.0)}
    found = []
    for way in (None, capture):
        graphs(way)
        model = build(learner, env, memory, **falling).learn(7 * ITERATION)
        logged = {name: value for name, value in model.logger.name_to_value.items() if not name.startswith("time/")}
        logged["successes"] = list(model.ep_success_buffer or ())
        found.append({**fingerprint(model), **{name: torch.tensor(value) for name, value in logged.items()}})
    assert isinstance(model.executor, Graphs)
    ways = 2 if env == "maze" else 1
    assert (
        [key[0] for key in model.executor.graphs] == ["rollout", "minibatch"] * ways
        if learner is PPO
        else ways * ["iteration"]
    )
    assert_same(*found)
    assert (len(model.ep_success_buffer or ()) > 0) == (env == "tmaze")


@pytest.mark.parametrize("learner", [A2C, PPO])
@pytest.mark.usefixtures("capturable")
def test_a_checkpoint_between_replays_goes_on_exactly(
    learner: type[MemoryOnPolicyAlgorithm], graphs: Any, tmp_path: Path
) -> None:
    """2N steps without graphs; N with, saved, loaded, N with."""
    graphs(None)
    whole = fingerprint(build(learner, "maze").learn(10 * ITERATION))
    graphs(Tape)
    build(learner, "maze").learn(5 * ITERATION).save(tmp_path / "half")
    scramble()
    second = learner.load(tmp_path / "half", ENVS["maze"](), device="cpu")
    scramble()
    second.learn(5 * ITERATION, reset_num_timesteps=False)
    assert isinstance(second.executor, Graphs)
    assert second.executor.graphs
    assert_same(fingerprint(second), whole)


def test_a_checkpoint_of_a_graphs_optimiser_is_a_plain_one(tmp_path: Path) -> None:
    model = build(A2C, "repeat-first", policy_kwargs={"memory": "gru", "optimizer_class": torch.optim.Adam})
    before = model.policy.optimizer.state_dict()["param_groups"]
    make_capturable(model.policy.optimizer, model.device)
    assert isinstance(model.policy.optimizer.param_groups[0]["lr"], Tensor)
    model.save(tmp_path / "saved")
    loaded = A2C.load(
        tmp_path / "saved", ENVS["repeat-first"](), device="cpu", policy_kwargs={"optimizer_class": torch.optim.Adam}
    )
    after = loaded.policy.optimizer.state_dict()["param_groups"]
    assert after[0]["lr"] == pytest.approx(before[0]["lr"], rel=1e-6)
    after[0] |= {"lr": before[0]["lr"], "betas": tuple(after[0]["betas"])}  # JSON has no tuples
    assert after == before
    loaded.learn(2 * ITERATION)


class Listener(BaseCallback):
    """Writes down what it is told."""

    def __init__(self, act: Callable[[Any], None] | None = None, stop_at: int = -1) -> None:
        super().__init__()
        self.act, self.stop_at = act, stop_at
        self.told: list[tuple[int, list[float], list[bool]]] = []
        self.rollouts: list[str] = []
        self.names: set[str] = set()
        self.episodes: list[float] = []
        self.judged: list[list[float]] = []

    def _on_rollout_start(self) -> None:
        self.rollouts.append("start")
        if self.act is not None:
            self.act(self.model)

    def _on_step(self) -> bool:
        rewards, dones = self.locals["rewards"].tolist(), np.array(self.locals["dones"]).tolist()
        self.told.append((self.num_timesteps, rewards, dones))
        self.names |= {name for name in self.locals if self.locals[name] is not None}
        self.episodes += [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        self.judged.append([self.locals[name].sum().item() for name in ("values", "log_probs", "new_obs", "actions")])
        return self.num_timesteps != self.stop_at

    def _on_rollout_end(self) -> None:
        self.rollouts.append("end")


@pytest.mark.parametrize("learner", [A2C, PPO])
def test_callbacks_hear_of_every_step(learner: type[MemoryOnPolicyAlgorithm], graphs: Any) -> None:
    heard = []
    for way in (None, EagerCapture):
        graphs(way)
        heard.append(Listener())
        build(learner, "tmaze").learn(4 * ITERATION, heard[-1])
    assert heard[0].told == heard[1].told
    assert heard[0].episodes == heard[1].episodes
    assert heard[0].episodes
    np.testing.assert_allclose(heard[0].judged, heard[1].judged, rtol=1e-5)
    sb3s = {"infos", "actions", "clipped_actions", "values", "log_probs", "rewards", "dones", "new_obs", "obs_tensor"}
    assert sb3s <= heard[0].names & heard[1].names
    assert [steps for steps, _, _ in heard[1].told] == list(range(COPIES, 4 * ITERATION + 1, COPIES))
    assert heard[1].rollouts == ["start", "end"] * 4


@pytest.mark.parametrize("learner", [A2C, PPO])
def test_a_callback_that_stops_ends_the_run(learner: type[MemoryOnPolicyAlgorithm], graphs: Any) -> None:
    graphs(EagerCapture)
    listener = Listener(stop_at=2 * ITERATION + 2 * COPIES)
    model = build(learner, "tmaze").learn(9 * ITERATION, listener)
    assert listener.told[-1][0] == listener.stop_at
    assert model.num_timesteps == 3 * ITERATION  # the steps after it were made as well


def fade(model: MemoryOnPolicyAlgorithm) -> None:
    model.ent_coef = 0.5 if model.num_timesteps < 4 * ITERATION else 0.0


def freeze(model: MemoryOnPolicyAlgorithm) -> None:
    model.policy.value_net.requires_grad_(model.num_timesteps < 4 * ITERATION)


def swap(model: MemoryOnPolicyAlgorithm) -> None:
    if model.num_timesteps == 4 * ITERATION:
        with torch.no_grad():
            model.policy.value_net.weight.data = model.policy.value_net.weight.data * 2


def load(model: MemoryOnPolicyAlgorithm) -> None:
    if model.num_timesteps == 4 * ITERATION:
        model.policy.optimizer.load_state_dict(copy.deepcopy(model.policy.optimizer.state_dict()))


def watch(model: MemoryOnPolicyAlgorithm) -> None:
    model.step_by_step = model.num_timesteps == 4 * ITERATION


def throw(model: MemoryOnPolicyAlgorithm) -> None:
    if model.num_timesteps == 4 * ITERATION:
        model.tensor_env.cell = torch.zeros_like(model.tensor_env.cell)
        model.tensor_env._rows = model.tensor_env._rows.flip(0)


def play(model: MemoryOnPolicyAlgorithm) -> None:
    if model.num_timesteps in (4 * ITERATION, 7 * ITERATION):
        env = model.get_env()
        assert env is not None
        env.reset()
        env.step(np.zeros(COPIES, int))


@pytest.mark.parametrize("act", [fade, freeze, swap, load, watch, throw, play])
@pytest.mark.parametrize("learner", [A2C, PPO])
@pytest.mark.usefixtures("capturable")
def test_what_a_callback_changes_is_not_captured(
    learner: type[MemoryOnPolicyAlgorithm], act: Callable[[Any], None], graphs: Any
) -> None:
    found = []
    for way in (None, Tape):
        graphs(way)
        env = InvisibleGoalMaze(COPIES, size=5, episode_length=STEPS)
        found.append(fingerprint(build(learner, env, "gru", ent_coef=0.5).learn(9 * ITERATION, Listener(act))))
    assert_same(*found)


class Days(RepeatFirst):
    """Counts, on the host, what is then seen."""

    day = 0

    def _begin(self, where: Tensor | None) -> None:
        super()._begin(where)
        self.day = self.day + 1

    def _observe(self) -> Tensor:
        return super()._observe() * (1 + self.day / 100)


def test_an_environment_that_counts_on_the_host_is_never_replayed(graphs: Any) -> None:
    found = []
    for way in (None, Tape):
        graphs(way)
        model = build(A2C, Days(COPIES, length=STEPS), "gru")
        if way is None:
            model.learn((PATIENCE + 2) * ITERATION)
        else:
            with pytest.warns(UserWarning, match=r"no CUDA graph so far: .*Days.day.* is new at every iteration"):
                model.learn((PATIENCE + 2) * ITERATION)
            assert isinstance(model.executor, Graphs)
            assert not model.executor.graphs
        found.append(fingerprint(model))
    assert_same(*found)


def test_the_tape_refuses_what_a_graph_cannot_take_down(graphs: Any) -> None:
    class Asks(RepeatFirst):
        def _observe(self) -> Tensor:
            return super()._observe() * (1.0 if int(self.symbol.sum()) else 2.0)

    graphs(Tape)
    with pytest.raises(HostReadError):
        build(A2C, Asks(COPIES, length=STEPS), "gru").learn(3 * ITERATION)


class Boxed(RepeatFirst):
    def __init__(self) -> None:
        super().__init__(COPIES, length=STEPS)
        self.inner = RepeatFirst(COPIES)
        self.inner.reset()


class Dices(RepeatFirst):
    def __init__(self) -> None:
        super().__init__(COPIES, length=STEPS)
        self.dice = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("env", "said"),
    [
        (lambda: gym.make("CartPole-v1"), "the environments run on the host"),
        (lambda: RepeatFirst(COPIES, render_mode="rgb_array"), "render_mode is 'rgb_array'"),
        (lambda: RepeatFirst(COPIES, length=33), "4 steps begin at 33 different steps of the episodes of 33"),
        (Boxed, "Boxed.inner holds tensors"),
        (Dices, r"Dices draws random numbers on the host \(dice\)"),
        (lambda: RepeatFirst(COPIES), None),
    ],
)
def test_it_says_in_one_line_why_not(env: Callable[[], Any], said: str | None) -> None:
    found = why_not_capturable_on_any_device(build(A2C, env(), "gru"))
    if said is None:
        assert found is None
        return
    assert found is not None
    assert "\n" not in found
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(found)


def test_an_optimiser_or_a_memory_may_be_the_reason() -> None:
    model = build(A2C, "tmaze", policy_kwargs={"memory": "gru", "optimizer_class": torch.optim.SGD})
    assert why_not_capturable_on_any_device(model) == "SGD has no option capturable"
    model = build(A2C, "tmaze", "gru")
    model.policy.memory.static_shapes = False
    assert why_not_capturable_on_any_device(model) == "GRU has static_shapes = False: its operations depend on data"


def test_without_cuda_graph_is_refused_and_auto_is_plain() -> None:
    model = build(A2C, "tmaze", "gru", fast="graph")
    assert why_not_capturable(model) == "the device is cpu: only CUDA has graphs"
    with pytest.raises(ValueError, match="fast is 'graph', but the device is cpu"):
        model.learn(ITERATION)
    assert build(A2C, "tmaze", "gru").learn(ITERATION).executor.callbacks_after_rollout is False
    with pytest.raises(ValueError, match="fast is 'warp', expected one of auto, off, compile, graph"):
        build(A2C, "tmaze", "gru", fast="warp")
