"""A pretend CUDA device: programs run with real numbers on the paths they take on a GPU, on a machine without one.

    with PretendCuda() as gpu:
        model = PPO("MemoryPolicy", make_env("Engram/RepeatFirst-v0", 8, "cuda"), device="cuda")
        model.learn(1)
    assert not gpu.faults and not gpu.waits

Every tensor of the device wraps an ordinary CPU tensor. C++ takes the wrapper for a meta tensor, Python is told
`cuda:N`, and a dispatch mode below autograd does the arithmetic on the CPU.

What is an error on CUDA is one here: operands on two devices, `.numpy()`, a read or copy while a stream is captured, an
unregistered generator, a generator state of the wrong size. What makes the host wait for the device is recorded with
its place in `waits`. Launches are counted in `launches`. Streams are held to their order by vector clocks, and each
unordered access is listed in `faults`. `torch.cuda.CUDAGraph` is a tape: capturing changes nothing, and a replay
repeats the recorded operations in the recorded memory, without Python.

What it cannot know: the time of a kernel, the numerics of cuDNN, cuBLAS and TF32, memory pools, and what C++ decides by
looking at a tensor's device itself.
"""

from pretend_cuda.device import PretendCuda

__all__ = ["PretendCuda"]
