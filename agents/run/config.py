"""The configuration of a run: the options of `train.py`, and the entries of recipes and `config.yaml`."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import torch
import tyro
from stable_baselines3.common.utils import LinearSchedule

from agents import learner_class, make_env, registered_learners
from agents.common.arguments import Count, Range, Seed, Whole, read
from agents.common.files import replace_file
from agents.common.plain_yaml import read_yaml, write_yaml
from agents.environments import Vector, import_object
from agents.hyperparameters import hints_of
from agents.scale.fast import Fast, Precision
from envs.tensor_env import TensorEnv
from policies.encoders import ENCODERS


def pairs(words: list[str]) -> dict[str, Any]:
    """`["heads=3", "rate=per-layer"]` as a dictionary; values are read as YAML.

    Raises:
        ValueError: a word is not NAME=VALUE, a name is given twice, or a value is not YAML.
    """
    result: dict[str, Any] = {}
    for word in words:
        name, separator, value = word.partition("=")
        if not separator or not name:
            raise ValueError(f"{word!r}: expected NAME=VALUE")
        if name in result:
            raise ValueError(f"{name} is given twice, expected once")
        result[name] = read_yaml(value, word)
    return result


Pairs = Annotated[
    dict[str, Any],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="[NAME=VALUE ...]",
        instance_from_str=pairs,
        is_instance=lambda instance: isinstance(instance, dict),
        str_from_instance=lambda instance: [f"{name}={write_yaml(v).split()[0]}" for name, v in instance.items()],
    ),
]

NUMBERS = tyro.constructors.ConstructorRegistry()
"""Reads numeric flags as in a file, so that `1e6` is a whole number."""


@NUMBERS.primitive_rule
def _number_rule(type_info: tyro.constructors.PrimitiveTypeInfo) -> Any:
    kind = type_info.type
    if kind not in (int, float):
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=kind.__name__.upper(),
        instance_from_str=lambda words: read("it", words[0], kind),
        is_instance=lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
        str_from_instance=lambda value: [str(value)],
    )


@dataclass
class Config:
    """Train an agent with a memory."""

    env: str = "Engram/InvisibleGoalMaze-v0"
    """Environment: Engram/InvisibleGoalMaze-v0, Engram/Mapping-v0, Engram/Copy-v0, ... (--list envs lists all), any
    other Gymnasium id, or module:Id-v0 to import the module that registers it first."""
    env_kwargs: Pairs = field(default_factory=dict)
    """Arguments of the environment, NAME=VALUE; each replaces the recipe's."""
    wrappers: list[str] = field(default_factory=list)
    """Wrappers of each single environment, innermost first, as module:name: for example
    gymnasium.wrappers:FlattenObservation, or a function in a module of the current folder."""
    vector: Vector = "sync"
    """For environments on the host: sync steps them one after another, async runs each in its own process (for slow
    environments)."""
    memory: str = "mnm-p"
    """Memory: identity (none), lstm, mnm-p, dnc, multigrid, kanerva++, ... (--list memories lists all), or one
    registered by an installed package or by one of --imports."""
    memory_kwargs: Pairs = field(default_factory=dict)
    """Arguments of the memory, NAME=VALUE; each replaces the recipe's."""
    encoder: str | None = None
    """Encoder before the memory: MLPEncoder, NatureCNN, PictureEncoder, FlattenExtractor, ..., or a class of your own
    as module:Class. None: chosen from the observation space."""
    encoder_kwargs: Pairs = field(default_factory=dict)
    """Arguments of the encoder."""
    net_arch: list[Annotated[int, Range(1)]] | None = None
    """Hidden layers between the memory and the heads, such as 64 64. None: the policy's default."""
    normalize_images: bool = True
    """Divide uint8 images by 255, except images up to 16x16, which the default encoder treats as symbols."""
    algo: str = "ppo"
    """Learner: ppo, a2c, supervised (for environments with targets), ... (--list algos lists all), or one registered by
    an installed package or by one of --imports."""
    total_timesteps: Count = 500_000
    """Environment steps to train for, summed over all environments."""
    num_envs: Count = 8
    """Number of parallel environments; with torchrun the total, shared equally by the ranks."""
    seed: Seed = 0
    """Random seed."""
    device: str = "cpu"
    """Device of environments, policy and learner: cpu, cuda, cuda:1, ... or auto."""
    threads: Annotated[int, Range(1, 256)] = 1
    """CPU threads. Two train 1.3 to 1.8 times as fast if a core is idle, with other rounding; on a busy machine one is
    best."""
    fast: Fast = "auto"
    """auto: use the fast forms. off: use the reference implementations. compile: also compile the memory's step with
    torch.compile, which takes up to a few minutes at the start. graph: replay whole iterations as CUDA graphs, or fail
    with the reason. See docs/performance.md and docs/gpu.md."""
    precision: Precision = "float32"
    """bf16: lstm and multigrid process whole sequences in bfloat16. Slower on x86 processors without AVX-512."""

    anneal: bool = False
    """Decay the learning rate linearly to a tenth over the run. On by default without a recipe, except for
    supervised."""
    bptt_segment: Whole | None = None
    """Gradient checkpointing: store the memory's state every N steps and recompute the rest in the backward pass. 0:
    off. None: on if a sequence would store more than 1 GiB, or on a GPU a quarter of its memory."""
    learner: Annotated[Any, tyro.conf.arg(name="")] = None
    """The hyper-parameters of `algo`, an instance of its dataclass. In files and flags they are ordinary entries. None:
    the defaults of `train.py`."""

    imports: list[str] = field(default_factory=list)
    """Modules to import first, installed or in the current folder: they register memories and learners of your own."""
    recipe: str | None = None
    """A recipe: a file, or a name in recipes/. Flags override its values."""
    resume: Path | None = None
    """Resume a run exactly, in the same folder. Give the run's folder or one of its checkpoints."""
    init_from: Path | None = None
    """Start from the weights of another run with the same memory, for example after an easier lesson. Give its folder
    or a checkpoint."""
    follows: str | None = None
    """The recipe of an easier lesson, which --lessons trains first. A run without its weights prints a reminder."""
    data_dir: Path | None = None
    """Folder of the data files that some tasks need. Default: the environment variable ENGRAM_DATA, else a cache
    folder."""
    run_dir: Path | None = None
    """Folder for the run's files. Default: runs/ENV-MEMORY-ALGO-SEED-TIME."""
    checkpoint_every: Whole = 30
    """Seconds between checkpoints; one is always written at the end."""
    panels_every: Whole = 60
    """Seconds between pictures of the memory in TensorBoard; 0: none."""
    eval_episodes: Whole = 256
    """Number of evaluation episodes after training, for the score in summary.json; 0: no score."""
    eval_steps: Count = 30_000
    """Maximum length of an evaluation episode in steps; longer ones are cut."""
    baseline: bool = True
    """Also train a memoryless agent for the same number of steps, and report its score."""
    progress: bool = True
    """Show the progress bar."""

    def __post_init__(self) -> None:
        if self.learner is None:
            self.learner = hyperparameters(self.algo)

    @classmethod
    def of(cls, entries: Mapping[str, Any]) -> Config:
        """A configuration from entries by name, hyper-parameters included; those of other learners are ignored.

        Raises:
            ValueError: there is no such learner.
        """
        run = {name: entries[name] for name in run_entries() if name in entries}
        return cls(**run, learner=hyperparameters(entries.get("algo", cls.algo), entries))

    def entries(self) -> dict[str, Any]:
        """All entries by name, hyper-parameters included, without the additional options of a `Command`."""
        return {**{name: getattr(self, name) for name in run_entries()}, **vars(self.learner)}

    def learner_kwargs(self) -> dict[str, Any]:
        """The constructor arguments of the learner, without environment, logging and device.

        Raises:
            ValueError: there is no such encoder.
        """
        kwargs = {**vars(self.learner), "seed": self.seed, "fast": self.fast, "precision": self.precision}
        if self.anneal:
            rate = kwargs["learning_rate"]
            kwargs["learning_rate"] = LinearSchedule(rate, 0.1 * rate, 1.0)
        kwargs["policy_kwargs"] = {
            "memory": self.memory,
            "memory_kwargs": self.memory_kwargs,
            "bptt_segment": self.bptt_segment,
            **self.network_kwargs(),
        }
        return kwargs

    def network_kwargs(self) -> dict[str, Any]:
        """The policy's arguments that differ from their defaults, except those of the memory.

        Raises:
            ValueError: there is no such encoder.
        """
        kwargs: dict[str, Any] = {} if self.net_arch is None else {"net_arch": list(self.net_arch)}
        if not self.normalize_images:
            kwargs["normalize_images"] = False
        if self.encoder is not None:
            kwargs["features_extractor_class"] = self._encoder()
        if self.encoder_kwargs:
            kwargs["features_extractor_kwargs"] = dict(self.encoder_kwargs)
        return kwargs

    def _encoder(self) -> Any:
        assert self.encoder is not None
        if ":" not in self.encoder and self.encoder not in ENCODERS:
            known = ", ".join(ENCODERS)
            raise ValueError(f"unknown encoder {self.encoder!r}; known: {known}; or module:Class of your own")
        return ENCODERS.get(self.encoder) or import_object(self.encoder, "the encoder")

    def own_classes(self) -> dict[str, Any]:
        """The user's own classes, which `load` needs because a checkpoint imports nothing.

        Raises:
            ValueError: there is no such encoder.
        """
        if self.encoder is None or self.encoder in ENCODERS:
            return {}
        return {"policy_kwargs": {"features_extractor_class": self._encoder()}}

    def make_env(self, num_envs: int, device: torch.device | str = "cpu", **kwargs: Any) -> TensorEnv:
        """Environments of the run; `kwargs` replace its own.

        Raises:
            ValueError: as `agents.make_env`.
        """
        if reserved := sorted({*inspect.signature(make_env).parameters} & {*self.env_kwargs}):
            raise ValueError(f"env_kwargs.{reserved[0]} cannot be given here: it has its own option")
        arguments = {**self.env_kwargs, **kwargs}
        return make_env(self.env, num_envs, device, wrappers=self.wrappers, vector=self.vector, **arguments)

    def fit(self, name_of: Callable[[str], str] = lambda name: f"--{name.replace('_', '-')}") -> None:
        """Converts every entry to its type and checks its range.

        Args:
            name_of: the name of an entry in messages.

        Raises:
            ValueError: a value is of another type or out of its range.
        """
        for name, hint in get_type_hints(Command if isinstance(self, Command) else Config, include_extras=True).items():
            setattr(self, name, read(name_of(name), getattr(self, name), hint))
        for name, hint in hints_of(type(self.learner)).items():
            setattr(self.learner, name, read(name_of(name), getattr(self.learner, name), hint))
        for name in ("num_envs", "device"):
            if name in self.env_kwargs:
                kwargs = name_of("env_kwargs")
                raise ValueError(f"{kwargs} has {name}, which cannot be given there: use {name_of(name)}")

    def save(self, file: str | os.PathLike[str]) -> None:
        """Write as YAML, which can be used as a recipe; an existing file is replaced atomically."""
        data = {name: str(v) if isinstance(v, Path) else v for name, v in self.entries().items()}
        replace_file(Path(file), write_yaml(data))


@dataclass
class Command(Config):
    """Train an agent with a memory, or search hyper-parameters."""

    lessons: bool = False
    """First train the easier recipes that this one follows, easiest first, each from the weights of the previous one.
    Other flags apply to all of them. The same command with --run-dir resumes an interrupted run."""
    sweep: str | None = None
    """Search hyper-parameters. Give a space file, or a name in recipes/sweeps/; see docs/sweep.md."""
    trials: Count | None = None
    """With --sweep: total number of trials, including those of earlier commands. Default: as in the space file."""
    jobs: Count | None = None
    """With --sweep: number of parallel trials. Default: 1, or as many as fit on a Ray cluster."""
    storage: str | None = None
    """With --sweep: a journal file or a database URL that several machines share. Default: a journal in the sweep's
    folder."""
    launcher: Literal["local", "ray"] = "local"
    """With --sweep: where trials run."""


def hyperparameters(algo: str, entries: Mapping[str, Any] | None = None) -> Any:
    """The hyper-parameters of a run: the given `entries`, and the defaults of `train.py` for the others.

    Raises:
        ValueError: there is no such learner.
    """
    config: Any = learner_class(algo).config_class
    values = {**run_defaults_of(config, (entries or {}).get("device")), **(entries or {})}
    return config(**{name: values[name] for name in hints_of(config) if name in values})


def run_defaults_of(config: Any, device: str | None) -> dict[str, Any]:
    """The defaults of `train.py` for a learner's dataclass on a device; None: the CPU."""
    on_gpu = str(device).startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    return {**config.run_defaults, **(config.gpu_defaults if on_gpu else {})}


def run_entries() -> dict[str, Any]:
    """The types of a configuration's own entries, without the hyper-parameters of the learner."""
    hints = get_type_hints(Config, include_extras=True)
    return {entry.name: hints[entry.name] for entry in dataclasses.fields(Config) if entry.name != "learner"}


def known_entries() -> dict[str, Any]:
    """The types of all entries that a configuration may have, with the hyper-parameters of every learner.

    Raises:
        ValueError: a hyper-parameter of a learner has the name of another option.
    """
    of_run, of_learners = run_entries(), dict[str, Any]()
    for name in registered_learners():
        try:
            hints = hints_of(learner_class(name).config_class)
        except (ValueError, TypeError):  # a package that cannot be imported: only its own names are missing
            continue
        if clash := sorted({*hints} & {*of_run}):
            raise ValueError(f"the hyper-parameter {clash[0]} of {name} has the name of another option")
        of_learners = hints | of_learners
    return of_run | of_learners
