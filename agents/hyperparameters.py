"""Hyper-parameters of the learners, a dataclass for each.

A learner's constructor, `train.py --algo NAME`, recipes, sweeps and checkpoints all read its dataclass. To add a
hyper-parameter, add a field; the docstring below the field is its help text.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, get_type_hints

import torch

from agents.common.arguments import (
    Count,
    Fraction,
    NotNegative,
    Positive,
    Rate,
    Seed,
    Whole,
    describe_type,
    format_value,
    read_typed,
)
from agents.scale.fast import Fast, Precision
from policies.policy import MemoryActorCriticPolicy


class Hyperparameters:
    """Base of the hyper-parameter dataclasses, with the help texts of shared fields.

    This class is not a dataclass. A learner's dataclass lists its fields with their defaults, in the order of the
    constructor's arguments. Every learner has `learning_rate`, `n_steps` and `max_grad_norm`.
    """

    learning_rate: Rate
    """Learning rate of the optimiser, usually 1e-4 to 1e-3. If it is too high, approx_kl jumps and the return falls."""
    n_steps: Whole
    """Steps per environment in a rollout, which is also the length of back-propagation through time. 0: a whole
    episode, if all episodes have the same length."""
    gamma: Fraction
    """Discount factor, 0..1."""
    gae_lambda: Fraction
    """Lambda of generalised advantage estimation, 0..1. 0: one-step advantages, biased; 1: full returns, noisy."""
    ent_coef: NotNegative
    """Weight of the entropy bonus. If it is too low, the policy converges before it has explored."""
    vf_coef: NotNegative
    """Weight of the value loss."""
    aux_coef: NotNegative
    """Weight of the memory's own losses, if it has any."""
    max_grad_norm: Positive
    """Gradients are clipped to this global norm."""
    normalize_advantage: bool
    """Normalise advantages to mean 0 and standard deviation 1."""
    normalize_values: bool
    """Learn values in units of the running standard deviation of the returns, so that the scale of rewards does not
    matter."""
    normalize_obs: bool
    """Normalise observations by their running mean and standard deviation, except images. train.py turns this on for
    environments from outside this project, unless a recipe sets it."""
    reward_scale: Positive
    """Factor on the rewards for learning; logs show the original rewards."""
    target_coef: NotNegative
    """Weight of a supervised loss beside those of reinforcement: the cross-entropy of `info["target"]`, weighted by
    `info["weight"]`. For environments that give right actions."""

    schedules: ClassVar[tuple[str, ...]] = ("learning_rate",)
    """Hyper-parameters that may be schedules: functions of the remaining progress (1 → 0)."""
    fixed: ClassVar[tuple[str, ...]] = ("reward_scale", "normalize_values", "normalize_obs")
    """Hyper-parameters that cannot change when a run is resumed."""
    run_defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 1e-3}
    """Defaults of `train.py` that differ from the class; may also hold entries of the run, such as `num_envs`, used if
    no recipe is named."""
    gpu_defaults: ClassVar[Mapping[str, Any]] = {}
    """The entries of `run_defaults` that differ with `--device cuda`."""


@dataclass
class Setup:
    """How and where a learner runs: constructor arguments after the hyper-parameters."""

    fast: Fast = "auto"
    precision: Precision = "float32"
    stats_window_size: Count = 100
    tensorboard_log: str | None = None
    policy_kwargs: dict[str, Any] | None = None
    verbose: int = 0
    seed: Seed | None = None
    device: torch.device | str = "auto"
    _init_setup_model: bool = True


SAVED_SETUP = ("stats_window_size", "policy_kwargs", "seed")
"""The entries of `Setup` that a checkpoint stores; device and speed are chosen when it is loaded."""


def fields_of(config: Any) -> tuple[dataclasses.Field[Any], ...]:
    """The fields of a learner's dataclass, or of one of its objects, in the order of the constructor."""
    return dataclasses.fields(config)


def hints_of(config: Any) -> dict[str, Any]:
    """The type and range of every hyper-parameter of a dataclass, in order."""
    try:
        hints = get_type_hints(config, include_extras=True)
    except NameError:  # a dataclass inside a function, whose annotations name local types
        hints = {}
    return {entry.name: hints.get(entry.name, type(entry.default)) for entry in fields_of(config)}


CHECKED_SETUP = {name: hint for name, hint in hints_of(Setup).items() if name in ("stats_window_size", "seed")}
"""The entries of `Setup` that are checked like hyper-parameters."""


def checked_values(config: type[Hyperparameters], values: Mapping[str, Any]) -> dict[str, Any]:
    """Values converted to the types of a dataclass and of `Setup`, and checked.

    Raises:
        ValueError: one is of the wrong type or out of its range; the message names it.
    """
    hints = CHECKED_SETUP | hints_of(config)

    def checked(name: str, value: Any) -> Any:
        is_schedule = name in config.schedules and callable(value)
        return read_typed(name, value, hints[name]) if name in hints and not is_schedule else value

    return {name: checked(name, value) for name, value in values.items()}


def schedule_value(config: type[Hyperparameters], name: str, schedule: Callable[[float], Any], left: float) -> Any:
    """What a schedule gives for the remaining progress `left`, checked like the hyper-parameter itself, except that
    every schedule may fall to 0.

    Raises:
        ValueError: it is of the wrong type or out of the hyper-parameter's range; the message names both.
    """
    value, hint = schedule(left), hints_of(config)[name]
    try:  # tensors and arrays of one number too, as in SB3
        number = value if value is None else float(value)
        return 0.0 if number == 0 else read_typed(name, number, hint)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} is a schedule that gives {format_value(value)} for the remaining progress {left:.3g}, expected "
            f"{describe_type(hint)}"
        ) from error


def signature_of(config: Any) -> inspect.Signature:
    """How a learner with these hyper-parameters is constructed: in SB3's order, by position or by name."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in ("policy", "env")]
    for entry in (*fields_of(config), *fields_of(Setup)):
        parameters.append(inspect.Parameter(entry.name, kind, default=entry.default, annotation=entry.type))
    return inspect.Signature(parameters)


REPLACEMENTS = {
    "batch_size": "use n_minibatches: a minibatch is a set of environments with all of their steps",
    "use_sde": "there is no state-dependent exploration",
    "sde_sample_freq": "there is no state-dependent exploration",
    "rollout_buffer_class": "rollouts are tensors on the device, see agents/rollout.py",
    "rollout_buffer_kwargs": "rollouts are tensors on the device, see agents/rollout.py",
}
"""Arguments of SB3's learners that these do not take, and why."""


def bind_arguments(learner: str, config: Any, *args: Any, **kwargs: Any) -> inspect.BoundArguments:
    """The arguments of a learner with these hyper-parameters, by name.

    Raises:
        TypeError: it does not take one of the arguments; the message suggests what to use instead.
    """
    signature = signature_of(config)
    for name in kwargs:
        if name not in signature.parameters:
            near = difflib.get_close_matches(name, signature.parameters, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(signature.parameters)}"
            if name in inspect.signature(MemoryActorCriticPolicy).parameters:
                hint = f"it goes into policy_kwargs={{{name!r}: ...}}"
            raise TypeError(f"{learner} does not take {name}: {REPLACEMENTS.get(name, hint)}")
    return signature.bind(*args, **kwargs)


def check_policy_names(policy: Any, policy_kwargs: Mapping[str, Any]) -> None:
    """Checks the names in `policy_kwargs` before a policy is built.

    Raises:
        TypeError: the policy does not take one (the message names near ones, or where a memory's sizes go), or it has
            no memory.
    """
    if not (isinstance(policy, type) and issubclass(policy, MemoryActorCriticPolicy)):
        shown = policy.__name__ if isinstance(policy, type) else repr(policy)
        raise TypeError(
            f"policy is {shown}, expected 'MemoryPolicy' or a subclass of policies.policy.MemoryActorCriticPolicy"
        )
    parameters = inspect.signature(policy).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for name in policy_kwargs:
        if name not in parameters:
            near = difflib.get_close_matches(name, parameters, n=1, cutoff=0.7)
            sizes = "a memory's own arguments go into memory_kwargs, such as {'hidden_size': 64}"
            hint = f"did you mean {near[0]}?" if near else f"{sizes}; known are {', '.join(list(parameters)[3:])}"
            raise TypeError(f"policy_kwargs: {policy.__name__} does not take {name}: {hint}")


def check_definition(learner: type, config: Any) -> None:
    """Checks a learner's constructor when the class is defined, so that no hyper-parameter is lost.

    Raises:
        TypeError: one would not reach the command line or a checkpoint; the message says what to write.
    """
    name = learner.__name__
    if not hasattr(config, "__dataclass_fields__") or not issubclass(config, Hyperparameters):
        raise TypeError(f"{name}.config_class is {config}, expected a dataclass that extends Hyperparameters")
    declared = {key for key, hint in vars(config).get("__annotations__", {}).items() if "ClassVar" not in str(hint)}
    fields = {field.name: field for field in fields_of(config)}
    if not_fields := sorted(declared - set(fields)):
        raise TypeError(
            f"{config.__name__}.{not_fields[0]} is not a field: write @dataclass above class {config.__name__}"
        )
    for field in fields.values():
        if field.default is dataclasses.MISSING:
            raise TypeError(f"{config.__name__}.{field.name} has no default, expected {field.name}: ... = VALUE")
        if field.name in ("policy", "env", *vars(Setup)) or callable(getattr(learner, field.name, None)):
            raise TypeError(f"{config.__name__}.{field.name} has a name that learners reserve; choose another")
    for needed in ("learning_rate", "n_steps", "max_grad_norm"):
        if needed not in fields:
            raise TypeError(f"{config.__name__} lacks {needed}, which every learner has")
    if "__init__" not in vars(learner):
        return
    parameters = inspect.signature(vars(learner)["__init__"]).parameters.values()
    named = [each.name for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)][1:]
    if unknown := [each for each in named if each not in signature_of(config).parameters]:
        raise TypeError(
            f"{name}.__init__ takes {unknown[0]}, which the command line and checkpoints cannot see: make it a field, "
            f"@dataclass class {name}Config({config.__name__}): {unknown[0]}: float = 1.0, and set config_class = "
            f"{name}Config in {name}; self.{unknown[0]} is then set for you, without a constructor"
        )
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters)
    if not takes_any and (missing := [each for each in signature_of(config).parameters if each not in named]):
        raise TypeError(f"{name}.__init__ does not take {missing[0]}: expected **kwargs, passed on to super().__init__")
