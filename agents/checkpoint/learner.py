"""`save` and `load`: writes a learner to a checkpoint, and builds one from it."""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any, TypeVar

import torch
from stable_baselines3.common.utils import get_system_info
from torch import Tensor, nn

from agents.checkpoint.encoding import decode, decode_space, encode, encode_space
from agents.checkpoint.environment import describe, difference
from agents.checkpoint.files import CheckpointError, Place, Source
from agents.checkpoint.format import (
    latest_checkpoint,
    listed_shapes,
    read_manifest,
    read_tensors,
    write_checkpoint,
)
from agents.checkpoint.generators import get_generators
from agents.checkpoint.opening import checkpoint_errors, compare_sizes, open_checkpoint, shape_differences
from agents.checkpoint.optimizer import plain_groups
from agents.checkpoint.restore import check_finite, load_policy, prefix_of, restore, with_prefix
from agents.checkpoint.saved import COUNTERS, check_manifest
from agents.environments import EnvLike, device_for
from agents.hyperparameters import CHECKED_SETUP, SAVED_SETUP, fields_of, hints_of
from agents.sb3.training_env import TrainingEnv
from agents.scale import distributed
from envs.tensor_env import TensorEnv
from policies.normalization import exchange_value_norm
from policies.plugins import qualified_name

LIBRARIES = ("torch", "gymnasium", "stable-baselines3", "numpy", "safetensors")

DEFAULTS_OF_OLD_CHECKPOINTS = {"normalize_values": False, "normalize_obs": False}
"""Values of arguments that older checkpoints do not have."""

Learner = TypeVar("Learner", bound=TrainingEnv)


def is_ours(qualified: str) -> bool:
    """Whether a learner, as in `agents.ppo:PPO`, belongs to this project."""
    return qualified.startswith("agents.")


class NewEpisodesWarning(UserWarning):
    """A loaded agent starts new episodes or new random numbers, because the saved ones do not fit here."""


def load_weights(policy: nn.Module, path: str | os.PathLike[str]) -> None:
    """Loads parameters and buffers of a checkpoint, or of the newest in a run's folder, into a policy.

    Raises:
        CheckpointError: the checkpoint is missing or damaged, or its weights do not fit the policy.
    """
    with open_checkpoint(latest_checkpoint(path)) as source:
        manifest = read_manifest(source)
    with checkpoint_errors(source):
        saved_shapes = with_prefix(listed_shapes(manifest), "policy/")
        if differs := shape_differences(saved_shapes, policy, ignored="value_norm."):
            raise CheckpointError(
                f"the weights in {source.name} do not fit this memory, environment and sizes: {differs}"
            )
        order = list(manifest["observation_space"].get("spaces", ()))
        found = list(getattr(policy.observation_space, "spaces", ()))
        if order != found:
            raise CheckpointError(
                f"the weights in {source.name} expect the observation's entries in the order {', '.join(order)}, but "
                f"the environment has {', '.join(found)}: write it as spaces.Dict([(name, space), ...]) in that order"
            )
        with open_checkpoint(source):
            tensors = read_tensors(source, manifest)
        weights = exchange_value_norm(with_prefix(tensors, "policy/"), policy.state_dict())
        check_finite(weights, policy.state_dict())
        policy.load_state_dict(weights)


def save(model: TrainingEnv, path: Place, include: Iterable[str] | None = None) -> None:
    """Writes a checkpoint: the agent, its optimiser, and everything that the run's next step depends on.

    With several ranks every rank must call it; rank 0 writes the data of all of them.

    Args:
        path: of the folder; a path that ends in ".zip" becomes one file; or a binary file object for the zip.
        include: must be empty, because the contents of a checkpoint are fixed.

    Raises:
        ValueError: `include` is not empty; or `path` is a file, or a folder with other files and no checkpoint.
        TypeError: `path` is neither a path nor a binary file object.
        OSError: the checkpoint cannot be written; an existing one is kept.
    """
    if include:
        raise ValueError(
            f"include is {', '.join(include)}, but the contents of a checkpoint are fixed: expected none; "
            "keep attributes of your own in a separate file"
        )
    parts = distributed.to_first(_of_this_rank(model))
    if not parts:
        return
    policy = getattr(model.policy, "_orig_mod", model.policy)  # what torch.compile(model.policy) has wrapped
    tensors = {f"policy/{name}": value for name, value in policy.state_dict().items()}
    optimizer = model.policy.optimizer.state_dict()
    for index, entries in optimizer["state"].items():
        for name, value in entries.items():
            if value is not None:
                tensors[f"optimizer/{index}/{name}"] = torch.as_tensor(value)
    for rank, each in enumerate(parts):
        tensors |= {prefix_of(rank) + name: value for name, value in each.items()}
    if model._last_obs is not None:
        tensors |= _episodes(model)
    manifest = {
        "algorithm": type(model).__name__,
        "learner": qualified_name(type(model)),
        "policy": encode(model.policy_class),
        "config": {name: encode(getattr(model, name)) for name in (*hints_of(model.config_class), *SAVED_SETUP)},
        "param_groups": plain_groups(optimizer["param_groups"]),
        "counters": {name: getattr(model, name) for name in COUNTERS},
        "num_envs": getattr(model, "n_envs", 1) * len(parts),
        "ranks": len(parts),
        "device": model.device.type,
        "environment": describe(model.tensor_env) if model.env is not None else None,
        "may_start": model._last_obs is None or model.rollout_state.may_start,
        "observation_space": encode_space(model.observation_space),
        "action_space": encode_space(model.action_space),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
    }
    if model.whole_episodes:
        manifest["config"]["n_steps"] = 0
    if model.env is None and model.unused_run is not None:
        before, unused = model.unused_run
        tensors |= unused
        for name in ("num_envs", "ranks", "device", "environment", "may_start"):
            manifest[name] = before.get(name, manifest[name])
        manifest["environment"] = before.get("environment", before.get("env"))
    write_checkpoint(path, manifest, tensors)


def _of_this_rank(model: TrainingEnv) -> dict[str, Tensor]:
    """The data that differs between ranks: generators, environments, observation, reset signal and memory."""
    generators = model.generators_to_set or get_generators()  # from a checkpoint, not yet used
    tensors = {f"rng/{name}": value for name, value in generators.items()}
    if model.env is not None:
        tensors |= {f"env/{name}": value for name, value in model.tensor_env.state_dict().items()}
    if model._last_obs is not None:
        tensors |= model.rollout_state.tensors()
    return tensors if distributed.size() == 1 else {name: value.cpu() for name, value in tensors.items()}


def _episodes(model: TrainingEnv) -> dict[str, Tensor]:
    """Statistics of the running and the last finished episodes of all environments."""
    assert model.ep_info_buffer is not None
    assert model.ep_success_buffer is not None
    recent = [[episode["r"], episode["l"], episode["t"]] for episode in model.ep_info_buffer]
    return {
        "run/episode_returns": torch.from_numpy(model.episodes.returns),
        "run/episode_lengths": torch.from_numpy(model.episodes.lengths),
        "run/recent_episodes": torch.tensor(recent, dtype=torch.float64).view(-1, 3),
        "run/recent_successes": torch.tensor(list(model.ep_success_buffer), dtype=torch.float64),
    }


def load(
    kind: type[Learner],
    path: Place | Source,
    env: EnvLike | None = None,
    device: torch.device | str = "auto",
    custom_objects: dict[str, Any] | None = None,
    print_system_info: bool = False,
    force_reset: bool = False,
    **kwargs: Any,
) -> Learner:
    """Loads a checkpoint.

    With an equal environment (class, arguments and number) and the same number of ranks, `learn(...,
    reset_num_timesteps=False)` continues exactly where the saved run stopped. Otherwise the environments start new
    episodes, and `new_episodes` and a warning say why. Host environments always do, because their state cannot be read.

    Args:
        path: of the folder or zip file, with or without ".zip"; a run's folder, for its newest checkpoint; or a
            binary file object with the zip.
        env: to continue training; None to predict only.
        device: of the agent. "auto": the environment's if `env` is given, else an accelerator if available.
        custom_objects: as `kwargs`, for compatibility with SB3.
        print_system_info: print versions, as SB3 does.
        force_reset: always start new episodes.
        **kwargs: constructor arguments that replace the saved ones, `policy_kwargs` entry by entry. Your own functions
            and classes must be passed here, because a checkpoint does not import them.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, of a newer version, or does not fit `env` (such as other
            spaces) or the arguments.
        TypeError: `path` is neither a path nor a binary file object.
    """
    if print_system_info:
        get_system_info()
    fields = hints_of(kind.config_class)
    known = [*fields, *SAVED_SETUP]
    kwargs = {name: value for name, value in (custom_objects or {}).items() if name in known} | kwargs
    with open_checkpoint(path) as source:
        manifest = read_manifest(source)
        _check_class(kind, manifest, source.name)
    with checkpoint_errors(source):
        check_manifest(manifest, CHECKED_SETUP | fields, kind.config_class.schedules, kwargs)
        replaced = optimizer_arguments(manifest, kwargs)
        model = _build(kind, manifest, env, device_for(device, env), kwargs)
    with open_checkpoint(source):
        tensors = read_tensors(source, manifest)
    with checkpoint_errors(source):
        if kwargs.get("seed") is not None:
            model.new_generators = f"seed {kwargs['seed']} was given"
        restore(model, manifest, tensors, replaced)
    if force_reset:
        model._last_obs = None
    for what, why in (("new episodes", model.new_episodes), ("new random numbers", model.new_generators)):
        if why and "on the host" not in why:
            warnings.warn(f"{what}: {why}", NewEpisodesWarning, stacklevel=3)
    return model


def optimizer_arguments(manifest: dict[str, Any], given: Mapping[str, Any]) -> set[str]:
    """Names of the optimiser's arguments that `given`, constructor arguments, replace."""
    names = {"eps"} if {"rms_prop_eps", "adam_eps"} & {*given} else set[str]()
    new = given.get("policy_kwargs") or {}
    if "optimizer_kwargs" in new:
        saved = (manifest["config"]["policy_kwargs"] or {}).get("optimizer_kwargs")
        names |= {*(new["optimizer_kwargs"] or {}), *(saved or {})}
    return names


def _check_class(kind: type[TrainingEnv], manifest: dict[str, Any], checkpoint: str) -> None:
    """Refuses the checkpoint of another learner. Another module is accepted (it may have been renamed), but a class of
    this project and another's of the same name are never taken for each other.

    Raises:
        CheckpointError: it is another's.
    """
    name, saved = manifest.get("algorithm"), str(manifest.get("learner", ""))  # older ones hold only the name
    if name != kind.__name__:
        raise CheckpointError(f"{checkpoint} holds {name}, expected {kind.__name__}")
    if saved and is_ours(saved) != is_ours(qualified_name(kind)):
        raise CheckpointError(f"{checkpoint} holds {saved}, expected {qualified_name(kind)}: load it by its own class")


def _build(
    kind: type[Learner], manifest: dict[str, Any], env: EnvLike | None, device: torch.device, kwargs: dict[str, Any]
) -> Learner:
    """A learner with the saved arguments. Shapes are compared here; the tensors are loaded later."""
    observation_space = decode_space(manifest["observation_space"])
    action_space = decode_space(manifest["action_space"])
    given = kwargs.pop("policy_kwargs", {})
    saved = manifest["config"]["policy_kwargs"] or {}
    saved_kwargs = {name: decode(value, f"policy_kwargs.{name}") for name, value in saved.items() if name not in given}
    fields = fields_of(kind.config_class)
    defaults = {field.name: DEFAULTS_OF_OLD_CHECKPOINTS.get(field.name, field.default) for field in fields}
    config = defaults | manifest["config"]
    missing = [name for name in (*defaults, *SAVED_SETUP) if name not in (*kwargs, "policy_kwargs")]
    arguments = {name: decode(config[name], name) for name in missing} | kwargs
    policy = arguments.pop("policy", None) or _policy_class(kind, manifest["policy"])
    learner: Any = kind
    model = learner(
        policy, env, device=device, policy_kwargs=saved_kwargs | given, _init_setup_model=False, **arguments
    )
    for name, saved_space in (("observation_space", observation_space), ("action_space", action_space)):
        if env is not None and getattr(model, name) != saved_space:
            raise ValueError(f"{name} is {getattr(model, name)}, but the agent was trained with {saved_space}")
        setattr(model, name, saved_space)  # equal Dicts may differ in order, and the weights follow the saved one
    if env is None:
        model.n_envs = manifest["num_envs"]
    compare_sizes(model, manifest)
    model._setup_model()
    return model  # type: ignore[no-any-return]


def _policy_class(kind: type[Learner], saved: Any) -> Any:
    """The class of a saved policy: one that the learner itself names, else one of this project."""
    own = [policy for policy in kind.policy_aliases.values() if encode(policy) == saved]
    return own[0] if own else decode(saved, "policy")


def describe_env_change(model: TrainingEnv, env: TensorEnv) -> str:
    """How a new environment differs from the current one, or from the checkpoint's; empty if it is equal."""
    before: Any
    if model.env is not None:
        before, count = describe(model.tensor_env), model.n_envs
    elif model.unused_run is not None:
        manifest = model.unused_run[0]
        before, count = manifest.get("environment", manifest.get("env")), manifest["num_envs"] // distributed.size()
    else:
        return ""
    if before is not None and (found := difference(before, describe(env))):
        return found.replace("the checkpoint", "the run so far")
    return "" if count == env.num_envs else f"the run so far has num_envs={count}, this one num_envs={env.num_envs}"


def load_parameters(model: TrainingEnv, path: Place) -> None:
    """Loads only the policy and its optimiser from a checkpoint.

    Raises:
        CheckpointError: the checkpoint is damaged, or belongs to another policy.
        TypeError: `path` is neither a path nor a binary file object.
    """
    with open_checkpoint(path) as source:
        manifest = read_manifest(source)
    with checkpoint_errors(source):
        if differs := shape_differences(with_prefix(listed_shapes(manifest), "policy/"), model.policy):
            raise ValueError(differs)
        with open_checkpoint(source):
            tensors = read_tensors(source, manifest)
        load_policy(model, manifest, tensors)
