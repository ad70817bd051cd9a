"""A step that was exported, saved and loaded gives the policy's numbers, and needs none of this project."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gymnasium import spaces

from policies.export import PolicyStep, export_step
from policies.policy import MemoryActorCriticPolicy

MEMORIES: dict[str, dict[str, Any]] = {
    "identity": {},
    "gru": {"hidden_size": 6, "num_layers": 2},
    "lstm": {"hidden_size": 6, "num_layers": 2},
    "mnm-p": {"hidden_size": 7, "key_size": 4, "value_size": 3, "memory_units": 6, "heads": 2},
    "dnc": {"hidden_size": 6, "slots": 5, "word_size": 3, "read_heads": 2, "write_heads": 2},
}
OBS = spaces.Dict([("sees", spaces.Box(-1.0, 1.0, (3,))), ("asked", spaces.Discrete(3, start=2))])
ACTIONS: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(4, start=-1),
    "box": spaces.Box(-0.5, 0.5, (2,)),
    "multi-discrete": spaces.MultiDiscrete([2, 3]),
    "multi-binary": spaces.MultiBinary(3),
}
BATCH = 2


def policy(memory: str, action: str) -> MemoryActorCriticPolicy:
    torch.manual_seed(0)
    made = MemoryActorCriticPolicy(OBS, ACTIONS[action], lambda _: 1e-3, memory=memory, memory_kwargs=MEMORIES[memory])
    with torch.no_grad():
        made.action_net.weight.mul_(50)
    return made


CASES = [(memory, "discrete", True) for memory in MEMORIES]
CASES += [("gru", action, action != "box") for action in ACTIONS] + [("gru", "discrete", False)]


@pytest.mark.parametrize(("memory", "action", "masks"), CASES)
def test_the_exported_step_is_the_policys(memory: str, action: str, masks: bool, tmp_path: Path) -> None:
    made = policy(memory, action)
    training = made.training
    export_step(made, tmp_path / "step.pt2", BATCH, masks)
    assert made.training == training
    program = torch.export.load(tmp_path / "step.pt2")
    step, ours = program.module(), PolicyStep(made)
    (_, theirs, starts, *mask), _ = program.example_inputs
    state = made.initial_state(BATCH)
    generator = torch.Generator().manual_seed(1)
    for t in range(5):
        obs = {
            "sees": torch.rand(BATCH, 3, generator=generator) * 2 - 1,
            "asked": torch.randint(2, 5, (BATCH,), generator=generator),
        }
        if masks:
            mask = [torch.rand(mask[0].shape, generator=generator) < 0.6]
            mask[0][:, [0, -1]] = True  # a valid choice in every part
            mask[0][:, 2 : 4 if action == "multi-binary" else 2] = True
        with torch.no_grad():
            expected, found = ours(obs, state, starts, *mask), step(obs, theirs, starts, *mask)
        assert expected.keys() == found.keys()
        for name in expected.keys() - {"state"}:
            torch.testing.assert_close(found[name], expected[name], msg=name)
        numpy_obs = {name: value.numpy() for name, value in obs.items()}
        predicted, after = made.predict(
            numpy_obs, state, starts.numpy(), True, action_masks=mask[0].numpy() if masks else None
        )
        assert torch.equal(found["action"].to(torch.as_tensor(predicted).dtype), torch.as_tensor(predicted))
        state, theirs = after, found["state"]
        for name, value in state.items():
            torch.testing.assert_close(theirs[name], value, msg=name)
        starts = torch.tensor([False, t == 2])


def test_an_export_changes_nothing_in_the_process(tmp_path: Path) -> None:
    """Kanerva++ had cached a table, which the first export filled with a symbolic tensor."""
    for name in ("one.pt2", "two.pt2"):
        made = MemoryActorCriticPolicy(OBS, ACTIONS["discrete"], lambda _: 1e-3, memory="kanerva++")
        export_step(made, tmp_path / name)
    made.memory.use_fast_form(False)
    xs = torch.randn(3, 2, made.features_extractor.features_dim)
    outputs = made.memory.unroll(xs, None, made.initial_state(2)).outputs
    assert type(outputs.detach()) is torch.Tensor
    assert outputs.isfinite().all()


def test_the_number_of_observations_may_be_free(tmp_path: Path) -> None:
    """Of a file too, with a `Dict` and masks; that every memory can be so is in tests/policies/memories."""
    made = policy("gru", "multi-discrete")
    made.set_training_mode(False)
    export_step(made, tmp_path / "step.pt2", batch_size=None, masks=True)
    step, ours = torch.export.load(tmp_path / "step.pt2").module(), PolicyStep(made)
    for batch in (1, 2, 9):
        state = {name: value.contiguous() for name, value in made.initial_state(batch).items()}
        starts, mask = torch.ones(batch, dtype=torch.bool), torch.tensor([[True, True, False, True, True]] * batch)
        obs = {"sees": torch.rand(batch, 3), "asked": torch.arange(batch) % 3 + 2}
        with torch.no_grad():
            torch.testing.assert_close(step(obs, state, starts, mask), ours(obs, state, starts, mask))
    with pytest.raises(TypeError, match=r"policy is of Linear, expected a policy, such as model\.policy"):
        export_step(torch.nn.Linear(1, 1), "x.pt2")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size is 0, expected at least 1, or None for any"):
        export_step(made, tmp_path / "other.pt2", batch_size=0)


def test_it_runs_where_this_project_is_not_installed(tmp_path: Path) -> None:
    export_step(policy("gru", "discrete"), tmp_path / "step.pt2")
    script = """
import sys, torch
program = torch.export.load("step.pt2")
step = program.module()
(obs, state, starts), _ = program.example_inputs
result = step(obs, state, starts)
result = step(obs, result["state"], ~starts)
assert result["logits"].shape == (1, 4)
assert not {"policies", "agents", "stable_baselines3"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-W", "error::DeprecationWarning", "-c", script], cwd=tmp_path, check=True)


def test_what_cannot_be_exported_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = policy("gru", "discrete")
    step = type(made.memory).step

    def reads(self: Any, x: Any, state: Any) -> Any:
        return step(self, x if x.sum() > 0 else -x, state)

    monkeypatch.setattr(type(made.memory), "step", reads)
    (tmp_path / "step.pt2").write_text("as it was")
    with pytest.raises(ValueError, match="a step of gru cannot be exported: ") as said:
        export_step(made, tmp_path / "step.pt2")
    assert "\n" not in str(said.value)
    assert (tmp_path / "step.pt2").read_text() == "as it was"
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ValueError, match="are for Discrete, MultiDiscrete and MultiBinary actions, not Box"):
        export_step(policy("gru", "box"), tmp_path / "step.pt2", masks=True)
