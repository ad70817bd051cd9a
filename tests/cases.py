"""One row for each memory, environment and learner of this project: the sizes at which the tests build it.

A new one needs a row here; its checks, checkpoints, captured graphs and launches are then tested. docs/add-a-memory.md,
docs/add-an-environment.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pytest

from agents import A2C, PPO, Supervised, VTrace
from agents.testing.learner import LearnerCase
from envs.testing import EnvCase
from policies.memories import memory_class
from policies.testing import MemoryCase


@dataclass(frozen=True)
class MemoryRow(MemoryCase):
    """A memory: `options` are its arguments in the conformance checks."""

    training: dict[str, Any] | None = None
    """Its arguments where a whole learner is trained (checkpoints, CUDA graphs, launches); None: `options`."""


@dataclass(frozen=True)
class EnvRow(EnvCase):
    """An environment: `options` are its arguments in the conformance checks."""

    training: dict[str, Any] | None = None
    """Its arguments where a whole learner is trained; None: `options`."""
    targets: bool = True
    """Whether it gives right answers, for the supervised learner."""


@dataclass(frozen=True)
class LearnerRow(LearnerCase):
    """A learner: `options` are its arguments in the conformance checks."""

    training: dict[str, Any] | None = None
    """Its arguments in the other tests; None: `options`."""
    targets: bool = False
    """Whether it learns from right answers."""


def small(row: MemoryRow | EnvRow | LearnerRow) -> dict[str, Any]:
    """Its arguments where a whole learner is trained."""
    return row.options if row.training is None else row.training


MNM = {"hidden_size": 7, "output_size": 5, "key_size": 4, "value_size": 3, "memory_units": 6, "heads": 2}
MNM_LEARNER = {"hidden_size": 24, "key_size": 12, "value_size": 12, "memory_units": 12, "heads": 2}
SALU = {"hidden_size": 7, "output_size": 5, "key_size": 4, "value_size": 3, "heads": 2}
PLASTIC = {"hidden_size": 6, "init_strength": 1.2, "init_eta": 0.3}
PLASTIC_LEARNER = {"hidden_size": 32}
DNC = {"hidden_size": 6, "output_size": 5, "slots": 5, "word_size": 3, "read_heads": 2, "write_heads": 2}


_MEMORIES = [
    MemoryRow("identity", floor=0.0, ceiling=0.4),  # sees the answer never, so chance is all it can have
    MemoryRow("gru", {"hidden_size": 6, "num_layers": 2}, learner={"hidden_size": 24}, training={"hidden_size": 8}),
    MemoryRow("lstm", {"hidden_size": 6, "num_layers": 2}, learner={"hidden_size": 24}, training={"hidden_size": 8}),
    MemoryRow(
        "dmn",
        {"hidden_size": 4, "capacity": 4, "passes": 2, "answer": "gru"},
        learner={"hidden_size": 24, "capacity": 8, "passes": 2},
        updates=100,
        training={"hidden_size": 8, "capacity": 4, "passes": 2},
    ),
    MemoryRow(
        "memn2n",
        {"hidden_size": 4, "capacity": 4, "hops": 2},
        learner={"hidden_size": 24, "capacity": 8},
        training={"hidden_size": 8, "capacity": 4},
    ),
    MemoryRow(
        "gated-deltanet",
        {"hidden_size": 6, "num_layers": 2, "heads": 2, "key_size": 3, "value_size": 4, "conv_size": 3}
        | {"expansion": 1},
        learner={"hidden_size": 24, "num_layers": 1, "key_size": 12},
        updates=100,
        training={"hidden_size": 8, "num_layers": 1, "key_size": 4},
    ),
    MemoryRow(
        "gtrxl",
        {"hidden_size": 6, "num_layers": 2, "heads": 3, "capacity": 4, "expansion": 2},
        learner={"hidden_size": 24, "num_layers": 1, "capacity": 8},
        updates=150,
        training={"hidden_size": 8, "num_layers": 1, "capacity": 3},
    ),
    MemoryRow(
        "lru",
        {"hidden_size": 6, "state_size": 7, "num_layers": 2},
        learner={"hidden_size": 24},
        updates=150,
        training={"hidden_size": 8, "num_layers": 2},
    ),
    MemoryRow(
        "mingru",
        {"hidden_size": 6, "num_layers": 2, "expansion": 2},
        learner={"hidden_size": 24, "num_layers": 2},
        training={"hidden_size": 8, "num_layers": 2},
    ),
    MemoryRow(
        "mnm-p",
        {**MNM, "rate": "per-layer"},
        learner=MNM_LEARNER,
        training={"hidden_size": 8, "key_size": 4, "value_size": 4, "memory_units": 4, "heads": 1},
    ),
    MemoryRow(
        "mnm-g",
        {**MNM, "rate": "per-layer"},
        learner=MNM_LEARNER,
        updates=150,
        training={"hidden_size": 8, "key_size": 4, "value_size": 4, "memory_units": 4, "heads": 1},
    ),
    MemoryRow(
        "dnc",
        DNC,
        learner={"hidden_size": 24, "slots": 8, "word_size": 8, "read_heads": 1},
        updates=100,
        training={"hidden_size": 8, "slots": 6, "word_size": 4, "read_heads": 1},
    ),
    MemoryRow(
        "sdnc",
        {"hidden_size": 6, "output_size": 5, "slots": 9, "word_size": 4, "read_heads": 2, "sparse_reads": 2}
        | {"sparse_links": 3},
        learner={"hidden_size": 24, "slots": 16, "word_size": 8, "read_heads": 2},
        updates=100,
        training={"hidden_size": 8, "slots": 9, "word_size": 4, "read_heads": 1, "sparse_reads": 2, "sparse_links": 3},
    ),
    MemoryRow(
        "multigrid",
        {"levels": (1, 2), "channels": (2, 3), "down_channels": (4,)},
        input_shape=(5, 3, 3),
        learner={"levels": (1, 2), "channels": (4, 4), "down_channels": (4,)},
        updates=100,
        training={"levels": (1, 2), "channels": (2, 2), "down_channels": (2,)},
    ),
    MemoryRow("plastic", PLASTIC, learner=PLASTIC_LEARNER, training={"hidden_size": 8}),
    MemoryRow("homo-plastic", PLASTIC, learner=PLASTIC_LEARNER, training={"hidden_size": 8}),
    MemoryRow(
        "salu",
        {**SALU, "capacity": 4},
        learner={"hidden_size": 24, "key_size": 12, "value_size": 12, "capacity": 10},
        training={"hidden_size": 8, "key_size": 4, "value_size": 4, "capacity": 4},
    ),
    MemoryRow(
        "stack-rnn",
        {"hidden_size": 6, "num_stacks": 2, "capacity": 5, "bias": True},
        learner={"hidden_size": 100, "capacity": 10},
        training={"hidden_size": 8, "capacity": 5},
    ),
    MemoryRow(
        "d-ntm",
        {"hidden_size": 6, "output_size": 5, "num_layers": 2, "slots": 7, "word_size": 4, "address_size": 3}
        | {"read_heads": 2, "write_heads": 2, "reading_steps": 2, "addressing": "discrete"}
        | {"entropy_coef": 0.1, "consistency_coef": 0.1, "prediction_coef": 0.1},
        learner={"hidden_size": 24, "slots": 16, "word_size": 8, "address_size": 8},
        updates=100,
        training={"hidden_size": 8, "slots": 8, "word_size": 4, "address_size": 4, "addressing": "discrete"},
    ),
    MemoryRow(
        "ntm",
        {"hidden_size": 6, "output_size": 5, "num_layers": 2, "slots": 7, "word_size": 4, "read_heads": 2}
        | {"write_heads": 2, "shift_range": 2, "memory_init": "learned"},
        learner={"hidden_size": 24, "slots": 16, "word_size": 8},
        updates=150,
        training={"hidden_size": 8, "slots": 8, "word_size": 4},
    ),
    MemoryRow(
        "kanerva++",
        {"output_size": 5, "hidden_size": 6, "dense_size": 8, "latent_size": 3, "memory_size": 8, "prior_features": 8}
        | {"map_shape": (1, 4, 4), "reconstruct": True, "sample": True, "kl_weight": 1.0},
        learner={"memory_size": 8, "hidden_size": 24, "output_size": 24},
        updates=150,
        training={"memory_size": 8, "crop_size": 4},
    ),
    MemoryRow(
        "dkm",
        {"output_size": 5, "slots": 4, "word_size": 3, "num_opt_iters": 2, "read_iterations": 2}
        | {"sample_w": True, "sample_memory": True, "obs_noise_stddev": 0.0, "reconstruct": True},
        learner={"slots": 8, "word_size": 16},
        training={"slots": 4, "word_size": 4},
    ),
]

_ENVIRONMENTS = [
    EnvRow(
        "Engram/AssociativeRecall-v0",
        {"max_items": 3, "item_length": 2, "bits": 3},
        training={"max_items": 3, "item_length": 1, "bits": 2},
    ),
    EnvRow(
        "Engram/Babi-v0",
        {"tasks": [1, 6], "stories": 20, "questions": 1},
        training={"tasks": [1], "stories": 10, "questions": 1},
    ),
    EnvRow("Engram/Copy-v0", {"max_length": 4, "bits": 3}, training={"max_length": 2, "bits": 2}),
    EnvRow("Engram/DictionaryInference-v0", {"k": 2, "l": 2}, training={"k": 2, "l": 1}),
    EnvRow(
        "Engram/DoubleCopy-v0",
        {"min_length": 2, "max_length": 4, "symbols": 3},
        training={"min_length": 2, "max_length": 2, "symbols": 3},
    ),
    EnvRow("Engram/DynamicNGrams-v0", {"length": 12, "context": 2}, training={"length": 4, "context": 1}),
    EnvRow("Engram/ImageEpisode-v0", {"length": 3, "recalls": 2}, training={"length": 2, "recalls": 1}),
    EnvRow(
        "Engram/GraphInference-v0",
        {"lesson": 2, "planning_steps": 2, "curriculum": True, "window": 3, "pass_mark": 0.01},
        training={"lesson": 1, "curriculum": True, "window": 3, "pass_mark": 0.01},
    ),
    EnvRow("Engram/GraphTraversal-v0", {"lesson": 1}),
    EnvRow(
        "Engram/InvisibleGoalMaze-v0",
        {"size": 5, "episode_length": 12},
        training={"size": 5, "episode_length": 4},
        targets=False,
    ),
    EnvRow("Engram/MnistRecall-v0", {"length": 3, "side": 6}, training={"length": 2, "side": 6}),
    EnvRow("Engram/MnistSort-v0", {"length": 3}, training={"length": 2}),
    EnvRow(
        "Engram/PrioritySort-v0",
        {"min_length": 3, "max_length": 5, "outputs": 4, "bits": 3},
        training={"min_length": 2, "max_length": 3, "outputs": 2, "bits": 2},
    ),
    EnvRow(
        "Engram/RepeatCopy-v0",
        {"max_length": 3, "max_repeats": 2, "bits": 3, "format": "dnc"},
        training={"max_length": 2, "max_repeats": 1, "bits": 2},
    ),
    EnvRow(
        "Engram/Mapping-v0",
        {"size": 11, "queries": (3, 9), "horizon": 13, "trajectory": "random"},
        training={"size": 11, "queries": (3, 9), "horizon": 3, "trajectory": "random"},
    ),
    EnvRow("Engram/RepeatFirst-v0", {"length": 6, "symbols": 3}, training={"length": 4, "symbols": 3}),
    EnvRow(
        "Engram/ShortestPath-v0",
        {"lesson": 2, "planning_steps": 1, "beta": 0.5, "snap": True},
        training={"lesson": 1, "beta": 0.5, "snap": True},
    ),
    EnvRow("Engram/StackGrammar-v0", {"n_max": 4, "length": 12}, training={"n_max": 2, "length": 6}),
    EnvRow("Engram/TMaze-v0", {"length": 2, "max_steps": 9}, training={"length": 2, "max_steps": 5}, targets=False),
]

LEARNERS: dict[str, LearnerRow] = {
    "a2c": LearnerRow(A2C),
    "ppo": LearnerRow(PPO, {"n_epochs": 4}, steps=2048, training={"n_epochs": 1, "n_minibatches": 1}),
    "supervised": LearnerRow(Supervised, floor=0.9, targets=True),
    "vtrace": LearnerRow(VTrace, training={"n_epochs": 1, "n_minibatches": 1}),
}
MEMORIES: dict[str, MemoryRow] = {str(row.memory): row for row in _MEMORIES}
ENVIRONMENTS: dict[str, EnvRow] = {re.split("[/-]", str(row.env))[1]: row for row in _ENVIRONMENTS}
"""By name: `Copy` for `Engram/Copy-v0`."""
VECTOR_MEMORIES = [name for name in MEMORIES if memory_class(name).input_kind == "vector"]
every_memory = pytest.mark.parametrize("name", sorted(MEMORIES))
