"""One row for each memory of this project: how to build it small for the conformance checks."""

from __future__ import annotations

import pytest

from policies.testing import MemoryCase

MNM = {"hidden_size": 7, "output_size": 5, "key_size": 4, "value_size": 3, "memory_units": 6, "heads": 2}
MNM_LEARNER = {"hidden_size": 24, "key_size": 12, "value_size": 12, "memory_units": 12, "heads": 2}
SALU = {"hidden_size": 7, "output_size": 5, "key_size": 4, "value_size": 3, "heads": 2}
PLASTIC = {"hidden_size": 6, "init_scale": 0.4, "init_eta": 0.3}
PLASTIC_LEARNER = {"hidden_size": 32, "init_scale": 0.05}
DNC = {"hidden_size": 6, "output_size": 5, "slots": 5, "word_size": 3, "read_heads": 2, "write_heads": 2}

CASES: dict[str, MemoryCase] = {
    "identity": MemoryCase("identity", floor=0.0, ceiling=0.4),  # sees the answer never, so chance is all it can have
    "gru": MemoryCase("gru", {"hidden_size": 6, "num_layers": 2}, learner={"hidden_size": 24}),
    "lstm": MemoryCase("lstm", {"hidden_size": 6, "num_layers": 2}, learner={"hidden_size": 24}),
    "dmn": MemoryCase(
        "dmn",
        {"hidden_size": 4, "capacity": 4, "passes": 2, "answer": "gru"},
        learner={"hidden_size": 24, "capacity": 8, "passes": 2},
        updates=100,
    ),
    "memn2n": MemoryCase(
        "memn2n", {"embedding_size": 4, "capacity": 4, "hops": 2}, learner={"embedding_size": 24, "capacity": 8}
    ),
    "mingru": MemoryCase(
        "mingru", {"hidden_size": 6, "num_layers": 2, "expansion": 2}, learner={"hidden_size": 24, "num_layers": 2}
    ),
    "mnm-p": MemoryCase("mnm-p", {**MNM, "rate": "per-layer"}, learner=MNM_LEARNER),
    "mnm-g": MemoryCase("mnm-g", {**MNM, "rate": "per-layer"}, learner=MNM_LEARNER, updates=150),
    "dnc": MemoryCase(
        "dnc", DNC, learner={"hidden_size": 24, "slots": 8, "word_size": 8, "read_heads": 1}, updates=100
    ),
    "sdnc": MemoryCase(
        "sdnc",
        {"hidden_size": 6, "output_size": 5, "slots": 9, "word_size": 4, "read_heads": 2, "sparse_reads": 2}
        | {"sparse_links": 3},
        learner={"hidden_size": 24, "slots": 16, "word_size": 8, "read_heads": 2},
        updates=100,
    ),
    "multigrid": MemoryCase(
        "multigrid",
        {"levels": (1, 2), "channels": (2, 3), "down_channels": (4,)},
        input_shape=(5, 3, 3),
        learner={"levels": (1, 2), "channels": (4, 4), "down_channels": (4,)},
        updates=100,
    ),
    "plastic": MemoryCase("plastic", PLASTIC, learner=PLASTIC_LEARNER),
    "homo-plastic": MemoryCase("homo-plastic", PLASTIC, learner=PLASTIC_LEARNER),
    "salu": MemoryCase(
        "salu", {**SALU, "capacity": 4}, learner={"hidden_size": 24, "key_size": 12, "value_size": 12, "capacity": 10}
    ),
    "stack-rnn": MemoryCase(
        "stack-rnn",
        {"hidden_size": 6, "num_stacks": 2, "capacity": 5, "bias": True},
        learner={"hidden_size": 100, "capacity": 10},
    ),
    "d-ntm": MemoryCase(
        "d-ntm",
        {"hidden_size": 6, "output_size": 5, "num_layers": 2, "memory_size": 7, "content_size": 4, "address_size": 3}
        | {"read_heads": 2, "write_heads": 2, "reading_steps": 2, "addressing": "discrete"}
        | {"entropy_coef": 0.1, "consistency_coef": 0.1, "prediction_coef": 0.1},
        learner={"hidden_size": 24, "memory_size": 16, "content_size": 8, "address_size": 8},
        updates=100,
    ),
    "ntm": MemoryCase(
        "ntm",
        {"hidden_size": 6, "output_size": 5, "num_layers": 2, "memory_size": 7, "word_size": 4, "read_heads": 2}
        | {"write_heads": 2, "shift_range": 2, "memory_init": "learned"},
        learner={"hidden_size": 24, "memory_size": 16, "word_size": 8},
        updates=150,
    ),
    "kanerva++": MemoryCase(
        "kanerva++",
        {"output_size": 5, "hidden_size": 6, "dense_size": 8, "latent_size": 3, "memory_size": 8, "prior_features": 8}
        | {"map_shape": (1, 4, 4), "reconstruct": True, "sample": True, "kl_weight": 1.0},
        learner={"memory_size": 8, "hidden_size": 24, "output_size": 24},
        updates=150,
    ),
    "dkm": MemoryCase(
        "dkm",
        {"output_size": 5, "memory_size": 4, "code_size": 3, "num_opt_iters": 2, "read_iterations": 2}
        | {"sample_w": True, "sample_memory": True, "obs_noise_stddev": 0.0, "reconstruct": True},
        learner={"memory_size": 8, "code_size": 16},
    ),
}

every_memory = pytest.mark.parametrize("name", sorted(CASES))
