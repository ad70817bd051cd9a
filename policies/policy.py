"""`MemoryActorCriticPolicy`: encoder → memory → heads, as a Stable-Baselines3 actor-critic policy."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import BernoulliDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, MlpExtractor
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from policies.action_masks import as_masks, masked
from policies.encoders import QueryEncoder, encoder_errors_named, encoder_for, shape_of, try_encoder
from policies.heads import (
    ActionConverter,
    ActionEvaluation,
    CategoricalDistribution,
    ChoiceDistribution,
    Decision,
    MultiCategoricalDistribution,
    flattened,
    map_distribution,
    unchecked,
)
from policies.memories import make_memory, memory_class
from policies.memories.contract import Memory, MemoryStep, State, Unrolled
from policies.memories.registry import current_arguments
from policies.memories.steps import as_starts, check_state, reset
from policies.memories.time.checkpointing import Segments
from policies.memories.time.recording import Recording
from policies.normalization import ObsNorm, ValueNorm
from policies.observations import Obs as Obs
from policies.observations import batch_size_of, preparation, tensors_of


class MemoryActorCriticPolicy(ActorCriticPolicy):
    """An SB3 `ActorCriticPolicy` with a memory.

    `predict`, distributions, schedules and `policy_kwargs` are SB3's. The memory is between the feature extractor and
    the heads; with `memory="identity"` this is SB3's feed-forward policy. If the action is a map (`MultiBinary([..., H,
    W])`), or its last part a place on one, and the memory outputs a map of that size, the head is a 1×1 convolution.

    Args:
        observation_space: `Box`, `Discrete`, `MultiDiscrete`, `MultiBinary` or a `Dict` of them.
        action_space: any that SB3 has a distribution for.
        lr_schedule: learning rate against remaining progress (1 → 0).
        memory: a registered name, see `policies.memories.registered()`.
        memory_kwargs: the memory's own arguments, without its input size.
        bptt_segment: back-propagation through time stores the memory's state every N steps and recomputes the
            rest (gradient checkpointing, `policies.memories.time.checkpointing`). 0: stores every step. None: 0, unless
            a sequence would store more than 1 GiB, or on a GPU a quarter of its memory.
        net_arch: hidden layers between the memory and the heads, as SB3 writes them. None: SB3's two 64-unit layers
            for `identity`, so that the memoryless agent is a fair one, and no layer for the others.
        activation_fn: activation of those layers.
        ortho_init: orthogonal initialisation of extractor, layers and heads, but not of the memory.
        log_std_init: initial log standard deviation of continuous actions.
        features_extractor_class: None: by the observation space and the memory, see `policies.encoders.encoder_for`.
        features_extractor_kwargs: its arguments.
        normalize_images: divide uint8 images by 255. Images of at most 16×16 are read as symbols and not divided,
            unless a custom encoder is used.
        optimizer_class: a torch optimiser whose `step` needs no closure, so not LBFGS.
        optimizer_kwargs: its arguments without the learning rate; None: for Adam `eps` of 1e-5, as in SB3, and torch's
            fused step.
        normalize_values: learn values in standard deviations of the returns (`ValueNorm`).
        normalize_obs: normalise observations by their running mean and variance (`ObsNorm`).

    Raises:
        ValueError: the memory is unknown or refuses an argument, the encoder cannot be built for the observations, or
            torch's default type is not float32.
        TypeError: the memory does not take an argument.
    """

    memory: Memory

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        memory: str = "lstm",
        memory_kwargs: dict[str, Any] | None = None,
        bptt_segment: int | None = None,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.Tanh,
        ortho_init: bool = True,
        log_std_init: float = 0.0,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        normalize_values: bool = False,
        normalize_obs: bool = False,
    ) -> None:
        if torch.get_default_dtype() != torch.float32:
            raise ValueError(
                f"torch's default type is {torch.get_default_dtype()}, but policies compute in float32: call "
                "torch.set_default_dtype(torch.float32) before"
            )
        if net_arch is None:
            net_arch = [64, 64] if memory == "identity" else []
        self.memory_name, self._space = memory, action_space
        self.memory_kwargs, self.bptt_segment = current_arguments(memory, memory_kwargs or {}), bptt_segment
        features_extractor_kwargs = dict(features_extractor_kwargs or {})
        if features_extractor_class is None:
            features_extractor_class, arguments = encoder_for(
                observation_space, memory_class(memory), self.memory_kwargs
            )
            features_extractor_kwargs = {**arguments, **features_extractor_kwargs}
        if optimizer_kwargs is None and optimizer_class is torch.optim.Adam:
            optimizer_kwargs = {"eps": 1e-5, "fused": True}
        super().__init__(
            observation_space,
            flattened(action_space),
            lr_schedule,
            net_arch=net_arch,
            activation_fn=activation_fn,
            ortho_init=ortho_init,
            log_std_init=log_std_init,
            features_extractor_class=features_extractor_class,
            features_extractor_kwargs=features_extractor_kwargs,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )
        self.action_space, self.action_shape = action_space, action_space.shape or ()
        self.value_norm = ValueNorm() if normalize_values else None
        self.obs_norm = ObsNorm(observation_space) if normalize_obs else None
        keep_symbols = getattr(self.features_extractor, "takes_symbols", False)
        self.actions = ActionConverter(action_space)
        """Converts between the distributions' actions and the environment's."""
        self.prepare = preparation(observation_space, normalize_images, keep_symbols)
        """Converts observations to floats."""
        if type(self).extract_features is MemoryActorCriticPolicy.extract_features:
            try_encoder(self.features_extractor, observation_space, self.prepare)

    def make_features_extractor(self) -> BaseFeaturesExtractor:
        with encoder_errors_named(self.features_extractor_class, self.observation_space):
            encoder = super().make_features_extractor()
            _ = encoder.features_dim  # an error names the encoder
            return encoder

    def _build_mlp_extractor(self) -> None:
        # SB3 calls this first while it builds the networks: the memory goes before the layers it feeds.
        encoder = self.features_extractor
        queries = encoder.query_shapes if isinstance(encoder, QueryEncoder) else None
        questions: dict[str, Any] = {} if queries is None else {"queries": queries}
        self.memory = make_memory(self.memory_name, input_size=shape_of(encoder), **questions, **self.memory_kwargs)
        self.segments = Segments(self.memory, self.bptt_segment, shape_of(encoder), queries)
        maps = map_distribution(self._space, self.memory.output_grid)
        self.draws_maps = maps is not None
        """Whether the actor's head reads the memory's map; the critic always reads its vector."""
        self.action_dist = unchecked(self.action_dist) if maps is None else maps
        self.mlp_extractor = MlpExtractor(
            self.memory.output_size,
            net_arch=self.net_arch,
            activation_fn=self.activation_fn,
            device=torch.get_default_device(),
        )

    def use_reference_implementations(self) -> None:
        """Replaces the fast forms of memory, heads and optimiser by the equations; results differ only by rounding."""
        self.memory.use_fast_form(False)
        if isinstance(self.action_dist, ChoiceDistribution):
            self.action_dist = CategoricalDistribution(self.action_dist.action_dim)
        for group in self.optimizer.param_groups:
            if group.get("fused"):
                group["fused"] = False

    # -- the two halves of a step: remember, then decide -----------------------------------------------------------

    def initial_state(self, batch_size: int) -> State:
        """The memory's state at the first step of an episode."""
        return self.memory.initial_state(batch_size)

    def remember(
        self, obs: Obs, state: State, starts: Tensor | None = None, recording: Recording | None = None
    ) -> MemoryStep:
        """Encodes one observation and steps the memory.

        Args:
            obs: `[B, ...]`.
            state: before the step.
            starts: bool `[B]`, true where `obs` is the first of its episode; None: nowhere.
            recording: records the step, to differentiate it later.
        """
        x, *queries = self.encode(obs)
        if recording is not None:
            return recording.step(x, starts, *queries)
        if starts is not None:
            state = reset(state, starts, self.memory.initial_state(starts.shape[0]))
        return self.memory.step(x, state, *queries)

    def remember_sequence(
        self, obs: Obs, starts: Tensor | None, state: State, resets: Sequence[int] | None = None
    ) -> Unrolled:
        """`remember` over time: `obs` `[T, B, ...]`, `starts` `[T, B]`; `resets` as in `Memory.unroll`."""
        shape = next(iter(obs.values())).shape[:2] if isinstance(obs, dict) else obs.shape[:2]
        flat = {key: value.flatten(0, 1) for key, value in obs.items()} if isinstance(obs, dict) else obs.flatten(0, 1)
        x, *queries = self.encode(flat)
        queries = [{name: query.view(*shape, *query.shape[1:]) for name, query in each.items()} for each in queries]
        return self.segments.unroll(x.view(*shape, *x.shape[1:]), starts, state, resets, *queries)

    # Arguments of the following methods. `grid`: the memory's map output, `[B, C, H, W]` or `[T, B, C, H, W]`. `mask`:
    # the valid choices (`policies.action_masks`), `[B, choices]` or `[T, B, choices]`; None: all are valid.

    def act(
        self, latent: Tensor, deterministic: bool = False, grid: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Action `[..., *action_shape]` for a memory output `[..., F]`."""
        action = self._distribution(latent, grid, mask).get_actions(deterministic=deterministic)
        return action.view(*latent.shape[:-1], *self.action_shape)

    def decide(
        self, latent: Tensor, deterministic: bool = False, grid: Tensor | None = None, mask: Tensor | None = None
    ) -> Decision:
        """Action `[B, *action_shape]`, value `[B]` and log-probability `[B]` for a memory output `[B, F]`."""
        distribution = self._distribution(latent, grid, mask)
        action = distribution.get_actions(deterministic=deterministic)
        return Decision(action.view(-1, *self.action_shape), self.value(latent), distribution.log_prob(action))

    def _distribution(self, latent: Tensor, grid: Tensor | None, mask: Tensor | None = None) -> Distribution:
        """The distribution over actions; times and batch entries of a sequence are all rows of it."""
        features: Any = self.mlp_extractor.forward_actor(latent.flatten(0, -2))
        if self.draws_maps:
            assert grid is not None, "the actor's head reads the memory's map"
            features = features, grid.flatten(0, -4)
        logits = self.action_net(features)  # of a `Box`: means
        if mask is not None:
            logits = masked(logits, mask.flatten(0, -2), self.action_space)
        log_std = (self.log_std,) if isinstance(self.action_space, spaces.Box) else ()
        # a copy: if the policy's own distribution held the graph, the policy could not be deep-copied
        return copy.copy(self.action_dist).proba_distribution(logits, *log_std)

    def _log_prob(self, distribution: Distribution, action: Tensor, each: bool = False) -> Tensor:
        if isinstance(self.action_space, spaces.Box) or action.dim() > 2:  # SB3's distributions expect `[B, n]`
            action = action.reshape(len(action), -1)
        if isinstance(distribution, BernoulliDistribution):
            action = action.to(distribution.distribution.logits.dtype)  # torch's Bernoulli needs floats
        if each and isinstance(distribution, MultiCategoricalDistribution):
            return distribution.log_prob_of_each(action)
        return distribution.log_prob(action)

    def evaluate_latents(
        self, latent: Tensor, action: Tensor, grid: Tensor | None = None, mask: Tensor | None = None
    ) -> ActionEvaluation:
        """Value, log-probability and entropy, `[T, B]`, of actions `[T, B, *action_shape]` at outputs `[T, B, F]`."""
        shape = latent.shape[:-1]
        distribution = self._distribution(latent, grid, mask)
        log_prob = self._log_prob(distribution, action.flatten(0, 1))
        entropy = distribution.entropy()
        assert entropy is not None, "only squashed distributions have no entropy; none is used here"
        return ActionEvaluation(
            self.value(latent.flatten(0, -2)).view(shape), log_prob.view(shape), entropy.view(shape)
        )

    def log_prob(
        self,
        latent: Tensor,
        action: Tensor,
        grid: Tensor | None = None,
        each: bool = False,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Log-probability `[T, B]` of actions; the supervised learner's objective for right answers.

        With `each`, one per part of a `MultiDiscrete` action, `[T, B, parts]`.
        """
        log_prob = self._log_prob(self._distribution(latent, grid, mask), action.flatten(0, 1), each)
        return log_prob.view(*latent.shape[:-1], *log_prob.shape[1:])

    def value(self, latent: Tensor) -> Tensor:
        """Value `[B]` of a memory output `[B, F]`."""
        values: Tensor = self.value_net(self.mlp_extractor.forward_critic(latent)).squeeze(-1)
        return values if self.value_norm is None else self.value_norm(values)

    def action_probabilities(
        self, latent: Tensor, grid: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor | None:
        """Probabilities of `Discrete` choices, or of 1 for each bit of `MultiBinary`, `[B, n]`; None for other actions.

        With outputs `[T, B, F]`, `[T · B, n]`.
        """
        return getattr(self._distribution(latent, grid, mask).distribution, "probs", None)

    def encode(self, obs: Obs) -> tuple[Any, ...]:
        """The memory's input and, with readers, the questions.

        The encoder receives the entries of a `Dict` in the order of `observation_space`, independent of their order in
        `obs`.
        """
        features: Any = self.extract_features(obs if self.obs_norm is None else self.obs_norm(obs))
        return features if isinstance(features, tuple) else (features,)

    def extract_features(self, obs: Obs, features_extractor: BaseFeaturesExtractor | None = None) -> Any:
        """Encodes observations `[B, ...]`; a subclass may override it, as in SB3."""
        return (features_extractor or self.features_extractor)(self.prepare(obs))

    # -- SB3's interface -------------------------------------------------------------------------------------------

    def forward(  # type: ignore[override]
        self,
        obs: Obs,
        state: State,
        starts: Tensor | None = None,
        deterministic: bool = False,
        action_masks: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, State]:
        """One step: returns action, value `[B]`, log-probability `[B]` and the new state."""
        step = self.remember(obs, state, starts)
        return (*self.decide(step.output, deterministic, step.grid, action_masks), step.state)

    def predict(  # type: ignore[override]
        self,
        observation: np.ndarray[Any, Any] | dict[str, np.ndarray[Any, Any]],
        state: State | None = None,
        episode_start: np.ndarray[Any, Any] | None = None,
        deterministic: bool = False,
        action_masks: Any = None,
    ) -> tuple[np.ndarray[Any, Any], State]:
        """SB3's `predict` for recurrent policies: pass the returned state to the next call.

        Args:
            observation: of one environment or several, as returned by the environment: may be nested, contain text, and
                have images with channels first or last.
            state: as returned by the last call; None at the first.
            episode_start: bool `[B]`, true where `observation` is the first of its episode; None: nowhere.
            deterministic: act greedily instead of sampling.
            action_masks: which choices are valid, as in sb3-contrib's `MaskablePPO`: `[B, choices]`, or `[choices]` of
                one environment; see `policies.action_masks`. None: all.

        Returns:
            The action in the environment's own numbers and type, and the state. The action of one environment with a
            `Discrete` space is a NumPy number.

        Raises:
            ValueError: an entry of the observation is missing, of another shape or NaN; the state or `episode_start` is
                of another number of environments, the state of another memory; a mask has another shape or no choice.
            TypeError: the state is not a dictionary of tensors.
        """
        self.set_training_mode(False)
        obs, vectorized = self.obs_to_tensor(observation)
        batch = batch_size_of(obs)
        if state is None:
            state = self.initial_state(batch)
        else:
            check_state(state, self.initial_state(1), batch)
        starts = None if episode_start is None else as_starts(episode_start, batch, self.device)
        if action_masks is not None:
            action_masks = torch.as_tensor(as_masks(action_masks, self.action_space, batch), device=self.device)
        with torch.no_grad():
            action, _, _, state = self.forward(obs, state, starts, deterministic, action_masks)
            actions = self.actions.arrays(action)
        if vectorized:
            return actions, state
        # a number, not an array: toy-text environments look actions up in a dictionary
        return actions[0] if isinstance(self.action_space, spaces.Discrete) else actions.squeeze(axis=0), state

    def obs_to_tensor(self, observation: Any) -> tuple[Obs, bool]:
        """`observation` as tensors `[B, ...]` on the policy's device, and whether it was of several environments."""
        return tensors_of(observation, self.observation_space, self.device)

    def evaluate_actions(  # type: ignore[override]
        self,
        obs: Obs,
        actions: Tensor,
        state: State,
        starts: Tensor | None,
        resets: Sequence[int] | None = None,
        action_masks: Tensor | None = None,
    ) -> tuple[ActionEvaluation, Unrolled]:
        """Replays `[T, B, ...]` from `state` and evaluates the actions taken; also returns the memory's outputs and
        losses."""
        unrolled = self.remember_sequence(obs, starts, state, resets)
        return self.evaluate_latents(unrolled.outputs, actions, unrolled.grids, action_masks), unrolled

    def predict_values(self, obs: Obs, state: State, starts: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Value `[B]` of one observation given the state before it."""
        return self.value(self.remember(obs, state, starts).output)

    def get_distribution(  # type: ignore[override]
        self, obs: Obs, state: State, starts: Tensor | None = None, action_masks: Tensor | None = None
    ) -> Any:
        """SB3 distribution over the actions of one observation given the state before it."""
        step = self.remember(obs, state, starts)
        return self._distribution(step.output, step.grid, action_masks)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        known = inspect.signature(type(self).__init__).parameters  # without SB3's arguments for exploration
        arguments = {name: value for name, value in super()._get_constructor_parameters().items() if name in known}
        memory = {"memory": self.memory_name, "memory_kwargs": self.memory_kwargs}
        norms = {"normalize_values": self.value_norm is not None, "normalize_obs": self.obs_norm is not None}
        return {**arguments, **memory, **norms, "bptt_segment": self.bptt_segment}
