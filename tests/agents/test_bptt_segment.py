"""Learning by segments is learning by whole rollouts, with each learner."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from agents import A2C, PPO
from agents.supervised import Supervised
from envs.repeat_first import RepeatFirst
from policies.memories.time import checkpointing as segments
from policies.memories.time.checkpointing import SegmentedRecording

MEMORIES: dict[str, dict[str, Any]] = {
    "gru": {"hidden_size": 6},
    "mnm-p": {"hidden_size": 6, "key_size": 4, "value_size": 4, "memory_units": 4},
    "multigrid": {"levels": (1,), "channels": (2,), "down_channels": (4,)},
}


def trained(learner: Any, memory: str, segment: int | None) -> Any:
    kwargs = {"memory": memory, "memory_kwargs": MEMORIES[memory], "bptt_segment": segment}
    more = {"n_epochs": 1, "n_minibatches": 2} if learner is PPO else {}
    env = RepeatFirst(4, length=5)
    model = learner("MemoryPolicy", env, 1e-2, n_steps=8, policy_kwargs=kwargs, seed=0, device="cpu", **more)
    return model.learn(2 * 4 * 8)


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("learner", [A2C, PPO, Supervised])
def test_the_same_is_learned(learner: Any, memory: str) -> None:
    """Rollouts of eight steps over episodes of five, in threes; an optimiser's first steps magnify differences."""
    whole, cut = trained(learner, memory, 0), trained(learner, memory, 3)
    for (name, expected), actual in zip(whole.policy.named_parameters(), cut.policy.parameters(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=2e-4, msg=lambda text, n=name: f"{n}: {text}")


def test_the_rule_reaches_the_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(A2C, "gru", None)
    state = model.policy.initial_state(4)
    assert not isinstance(model.policy.segments.record(state, 1, 40, 4), SegmentedRecording)
    monkeypatch.setattr(segments, "AUTO_BYTES", 1)
    assert isinstance(model.policy.segments.record(state, 1, 40, 4), SegmentedRecording)


def test_the_setting_is_saved(tmp_path: Any) -> None:
    model = trained(A2C, "gru", 3)
    model.save(tmp_path / "model")
    assert A2C.load(tmp_path / "model", device="cpu").policy.segments.setting == 3
    assert model.policy._get_constructor_parameters()["bptt_segment"] == 3
