"""What memories with maps and readers need of the policy: grids in, questions apart, maps out."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import Tensor, nn
from torch.nn import functional as F

from agents import A2C, PPO, Supervised
from envs.tensor_env import TensorEnv
from policies.encoders import EmbeddingEncoder, GridEncoder, QueryEncoder
from policies.memories import MemoryStep, register_memory, registry
from policies.memories.contract import State
from policies.memories.shared.readers import ReaderMemory
from policies.memories.steps import Queries
from policies.policy import MemoryActorCriticPolicy

SIDE = 4


class Sums(ReaderMemory):
    """Adds up the grids it is shown; gives them times what is asked as a map, and the map's means as a vector."""

    input_kind: ClassVar[Any] = "grid"

    def __init__(self, input_size: tuple[int, ...], queries: dict[str, tuple[int, ...]] | None = None) -> None:
        super().__init__()
        self.shape, self.queries = input_size, queries or {}
        self.output_size = input_size[0]
        self.output_grid = (input_size[0], *input_size[1:])
        self.scale = nn.Parameter(torch.ones(1))

    @classmethod
    def default_grid(cls, **kwargs: Any) -> tuple[int, ...]:
        return (SIDE, SIDE)

    def initial_state(self, batch_size: int) -> State:
        return {"sum": torch.zeros(batch_size, *self.shape, device=self.device, dtype=self.dtype)}

    def forward(self, x: Tensor, state: State, queries: Queries | None = None) -> MemoryStep:
        assert set(queries or {}) == set(self.queries)
        total = state["sum"] + self.scale * x
        asked = x if queries is None else torch.stack([q.mean(1, keepdim=True) for q in queries.values()]).sum(0)
        grid = total * asked
        return MemoryStep(grid.mean((2, 3)), {"sum": total}, {}, grid)


@pytest.fixture(autouse=True)
def sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.memories, "classes", dict(registry.memories.classes))
    register_memory("sums")(Sums)


class Mark(TensorEnv):
    """Mark the cells that were lit at this step or before, where the question is lit as well."""

    state_names = ("lit", "seen", "asked")

    def __init__(self, num_envs: int, parts: int = 1, horizon: int = 3) -> None:
        shape = (SIDE, SIDE) if parts == 1 else (parts, SIDE, SIDE)
        space = spaces.Dict(
            {
                "view": spaces.Box(0.0, 1.0, (2, SIDE, SIDE)),
                "place": spaces.Box(-1.0, 1.0, (1,)),
                "query": spaces.Box(0.0, 1.0, (1, SIDE, SIDE)),
            }
        )
        super().__init__(num_envs, space, spaces.MultiBinary(shape), horizon=horizon)

    def _draw(self, share: float) -> Tensor:
        return (torch.rand(self.num_envs, SIDE, SIDE, generator=self.generator) < share).float()

    def _begin(self, where: Tensor | None) -> None:
        self.lit, self.asked = self._draw(0.3), self._draw(0.6)
        self.seen = self.lit

    def _target(self) -> Tensor:
        return (self.seen * self.asked).view(self.num_envs, *self.single_action_space.shape)

    def _advance(self, action: Tensor) -> tuple[Tensor, None, None]:
        reward = (action == self._target()).float().flatten(1).mean(1) / 3
        self.lit, self.asked = self._draw(0.3), self._draw(0.6)
        self.seen = torch.maximum(self.seen, self.lit)
        return reward, None, None

    def _observe(self) -> dict[str, Tensor]:
        view = torch.stack([self.lit, 1 - self.lit], 1)
        return {"view": view, "place": torch.zeros(self.num_envs, 1), "query": self.asked[:, None].clone()}

    def _describe(self) -> dict[str, Any]:
        return {"target": self._target(), "weight": torch.ones(self.num_envs)}


def policy(observation: spaces.Space[Any], action: spaces.Space[Any], memory: str = "sums") -> MemoryActorCriticPolicy:
    torch.manual_seed(0)
    return MemoryActorCriticPolicy(observation, action, lambda _: 1e-3, memory=memory)


# Grids


def test_a_grid_passes_and_numbers_become_planes_beside_it() -> None:
    space = spaces.Dict(
        {"a": spaces.Box(0, 1, (2, 3, 5)), "b": spaces.Box(0, 1, (2,)), "c": spaces.Box(0, 1, (1, 3, 5))}
    )
    encoder = GridEncoder(space)
    assert encoder.shape == (5, 3, 5)
    obs = {name: torch.rand(4, *entry.shape) for name, entry in space.spaces.items()}
    grid = encoder(obs)
    assert torch.equal(grid[:, :2], obs["a"])
    assert torch.equal(grid[:, 2:3], obs["c"])
    for index in range(2):
        assert torch.equal(grid[:, 3 + index], obs["b"][:, index, None, None].expand(4, 3, 5))
    assert not list(encoder.parameters())


def test_what_is_no_grid_is_folded_into_one() -> None:
    encoder = GridEncoder(spaces.Box(-1, 1, (7,)), spatial=(2, 3), channels=5)
    x = torch.rand(4, 7)
    assert encoder.fold is not None
    assert torch.equal(encoder(x), encoder.fold(x).view(4, 5, 2, 3))
    line = GridEncoder(
        spaces.Dict({"a": spaces.Box(0, 1, (3,)), "b": spaces.Box(0, 1, (2,))}), spatial=(6,), channels=2
    )
    assert line({"a": torch.rand(4, 3), "b": torch.rand(4, 2)}).shape == (4, 2, 6)


def test_grids_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="expected equal sizes"):
        GridEncoder(spaces.Dict({"a": spaces.Box(0, 1, (1, 3, 3)), "b": spaces.Box(0, 1, (1, 4, 4))}))


def test_a_discrete_observation_reaches_a_grid_memory() -> None:
    made = policy(spaces.Discrete(3), spaces.Discrete(2))
    step = made.remember(torch.tensor([0, 2]), made.initial_state(2))
    assert step.output.shape == (2, 8)


def test_many_symbols_are_embedded_and_few_are_one_hot() -> None:
    made = policy(spaces.Discrete(200), spaces.Discrete(2), "gru")
    assert isinstance(made.features_extractor, EmbeddingEncoder)
    vectors = made.features_extractor.vectors
    assert vectors.std().item() == pytest.approx(1.0, abs=0.05)  # as it was made, whatever SB3 initialises
    symbols = torch.tensor([3, 199, 3])
    assert torch.equal(made.encode(symbols)[0], vectors[symbols])
    assert isinstance(policy(spaces.Discrete(31), spaces.Discrete(2), "gru").features_extractor, FlattenExtractor)


# Questions


def test_questions_do_not_enter_what_is_written() -> None:
    env = Mark(5)
    made = policy(env.single_observation_space, env.single_action_space)
    assert isinstance(made.features_extractor, QueryEncoder)
    assert made.features_extractor.query_shapes == {"query": (1, SIDE, SIDE)}
    obs, _ = env.reset(seed=0)
    assert isinstance(obs, dict)
    other = {**obs, "query": 1 - obs["query"]}
    one, two = (made.remember(each, made.initial_state(5)) for each in (obs, other))
    assert torch.equal(one.state["sum"], two.state["sum"])
    assert not torch.equal(one.output, two.output)


def test_a_memory_without_readers_sees_questions_as_input() -> None:
    env = Mark(5)
    made = policy(env.single_observation_space, env.single_action_space, "gru")
    obs, _ = env.reset(seed=0)
    assert isinstance(obs, dict)
    other = {**obs, "query": 1 - obs["query"]}
    one, two = (made.remember(each, made.initial_state(5)) for each in (obs, other))
    assert not torch.equal(one.state["hidden"], two.state["hidden"])


def test_nothing_but_questions_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least one other entry"):
        policy(spaces.Dict({"query": spaces.Box(0, 1, (1, 4, 4))}), spaces.Discrete(2))


def test_a_sequence_is_its_steps() -> None:
    env = Mark(5)
    made = policy(env.single_observation_space, env.single_action_space)
    torch.nn.init.normal_(made.action_net.cells.weight)
    frames = [env.reset(seed=0)[0]] + [env.step(torch.zeros(5, SIDE, SIDE))[0] for _ in range(6)]
    obs = {name: torch.stack([frame[name] for frame in frames]) for name in frames[0]}
    starts = torch.zeros(7, 5, dtype=torch.bool)
    starts[0] = starts[3] = starts[6] = True
    actions = torch.randint(2, (7, 5, SIDE, SIDE)).float()
    judgement, unrolled = made.evaluate_actions(obs, actions, made.initial_state(5), starts)
    state = made.initial_state(5)
    for t, frame in enumerate(frames):
        step = made.remember(frame, state, starts[t])
        state = step.state
        torch.testing.assert_close(unrolled.outputs[t], step.output)
        assert step.grid is not None
        one = made.evaluate_latents(step.output[None], actions[t : t + 1], step.grid[None])
        torch.testing.assert_close(judgement.log_prob[t], one.log_prob[0])


# Maps


@pytest.mark.parametrize("parts", [1, 2])
def test_a_map_of_the_memory_becomes_a_map_of_logits(parts: int) -> None:
    env = Mark(5, parts=parts)
    made = policy(env.single_observation_space, spaces.MultiBinary((parts, SIDE, SIDE)))
    assert made.draws_maps
    head = made.action_net.cells
    nn.init.normal_(head.weight)
    grid, latent = torch.randn(5, 3, SIDE, SIDE), torch.randn(5, 3)
    logits = F.conv2d(grid, head.weight, head.bias)
    assert logits.shape == (5, parts, SIDE, SIDE)
    assert torch.equal(made.act(latent, True, grid), (logits > 0).float())
    action = torch.randint(2, (1, 5, parts, SIDE, SIDE)).to(torch.int8)
    pixels = F.binary_cross_entropy_with_logits(logits, action[0].float(), reduction="none")
    torch.testing.assert_close(-made.log_prob(latent[None], action, grid[None])[0], pixels.sum((1, 2, 3)))
    torch.testing.assert_close(
        made.evaluate_latents(latent[None], action, grid[None]).log_prob[0], -pixels.sum((1, 2, 3))
    )


def test_a_place_on_a_map_is_chosen_by_the_map_and_the_rest_by_the_vector() -> None:
    env = Mark(5)
    made = policy(env.single_observation_space, spaces.MultiDiscrete([4, 2, SIDE * SIDE]))
    assert made.draws_maps
    nn.init.normal_(made.action_net.cells.weight)
    nn.init.normal_(made.action_net.vector.weight)
    grid, latent = torch.randn(5, 3, SIDE, SIDE), torch.randn(5, 3)
    places = F.conv2d(grid, made.action_net.cells.weight, made.action_net.cells.bias).flatten(1)
    first, second = F.linear(latent, made.action_net.vector.weight, made.action_net.vector.bias).split([4, 2], 1)
    chosen = torch.stack([part.argmax(1) for part in (first, second, places)], 1)
    assert torch.equal(made.act(latent, True, grid), chosen)
    each = made.log_prob(latent[None], chosen[None], grid[None], each=True)[0]
    expected = [part.log_softmax(1).amax(1) for part in (first, second, places)]
    torch.testing.assert_close(each, torch.stack(expected, 1))
    torch.testing.assert_close(made.evaluate_latents(latent[None], chosen[None], grid[None]).log_prob[0], each.sum(1))


def test_other_sizes_and_other_memories_have_a_linear_head() -> None:
    env = Mark(2)
    for memory, action in (("gru", (SIDE, SIDE)), ("sums", (SIDE, 2)), ("sums", (9,))):
        made = policy(env.single_observation_space, spaces.MultiBinary(action), memory)
        assert not made.draws_maps
        assert isinstance(made.action_net, nn.Linear)
        obs, _ = env.reset()
        actions, _, log_prob, _ = made.forward(obs, made.initial_state(2))
        assert actions.shape == (2, *action)
        assert log_prob.shape == (2,)


@pytest.mark.parametrize("learner", [A2C, PPO, Supervised])
@pytest.mark.parametrize("memory", ["sums", "gru"])
def test_every_learner_takes_maps_and_questions(learner: type[Any], memory: str) -> None:
    kwargs = {"n_steps": 5, "policy_kwargs": {"memory": memory}, "seed": 0, "device": "cpu"}
    model = learner("MemoryPolicy", Mark(4), **kwargs)
    before = [parameter.clone() for parameter in model.policy.action_net.parameters()]
    model.learn(40)
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, model.policy.action_net.parameters(), strict=True))


def test_saved_and_loaded_it_draws_the_same_maps(tmp_path: Any) -> None:
    model = Supervised("MemoryPolicy", Mark(4), policy_kwargs={"memory": "sums"}, seed=0, device="cpu").learn(24)
    model.save(tmp_path / "agent")
    loaded = Supervised.load(tmp_path / "agent", Mark(4), device="cpu")
    obs, _ = Mark(1).reset(seed=3)
    one = {name: value.numpy() for name, value in obs.items()}
    ours, theirs = (each.policy.predict(one, deterministic=True)[0] for each in (model, loaded))
    assert ours.shape == (1, SIDE, SIDE)
    assert np.array_equal(ours, theirs)
