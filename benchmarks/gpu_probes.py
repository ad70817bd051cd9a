"""Checks the assumptions about torch on a GPU that tests on a CPU cannot check. Exit status 1 if one fails.

python benchmarks/gpu_probes.py
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

PROBES: list[Callable[[], str]] = []


def probe(function: Callable[[], str]) -> Callable[[], str]:
    PROBES.append(function)
    return function


def captured(body: Callable[[], Tensor]) -> Tensor:
    """The result of replaying `body` as a CUDA graph, after one eager run."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        body()
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        result = body()
    graph.replay()
    return result


def never_waits(body: Callable[[], Tensor]) -> Tensor:
    """Runs `body` with synchronisations as errors."""
    body()
    torch.cuda.set_sync_debug_mode("error")
    try:
        return body()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@probe
def generator_state() -> str:
    """The device type, which checkpoints record."""
    size = torch.Generator("cuda").get_state().numel()
    assert size == 16, f"a CUDA generator's state has {size} bytes, expected 16"
    return "16 bytes"


@probe
def draws_do_not_wait() -> str:
    """Sampling, one-hot encoding and the linear solves of dkm: eager and captured results agree."""
    logits = torch.randn(64, 5, device="cuda")
    matrix = torch.eye(4, device="cuda").expand(64, 4, 4) * 2
    bodies: dict[str, Callable[[], Tensor]] = {
        "exponential": lambda: (logits.softmax(-1) / torch.empty_like(logits).exponential_()).argmax(-1),
        "one_hot": lambda: torch.nn.functional.one_hot(logits.argmax(-1), 5),
        "solve_ex": lambda: torch.linalg.solve_ex(matrix, matrix)[0],
        "slogdet": lambda: torch.linalg.slogdet(matrix)[1],
    }
    for name, body in bodies.items():
        try:
            never_waits(body)
            captured(body)
        except RuntimeError as error:
            raise AssertionError(f"{name}: {str(error).splitlines()[0]}") from error
    return ", ".join(bodies)


@probe
def bf16_is_bf16() -> str:
    """Recurrent sequences in bfloat16 differ from float32 by bfloat16's rounding, packed ones too."""
    from policies.memories import make_memory

    for name in ("lstm", "gru"):
        memory = make_memory(name, input_size=8, hidden_size=16).cuda()
        xs = torch.randn(12, 4, 8, device="cuda")
        starts = torch.rand(12, 4, device="cuda") < 0.4
        state = memory.initial_state(4)
        exact = memory.unroll(xs, starts, state)
        assert memory.use_bf16()
        found = memory.unroll(xs, starts, state)
        assert found.outputs.dtype == torch.float32, f"{name} gives {found.outputs.dtype}"
        apart = (found.outputs - exact.outputs).abs().max().item()
        assert 1e-5 < apart < 5e-2, f"{name} in bfloat16 differs by {apart:.1e}"
    return "lstm, gru"


@probe
def failed_capture_leaves_the_generator() -> str:
    """After a failed capture, numbers can be drawn again (`agents.scale.cuda_graphs.eligible.release_generators`)."""
    from agents import A2C
    from agents.scale.cuda_graphs.eligible import release_generators
    from envs.repeat_first import RepeatFirst

    model = A2C("MemoryPolicy", RepeatFirst(4, device="cuda"), policy_kwargs={"memory": "gru"}, device="cuda")
    try:
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            torch.rand(3, device="cuda").cpu()
    except RuntimeError:
        release_generators(model)
        torch.cuda.synchronize()
        assert torch.rand(3, device="cuda").sum().item() > 0
        return "drawn again"
    raise AssertionError("a copy to the host was captured")


@probe
def fused_cells_are_their_equations() -> str:
    """The kernels of `policies.memories.shared.fused_cells` against torch's operations on the CPU, forward and back."""
    from policies.memories.shared import fused_cells

    def results(device: str) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        x, h, state, d_h, d_c = (
            torch.randn(6, width, generator=generator, dtype=torch.float64).to(device) for width in (20, 20, 5, 5, 5)
        )
        hidden, cell, kept = fused_cells.lstm(x, h, state)
        found = [hidden, cell, *fused_cells.lstm_backward(d_h, d_c, state, cell, kept)]
        hidden, kept = fused_cells.gru(x[:, :15], h[:, :15], state)
        return [*found, hidden, *fused_cells.gru_backward(d_h, kept)]

    for found, expected in zip(results("cuda"), results("cpu"), strict=True):
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-10, atol=1e-12)
    return "lstm, gru"


@probe
def tf32() -> str:
    """The default precision of cuDNN's convolutions and recurrent networks."""
    return f"cudnn.allow_tf32 {torch.backends.cudnn.allow_tf32}, matmul {torch.get_float32_matmul_precision()}"


def main() -> int:
    warnings.simplefilter("ignore")
    failed = 0
    for each in PROBES:
        try:
            print(f"{each.__name__}: {each()}", flush=True)
        except Exception as error:  # run the other probes too
            failed += 1
            print(f"{each.__name__}: FAILED: {' '.join(str(error).split())[:300]}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
