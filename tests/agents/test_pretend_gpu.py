"""Whole programs on a pretend GPU (tests/pretend_cuda): devices, waits, races, graphs, launches, on every test run."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import ENVIRONMENTS, LEARNERS, MEMORIES, small
from pretend_cuda import PretendCuda
from torch import Tensor

import evaluate
import train
from agents import A2C, PPO, MemoryOnPolicyAlgorithm, make_env
from agents.run.parsing import parse
from agents.scale.cuda_graphs.replay import Graphs
from policies.memories import memory_class
from policies.memories.contract import Memory, State, Unrolled
from policies.memories.time.unroll import unroll
from policies.testing.case import BATCH, LENGTH, everything, expect_same

ROOT = Path(__file__).resolve().parents[2]
BUDGET = Path(__file__).with_name("launches.csv")
"""Launches of one iteration by learner, memory and environment; `pytest --write-launches` writes it anew."""
SLACK = 1.1
"""More launches than this times the budget fail."""
EVERY = ("a2c", "ppo")
"""Learners that are tried with every memory: they record a rollout and unroll a sequence. The others with one."""
CASES = [
    (algo, memory, "RepeatFirst")
    for memory in sorted(MEMORIES)
    for algo in LEARNERS
    if algo in EVERY or memory in ("gru", "dnc")
] + [
    (algo, "gru", env)
    for env in sorted(set(ENVIRONMENTS) - {"RepeatFirst"})
    for algo in ("a2c", "ppo", "supervised")
    if algo == "a2c" or LEARNERS[algo].targets == ENVIRONMENTS[env].targets
]
SUMS = ("agents/metrics/task.py", "agents/metrics/report.py", "agents/scale/distributed.py")
"""Where a task's scores are summed up and read, in the widest type of the device; all else is float32."""
PACKING = ("gru", "lstm", "dmn")
"""Memories that read `starts` once where episodes may begin at any step; docs/concepts.md lists them."""


def build(
    algo: str, memory: str, env: str, device: str = "cuda", fast: str = "auto", num_envs: int = 3
) -> MemoryOnPolicyAlgorithm:
    made = make_env(f"Engram/{env}-v0", num_envs, device, **small(ENVIRONMENTS[env]))
    policy = {"memory": memory, "memory_kwargs": small(MEMORIES[memory])}
    n_steps = made.horizon or 4
    kwargs: dict[str, Any] = {"n_steps": n_steps, "device": device, "fast": fast, **small(LEARNERS[algo])}
    return LEARNERS[algo].learner("MemoryPolicy", made, policy_kwargs=policy, seed=0, **kwargs)


@pytest.fixture(scope="module")
def budget(request: pytest.FixtureRequest) -> Any:
    """The launches that are allowed; what the tests counted is written at the end where that is asked for."""
    writes = request.config.getoption("--write-launches")
    with open(BUDGET, newline="") as file:
        rows = {(row["algo"], row["memory"], row["env"]): int(row["launches"]) for row in csv.DictReader(file)}
    counted = dict(rows)
    yield {} if writes else rows, counted
    if writes:
        assert set(counted) >= set(CASES), "count every case before the budget is written"
        with open(BUDGET, "w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["algo", "memory", "env", "launches"])
            writer.writerows([*case, counted[case]] for case in CASES)


@pytest.mark.parametrize(("algo", "memory", "env"), CASES)
def test_an_iteration_waits_once_and_keeps_its_budget(algo: str, memory: str, env: str, budget: Any) -> None:
    """One read at its end, no operand on another device, no more launches than before."""
    with PretendCuda() as gpu:
        model = build(algo, memory, env)
        model.learn(1, log_interval=None)  # libraries and probes warm up in the first iteration
        gpu.clear()
        model.learn(1, log_interval=None, reset_num_timesteps=False)
        launches = gpu.launches
    packed = "policies/memories/recurrent/fast.py" if memory in PACKING else None
    waits = {place: what for what, place in gpu.waits if place.split(":")[0] != packed}
    assert [place.split(":")[0] for place in waits] == ["agents/metrics/report.py"], waits
    assert gpu.waits.total() == 1 or packed
    assert not gpu.faults
    doubles = {place for _, place in gpu.doubles if not place.startswith(SUMS)}
    assert not doubles, "float64 on the device: mps has none (agents.scale.devices.widest)"
    allowed, counted = budget
    counted[algo, memory, env] = launches
    most = SLACK * allowed.get((algo, memory, env), launches)
    assert launches <= most, "more launches than launches.csv allows; where they are wanted: pytest --write-launches"


def test_the_budget_has_a_row_for_every_case() -> None:
    with open(BUDGET, newline="") as file:
        assert [(row["algo"], row["memory"], row["env"]) for row in csv.DictReader(file)] == CASES


@pytest.mark.parametrize("name", [name for name in sorted(MEMORIES) if memory_class(name).fast_form is not None])
def test_a_fast_form_on_a_gpu_is_the_equations(name: str) -> None:
    """In float64, forward and backward, unrolled and recorded: what is fused there is not what a CPU runs."""
    case = MEMORIES[name]
    with PretendCuda():
        memory = case.build().cuda()
        starts = torch.zeros(LENGTH, BATCH, dtype=torch.bool)
        starts[4, 1] = True
        starts = starts.cuda()
        ways = {
            "equations": lambda xs, state: unroll(memory, xs, starts, state, [4]),
            "unroll": lambda xs, state: memory.unroll(xs, starts, state, [4]),
            "record": lambda xs, state: recorded(memory, xs, starts, state),
        }
        found = {}
        for way, run in ways.items():
            xs, state = case.inputs(LENGTH, BATCH).cuda().requires_grad_(), case.used_state(case.build())
            state = {key: value.cuda().requires_grad_() for key, value in state.items()}
            results = everything(run(xs, state))
            leaves = {"xs": xs, **state, **dict(memory.named_parameters())}
            loss = sum((part * part.detach().cos()).sum() for part in results.values() if part.requires_grad)
            asked = list(leaves.values())
            back = torch.autograd.grad(loss, asked, allow_unused=True, materialize_grads=True)
            results |= {f"gradient of {key}": each for key, each in zip(leaves, back, strict=True)}
            found[way] = {key: value.detach().cpu() for key, value in results.items()}
        for way in ("unroll", "record"):
            expect_same(found[way], found["equations"], way)


def recorded(memory: Memory, xs: Tensor, starts: Tensor, state: State) -> Unrolled:
    """By `Memory.record`, as A2C does."""
    recording = memory.record(state, LENGTH)
    for t, x in enumerate(xs):
        recording.step(x, starts[t] if t == 4 else None)
    return recording.unrolled()


@pytest.mark.parametrize(
    ("algo", "memory", "devices"),
    [("a2c", "gru", 2), ("a2c", "mnm-p", 1), ("a2c", "multigrid", 2), ("ppo", "gru", 2), ("ppo", "dnc", 1)],
)
def test_graphs_equal_eager_iterations(algo: str, memory: str, devices: int) -> None:
    """Also on the second of two devices, where the current stream is not the first one's."""
    found = []
    for fast in ("off", "graph"):
        with PretendCuda(devices) as gpu:
            model = build(algo, memory, "InvisibleGoalMaze", f"cuda:{devices - 1}", fast)
            model.learn(5 * model.n_steps * model.n_envs)
            found.append({name: value.detach().cpu() for name, value in model.policy.named_parameters()})
        assert not gpu.faults
    assert isinstance(model.executor, Graphs)
    assert gpu.replays
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-4, msg=name)


def test_a_race_between_streams_is_found() -> None:
    with PretendCuda() as gpu:
        side = torch.cuda.Stream()
        x = torch.zeros(3, device="cuda") + 1
        with torch.cuda.stream(side):
            x + 1
        assert len(gpu.faults) == 1
        assert "does not wait for what stream" in gpu.faults[0]
        gpu.clear()
        x = x * 2
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            x + 1
        assert not gpu.faults


def test_waits_and_mixed_devices_are_found() -> None:
    with PretendCuda(2) as gpu:
        x = torch.ones(3, device="cuda")
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(3)
        with pytest.raises(RuntimeError, match="cuda:0, cuda:1"):
            x + torch.ones(3, device="cuda:1")
        with pytest.raises(TypeError, match="numpy"):
            x.numpy()
        assert x.sum().item() == 3
        assert [what for what, _ in gpu.waits] == ["_local_scalar_dense"]
        graph = torch.cuda.CUDAGraph()
        with pytest.raises(RuntimeError, match="not permitted when stream is capturing"), torch.cuda.graph(graph):
            x.cpu()


@pytest.mark.parametrize("learner", [A2C, PPO])
def test_auto_is_where_the_environment_is(learner: type[MemoryOnPolicyAlgorithm]) -> None:
    """README's Python example on a machine with a GPU, and the same with an environment on it."""
    with PretendCuda():
        for place, expected in (("cpu", "cpu"), ("cuda", "cuda")):
            env = make_env("Engram/RepeatFirst-v0", 4, device=place)
            model = learner("MemoryPolicy", env, n_steps=16, policy_kwargs={"memory": "gru"})
            assert model.device.type == expected
            model.learn(1)


def test_ppo_takes_one_minibatch_on_a_gpu_unless_told() -> None:
    """Four take four times the launches there; a number that is given, by a user, a recipe or a checkpoint, counts."""
    words = ["--algo", "ppo", "--env", "Engram/RepeatFirst-v0", "--memory", "gru"]
    with PretendCuda():
        found = []
        for place, more in (("cpu", {}), ("cuda", {}), ("cuda", {"n_minibatches": 2})):
            env = make_env("Engram/RepeatFirst-v0", 4, device=place)
            found.append(PPO("MemoryPolicy", env, policy_kwargs={"memory": "gru"}, **more).n_minibatches)
        assert found == [4, 1, 2]
        flags = {
            (): 2,
            ("--device", "cuda"): 1,
            ("--device", "auto"): 1,
            ("--device", "cuda", "--n-minibatches", "3"): 3,
        }
        for flag, expected in flags.items():
            assert parse([*words, *flag])[0].learner.n_minibatches == expected
        assert parse(["--device", "cuda"])[0].learner.n_minibatches == 4  # the main job's recipe
    assert parse([*words, "--device", "auto"])[0].learner.n_minibatches == 2


@pytest.mark.parametrize(("there", "here"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_checkpoint_trains_on_another_device(there: str, here: str, tmp_path: Path) -> None:
    with PretendCuda():
        model = build("a2c", "gru", "RepeatFirst", there)
        model.learn(1)
        model.save(tmp_path / "saved")
        env = make_env("Engram/RepeatFirst-v0", 3, here, **small(ENVIRONMENTS["RepeatFirst"]))
        again = A2C.load(tmp_path / "saved", env, device=here)
        for (name, before), after in zip(model.policy.named_parameters(), again.policy.parameters(), strict=True):
            assert torch.equal(before.cpu(), after.cpu()), name
        steps = again.num_timesteps
        again.learn(1, reset_num_timesteps=False)
        assert again.num_timesteps > steps


def test_both_commands_run_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained, resumed and scored on a GPU, then resumed on a machine without one."""
    monkeypatch.setenv("COLUMNS", "80")
    small = "--env Engram/RepeatFirst-v0 --env-kwargs length=4 --memory gru --memory-kwargs hidden_size=8"
    small += " --num-envs 4 --n-steps 8 --total-timesteps 96 --eval-episodes 8 --panels-every 0 --no-progress"
    folder = tmp_path / "run"

    def command(main: Callable[[list[str]], None], words: str) -> None:
        status: object = 0
        try:
            main(words.split())
        except SystemExit as end:
            status = end.code
        assert not status, words

    with PretendCuda() as gpu:
        command(train.main, f"{small} --device cuda --fast graph --run-dir {folder}")
        assert gpu.replays
        command(train.main, f"--resume {folder} --total-timesteps 192 --no-progress")
        command(evaluate.main, f"{folder} --device cuda --episodes 8")
        command(evaluate.main, f"{folder} --device auto --episodes 8")
    assert not gpu.faults
    command(train.main, f"--resume {folder} --total-timesteps 224 --device cpu --fast auto --no-progress")


SHORT = "env_conformance or memory_conformance and (gru or dnc or multigrid) or PPO-gru or A2C-mnm-p"
SHORT += " or random_numbers or waits_for_nothing or resumes"
"""Of the tests that need a GPU each with some memories; the tests above ask the same of all of them."""


def test_the_tests_that_need_a_gpu_pass_on_the_pretend_one() -> None:
    """So that they do not run for the first time on the day that a GPU is at hand."""
    files = [str(file) for file in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in file.read_text()]
    words = ["-m", "pytest", "-x", "--pretend-cuda", "-m", "gpu", "-k", SHORT, "-rs", "-p", "no:cacheprovider", *files]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
    assert "no accelerator" not in done.stdout
