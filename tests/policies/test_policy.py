"""The policy: one step and a sequence are the same thing, whatever starts when, and SB3's interface on top."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common import distributions as sb3_distributions
from torch import Tensor

from policies.heads import BernoulliDistribution, MultiCategoricalDistribution
from policies.memories import built_in, memory_class
from policies.policy import MemoryActorCriticPolicy

SMALL = {
    "gru": {"hidden_size": 7},
    "lstm": {"hidden_size": 7},
    "mnm-p": {"hidden_size": 7, "key_size": 5, "value_size": 4, "memory_units": 6, "heads": 2},
    "mnm-g": {"hidden_size": 7, "key_size": 5, "value_size": 4, "memory_units": 6, "heads": 2},
    "dmn": {"hidden_size": 7, "capacity": 4, "passes": 2},
}
VECTOR_MEMORIES = [name for name in built_in() if memory_class(name).input_kind == "vector"]
OBS = spaces.Box(-1.0, 1.0, (3,))
SPACES: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(4),
    "box": spaces.Box(np.array([-0.5, 0.0], np.float32), np.array([0.5, 2.0], np.float32)),
    "box matrix": spaces.Box(-1.0, 1.0, (2, 3)),
    "multi-discrete": spaces.MultiDiscrete([2, 3]),
    "multi-binary": spaces.MultiBinary(3),
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def policy(
    memory: str, action: str = "discrete", obs: spaces.Space[Any] = OBS, **kwargs: Any
) -> MemoryActorCriticPolicy:
    torch.manual_seed(0)
    made = MemoryActorCriticPolicy(
        obs, SPACES[action], lambda _: 1e-3, memory=memory, memory_kwargs=SMALL.get(memory, {}), **kwargs
    )
    with torch.no_grad():  # SB3 starts with an almost uniform policy
        made.action_net.weight.mul_(50)
    return made


def some_state(made: MemoryActorCriticPolicy, batch: int) -> dict[str, Tensor]:
    """A state as some steps leave it."""
    state = made.initial_state(batch)
    for _ in range(3):
        state = made.remember(torch.rand(batch, 3) * 2 - 1, state).state
    return {name: value.detach() for name, value in state.items()}


@pytest.mark.parametrize("memory", VECTOR_MEMORIES)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_packed_equals_separate(memory: str, data: st.DataObject) -> None:
    """A batch in which episodes start anywhere gives what each episode gives alone, from a fresh state."""
    length, batch = data.draw(st.integers(1, 9), "T"), data.draw(st.integers(1, 4), "B")
    rows = st.lists(st.booleans(), min_size=batch, max_size=batch)
    starts = torch.tensor(data.draw(st.lists(rows, min_size=length, max_size=length), "starts"))
    made = policy(memory)
    state = some_state(made, batch)
    obs = torch.rand(length, batch, 3) * 2 - 1
    known = starts.any(1).nonzero().flatten().tolist()
    more = sorted({*known, *data.draw(st.lists(st.integers(0, length - 1), max_size=3), "more")})
    close = {"rtol": 1e-4, "atol": 1e-5}
    with torch.no_grad():
        packed = [made.remember_sequence(obs, starts, state, resets) for resets in (None, known, more)]
        for n in range(batch):
            begins = starts[:, n].nonzero().flatten().tolist()
            cuts = sorted({0, *begins, length})
            for begin, end in pairwise(cuts):
                carried = {name: value[n : n + 1] for name, value in state.items()}
                fresh = made.initial_state(1) if begin in begins else carried
                alone = made.remember_sequence(obs[begin:end, n : n + 1], None, fresh)
                for unrolled in packed:
                    torch.testing.assert_close(unrolled.outputs[begin:end, n], alone.outputs[:, 0], **close)
                    for name, loss in unrolled.losses.items():
                        torch.testing.assert_close(loss[begin:end, n], alone.losses[name][:, 0], **close)
            for unrolled in packed:
                for name, value in unrolled.state.items():
                    torch.testing.assert_close(value[n], alone.state[name][0], **close)


@pytest.mark.parametrize("memory", VECTOR_MEMORIES)
def test_steps_equal_the_sequence(memory: str) -> None:
    """Acting, one `remember` at a time, and learning, `remember_sequence`, are the same computation."""
    made = policy(memory)
    obs, starts = torch.rand(8, 5, 3), torch.rand(8, 5) < 0.3
    state = begin = some_state(made, 5)
    outputs = []
    with torch.no_grad():
        for t in range(8):
            step = made.remember(obs[t], state, starts[t])
            outputs.append(step.output)
            state = step.state
        unrolled = made.remember_sequence(obs, starts, begin)
    torch.testing.assert_close(torch.stack(outputs), unrolled.outputs, rtol=1e-4, atol=1e-5)
    for name, value in state.items():
        torch.testing.assert_close(value, unrolled.state[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("action", SPACES)
def test_acting_deciding_and_judging_agree(action: str) -> None:
    """The action is in its space, and its probability is the same when it is taken and when it is looked at again."""
    made = policy("gru", action)
    latent = torch.randn(6, 5, 7)
    torch.manual_seed(1)
    decisions = [made.decide(row) for row in latent]
    torch.manual_seed(1)
    assert torch.equal(made.act(latent[0]), decisions[0].action)
    actions = torch.stack([decision.action for decision in decisions])
    assert actions.shape == (6, 5, *(SPACES[action].shape or ()))
    judgement = made.evaluate_latents(latent, made.actions.to_env(actions) if "multi" in action else actions)
    for index, name in ((1, "value"), (2, "log_prob")):
        torch.testing.assert_close(getattr(judgement, name), torch.stack([decision[index] for decision in decisions]))
    assert judgement.entropy.shape == (6, 5)
    torch.testing.assert_close(made.value(latent[0]), decisions[0].value)
    for given_action in made.actions.to_env(actions[0]).detach().numpy():
        assert SPACES[action].contains(given_action.astype(SPACES[action].dtype)), given_action


def test_log_prob_is_the_papers_loss() -> None:
    """`-log_prob(target)`: cross-entropy for a symbol, binary cross-entropy summed over pixels for bits."""
    latent = torch.randn(4, 6, 7)
    symbols = policy("gru", "discrete")
    target = torch.randint(4, (4, 6))
    logits = symbols.action_net(latent)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(4, 6)
    torch.testing.assert_close(-symbols.evaluate_latents(latent, target).log_prob, expected)

    bits = policy("gru", "multi-binary")
    wanted = torch.randint(2, (4, 6, 3), dtype=torch.int8)
    losses = torch.nn.functional.binary_cross_entropy_with_logits(
        bits.action_net(latent), wanted.float(), reduction="none"
    )
    torch.testing.assert_close(-bits.evaluate_latents(latent, wanted).log_prob, losses.sum(-1))


def test_deterministic_is_the_most_probable() -> None:
    made = policy("gru")
    latent = torch.randn(20, 7)
    assert torch.equal(made.act(latent, deterministic=True), made.action_net(latent).argmax(1))
    probabilities = made.action_probabilities(latent)
    assert probabilities is not None
    torch.testing.assert_close(probabilities, made.action_net(latent).softmax(1))
    counts = torch.stack([torch.bincount(made.act(latent[:1].expand(4000, -1)), minlength=4)])
    torch.testing.assert_close(counts[0] / 4000, probabilities[0], rtol=0, atol=0.03)


def test_a_reset_leaves_the_others_alone() -> None:
    made = policy("lstm")
    state, obs = some_state(made, 3), torch.rand(3, 3)
    kept, reset = made.remember(obs, state), made.remember(obs, state, torch.tensor([False, True, False]))
    fresh = made.remember(obs, made.initial_state(3))
    for name in state:
        torch.testing.assert_close(reset.state[name][[0, 2]], kept.state[name][[0, 2]])
        torch.testing.assert_close(reset.state[name][1], fresh.state[name][1])
        assert not torch.allclose(kept.state[name][1], fresh.state[name][1])


def test_layers_between_memory_and_heads() -> None:
    made = policy("gru", net_arch={"pi": [6], "vf": [5, 4]}, activation_fn=torch.nn.ReLU)
    assert (made.action_net.in_features, made.value_net.in_features) == (6, 4)  # type: ignore[union-attr]
    assert policy("gru").action_net.in_features == 7  # type: ignore[union-attr]
    assert policy("identity").action_net.in_features == 64  # type: ignore[union-attr]


def test_observations_of_several_parts_and_discrete_ones() -> None:
    parts = spaces.Dict({"a": OBS, "b": spaces.MultiDiscrete([2, 3])})
    made = policy("gru", obs=parts)
    obs = {"a": torch.rand(5, 4, 3), "b": torch.tensor([1, 2]).expand(5, 4, 2)}
    unrolled = made.remember_sequence(obs, None, made.initial_state(4))
    step = made.remember({key: value[0] for key, value in obs.items()}, made.initial_state(4))
    torch.testing.assert_close(unrolled.outputs[0], step.output)

    discrete = policy("gru", obs=spaces.Discrete(5))
    weight = discrete.memory.rnn.weight_ih_l0  # type: ignore[union-attr]
    assert weight.shape[1] == 5  # one-hot


def test_a_subclass_may_override_extract_features() -> None:
    class Doubled(MemoryActorCriticPolicy):
        def extract_features(self, obs: Any, features_extractor: Any = None) -> Any:
            return 2 * super().extract_features(obs, features_extractor)

    one, twice = (
        kind(OBS, SPACES["discrete"], lambda _: 1e-3, memory="gru") for kind in (MemoryActorCriticPolicy, Doubled)
    )
    twice.load_state_dict(one.state_dict())
    obs = torch.rand(4, 3)
    torch.testing.assert_close(twice.encode(obs)[0], 2 * one.encode(obs)[0])
    torch.testing.assert_close(one.extract_features(obs), one.encode(obs)[0])


def test_gradients_flow_through_time_and_stop_at_resets() -> None:
    """The loss at the last step reaches the first observation, unless an episode starts in between."""
    made = policy("gru")
    for starts_at, reaches in ((None, True), (0, True), (3, False)):
        obs = torch.rand(6, 2, 3, requires_grad=True)
        starts = torch.zeros(6, 2, dtype=torch.bool)
        if starts_at is not None:
            starts[starts_at] = True
        outputs = made.remember_sequence(obs, starts, made.initial_state(2)).outputs
        (gradient,) = torch.autograd.grad(outputs[-1].sum(), obs)
        assert bool(gradient[0].any()) == reaches
        assert gradient[-1].any()


def test_a_copy_by_its_constructor_parameters() -> None:
    """What SB3 and those who build on it (imitation, say) make a second policy from."""
    made = policy("gru", "box", net_arch=[6], log_std_init=-1.0)
    again = MemoryActorCriticPolicy(**made._get_constructor_parameters())
    assert str(again) == str(made)
    again.load_state_dict(made.state_dict())
    obs = np.random.default_rng(0).random((4, 3)).astype(np.float32)
    one, other = (each.predict(obs, deterministic=True)[0] for each in (made, again))
    assert np.array_equal(one, other)


def test_samples_of_many_parts_have_their_probabilities() -> None:
    """All parts of a MultiDiscrete and all bits of a MultiBinary action are drawn at once."""
    logits = torch.tensor([[0.0, 1.0, 2.0, -torch.inf, 0.5]])
    choices = MultiCategoricalDistribution([3, 2]).proba_distribution(logits.expand(40_000, -1))
    drawn = choices.sample()
    assert drawn.shape == (40_000, 2)
    for part, of in enumerate(choices.distribution):
        found = torch.bincount(drawn[:, part], minlength=of.probs.shape[1]) / len(drawn)
        torch.testing.assert_close(found, of.probs[0], rtol=0, atol=0.01)
    bits = BernoulliDistribution(5).proba_distribution(logits.clamp(min=-3).expand(40_000, -1))
    torch.testing.assert_close(bits.sample().mean(0), bits.distribution.probs[0], rtol=0, atol=0.01)
    diverged = torch.full((2, 5), torch.nan)
    for distribution in (MultiCategoricalDistribution([3, 2]), BernoulliDistribution(5)):
        with pytest.raises(RuntimeError, match="action probabilities contain NaN"):
            distribution.proba_distribution(diverged).sample()


@pytest.mark.parametrize("counts", [[3, 3], [4, 1, 3]])
def test_choices_of_many_parts_at_once_are_those_of_stable_baselines3(counts: list[int]) -> None:
    logits = torch.randn(5, sum(counts), dtype=torch.float64, requires_grad=True)
    actions = torch.stack([torch.randint(count, (5,)) for count in counts], 1)
    found = []
    for kind in (MultiCategoricalDistribution, sb3_distributions.MultiCategoricalDistribution):
        distribution = kind(counts).proba_distribution(logits)
        numbers = distribution.log_prob(actions), distribution.entropy()
        (gradient,) = torch.autograd.grad((numbers[0] + 2 * numbers[1]).sum(), logits)
        found.append((*numbers, gradient, distribution.mode()))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)
    each = MultiCategoricalDistribution(counts).proba_distribution(logits).log_prob_of_each(actions)
    torch.testing.assert_close(each.sum(1), found[0][0])


@pytest.mark.parametrize("action", SPACES)
def test_a_policy_is_copied_right_after_an_update(action: str) -> None:
    """`copy.deepcopy` refuses tensors of a graph: the policy keeps none of those that its distributions are made of."""
    made = policy("gru", action)
    judged, _ = made.evaluate_actions(
        torch.rand(4, 2, 3),
        made.act(torch.randn(8, 7)).view(4, 2, *(SPACES[action].shape or ())).detach(),
        made.initial_state(2),
        None,
    )
    judged.log_prob.sum().backward()
    twin = copy.deepcopy(made)
    obs = torch.rand(2, 3)
    for found, expected in zip(
        twin(obs, twin.initial_state(2), deterministic=True),
        made(obs, made.initial_state(2), deterministic=True),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)


def test_another_default_type_of_torch_is_refused_at_once() -> None:
    """A user may have set it for code of their own; it would end in a product of float and double."""
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(
            ValueError, match=r"torch's default type is torch\.float64.*torch\.set_default_dtype\(torch\.float32"
        ):
            policy("gru")
    finally:
        torch.set_default_dtype(torch.float32)
