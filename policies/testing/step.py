"""Conformance checks of one step and of training."""

from __future__ import annotations

import traceback
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from policies.memories.contract import Unrolled
from policies.memories.steps import detach, select
from policies.memories.time.unroll import unroll
from policies.testing.case import BATCH, LENGTH, MemoryCase, differentiable, everything, expect, expect_same

# One step


def a_step_keeps_names_shapes_and_types(case: MemoryCase) -> None:
    memory = case.build()
    state = memory.initial_state(BATCH)
    step = memory(case.inputs(BATCH), state)
    wanted = (BATCH, memory.output_size)
    expect(step.output.shape == wanted, f"the output is {tuple(step.output.shape)}, expected {wanted} (output_size)")
    expect(step.output.dtype == memory.dtype, f"the output is {step.output.dtype}, the memory {memory.dtype}")
    expect(memory.dtype == torch.float64, f"the memory stays {memory.dtype} after memory.double()")
    before = {key: (tuple(value.shape), value.dtype) for key, value in state.items()}
    after = {key: (tuple(value.shape), value.dtype) for key, value in step.state.items()}
    expect(after == before, f"a step turns the state {before} into {after}: names, shapes and types must stay")
    for key, value in state.items():
        expect(value.shape[:1] == (BATCH,), f"state {key} is {tuple(value.shape)}: the batch, {BATCH}, comes first")
    for key, loss in step.losses.items():
        expect(loss.shape == (BATCH,), f"loss {key} is {tuple(loss.shape)}, expected one number for each entry")
    grid = None if step.grid is None else tuple(step.grid.shape)
    shape = None if memory.output_grid is None else (BATCH, *memory.output_grid)
    expect(grid == shape, f"the grid of a step is {grid}, expected {shape} (output_grid)")


def a_repeated_step_is_the_same(case: MemoryCase) -> None:
    memory, x = case.build(), case.inputs(BATCH)
    state = case.used_state(memory)
    with torch.no_grad():
        first, second = memory(x, state), memory(x, state)
    same = torch.equal(first.output, second.output)
    same = same and all(torch.equal(first.state[key], second.state[key]) for key in state)
    expect(
        same,
        "two equal steps from the same state, in training mode, return different results, as with dropout or with "
        "state in an attribute: learners repeat steps, so noise must follow from the state (policies.memories.shared."
        "noise)",
    )


def the_initial_state_is_the_same_for_every_entry_and_batch_size(case: MemoryCase) -> None:
    memory = case.build()
    one, many = memory.initial_state(1), memory.initial_state(4)
    expect(one.keys() == many.keys(), f"the state has {sorted(one)} for a batch of 1, {sorted(many)} for one of 4")
    for key in one:
        expect(torch.equal(one[key].expand_as(many[key]), many[key]), f"initial state {key} differs between entries")


def arguments_are_not_modified(case: MemoryCase) -> None:
    memory = case.build()
    for grad in (True, False):
        for state in (memory.initial_state(BATCH), case.used_state(memory)):
            xs, starts = case.inputs(LENGTH, BATCH), torch.ones(LENGTH, BATCH, dtype=torch.bool)
            arguments = {"the input": xs, "starts": starts, **{f"state {key}": value for key, value in state.items()}}
            arguments |= {**dict(memory.named_buffers()), **dict(memory.named_parameters())}
            before = {key: value.clone() for key, value in arguments.items()}
            with torch.set_grad_enabled(grad):
                memory(xs[0], state)
                memory.unroll(xs, starts, state)
                memory.unroll(xs, None, state)
            for key, value in arguments.items():
                expect(torch.equal(value, before[key]), f"{key} was changed in place")


def batch_entries_are_independent(case: MemoryCase) -> None:
    memory = case.build()
    state, xs = case.used_state(memory), case.inputs(LENGTH, BATCH)
    starts = torch.rand(LENGTH, BATCH, generator=torch.Generator().manual_seed(5)) < 0.3
    order = torch.tensor([2, 0, 1])
    result = memory.unroll(xs, starts, state)
    permuted = memory.unroll(xs[:, order], starts[:, order], select(state, order))
    expected = {"outputs": result.outputs[:, order], **select(result.state, order)}
    expect_same({"outputs": permuted.outputs, **permuted.state}, expected, "entries in another order")
    changed = xs.clone()
    changed[:, 0] += 1
    disturbed = memory.unroll(changed, starts, state)
    expect(not torch.equal(disturbed.outputs[:, 0], result.outputs[:, 0]), "the output does not depend on the input")
    expect_same(
        {"outputs": disturbed.outputs[:, 1:], **select(disturbed.state, slice(1, None))},
        {"outputs": result.outputs[:, 1:], **select(result.state, slice(1, None))},
        "other entries than the one whose input changed",
    )


class NoHostReads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fails on any synchronisation with the device: `.item()`, `float(x)`, `if x:`, `nonzero`."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.__name__.split(".")[0]
        if name in ("_local_scalar_dense", "nonzero", "is_nonzero"):
            place = next((f"{one.filename}:{one.lineno}: {one.line}" for one in reversed(_own_frames())), "")
            like = ".item(), float(x), if x: or a mask as an index"
            expect(False, f"a step reads a value on the host ({name}, as in {like}): {place}")
        return func(*args, **(kwargs or {}))


class OneHotOnDevice(TorchFunctionMode):
    """Replaces `one_hot(x, n)`, which reads whether x < n on a CPU only."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        given = [*args, *(kwargs or {}).values()]
        if func is F.one_hot and len(given) == 2:
            x, n = given
            return (x[..., None] == torch.arange(n, device=x.device)).long()
        return func(*args, **(kwargs or {}))


def _own_frames() -> list[traceback.FrameSummary]:
    """The frames of the code under test that are running: neither torch's nor the checks'."""
    hidden = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
    return [frame for frame in traceback.extract_stack() if not frame.filename.startswith(hidden)]


def a_step_does_not_synchronise(case: MemoryCase) -> None:
    memory, x = case.build(), case.inputs(BATCH)
    state = case.used_state(memory)
    with OneHotOnDevice(), NoHostReads():  # type: ignore[no-untyped-call]
        memory(x, state)
        unroll(memory, x[None], torch.ones(1, BATCH, dtype=torch.bool), state, [0])


def _other_values(value: Tensor) -> Tensor:
    """Values of the same type that differ from `value`."""
    if differentiable(value):
        return torch.randn_like(value)
    return ~value if value.dtype == torch.bool else value + 1


def panels_show_the_first_entry_and_change_with_it(case: MemoryCase) -> str | None:
    memory = case.build()
    state = case.used_state(memory)
    later = unroll(memory, case.inputs(2, BATCH), None, detach(state)).state
    others = {key: torch.cat([value[:1], _other_values(value[1:])]) for key, value in state.items()}
    panels, changed = memory.panels(state), memory.panels(later)
    if not panels:
        return "it has no panels"
    expect(panels.keys() == changed.keys(), f"panels are {sorted(panels)} at one step, {sorted(changed)} at another")
    for title, panel in panels.items():
        image, after = panel.image, changed[title].image
        expect(not image.requires_grad and not after.requires_grad, f"panel {title} has a graph: detach it")
        flat = image.dim() == 2 or (image.dim() == 3 and image.shape[2] == 3)
        expect(flat, f"panel {title} is {tuple(image.shape)}, expected [H, W] or [H, W, 3]")
        expect(image.isfinite().all(), f"panel {title} is not finite")
        expect(bool(panel.x_label and panel.y_label), f"panel {title} needs a label on each axis")
        expect(bool((image != image.flatten()[0]).any()), f"panel {title} is constant")
        alone = torch.equal(image, memory.panels(others)[title].image)
        expect(alone, f"panel {title} shows other entries than the first")
        expect(not torch.equal(image, after), f"panel {title} does not change from step to step")
    return None


def metrics_are_a_number_for_each_entry(case: MemoryCase) -> str | None:
    memory = case.build()
    state = case.used_state(memory)
    with OneHotOnDevice(), NoHostReads():  # type: ignore[no-untyped-call]
        metrics = memory.metrics(state)
    if not metrics:
        return "it has no metrics"
    for name, number in metrics.items():
        expect(number.shape == (BATCH,), f"metric {name} is {tuple(number.shape)}, expected one number for each entry")
        expect(number.isfinite().all(), f"metric {name} is not finite")
        expect(
            name not in memory.panels(state), f"{name} is the name of a panel and of a metric; both are logged by it"
        )
    return None


# Training


def gradients_reach_every_parameter(case: MemoryCase) -> None:
    memory = case.build()
    result = memory.unroll(case.inputs(4, BATCH), None, memory.initial_state(BATCH))
    loss = result.outputs.square().sum() + sum(value.sum() for value in result.losses.values())
    if result.grids is not None:
        loss = loss + result.grids.square().sum()
    if list(memory.parameters()):
        loss.backward()  # type: ignore[no-untyped-call]
    for key, parameter in memory.named_parameters():
        expect(parameter.grad is not None, f"{key} has no gradient")
        assert parameter.grad is not None
        expect(parameter.grad.isfinite().all(), f"the gradient of {key} is not finite")
        expect(parameter.grad.count_nonzero() > 0, f"the gradient of {key} is zero")


def a_loaded_memory_is_the_same(case: MemoryCase) -> None:
    memory, other = case.build(), case.build(seed=1)
    other.load_state_dict(memory.state_dict())
    xs = case.inputs(LENGTH, BATCH)
    with torch.no_grad():
        ours = everything(memory.unroll(xs, None, memory.initial_state(BATCH)))
        theirs = everything(other.unroll(xs, None, other.initial_state(BATCH)))
    for key, value in ours.items():
        expect(torch.equal(theirs[key], value), f"{key} differs after load_state_dict: something is not in state_dict")


def it_learns_to_recall_the_first_symbol(case: MemoryCase) -> None:
    """RepeatFirst: one of four symbols, then seven random ones; at the last step, which was the first?

    A memoryless agent sees only noise at the last step, and stays at 1/4.
    """
    symbols, length, batch, width = 4, 8, 32, case.input_shape[0]
    expect(width > symbols, f"input_shape is {case.input_shape}, but the learning check needs a width of 5 or more")
    memory = case.make(case.learner or case.options)
    head = nn.Linear(memory.output_size, symbols)
    optimizer = torch.optim.Adam([*memory.parameters(), *head.parameters()], lr=5e-3)

    def play(episodes: int) -> tuple[Tensor, Unrolled]:
        shown = torch.randint(symbols, (length, episodes))
        xs = F.one_hot(shown, symbols + 1).float()
        xs[0, :, symbols] = 1  # marks the symbol to remember
        xs = F.pad(xs, (0, width - symbols - 1))
        xs = xs.view(length, episodes, width, *[1] * (len(case.input_shape) - 1))
        xs = xs.expand(length, episodes, *case.input_shape)
        return shown[0], memory.unroll(xs, None, memory.initial_state(episodes))

    for _ in range(case.updates):
        first, result = play(batch)
        loss = F.cross_entropy(head(result.outputs).flatten(0, 1), first.repeat(length))
        loss = loss + sum(value.mean() for value in result.losses.values())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        first, result = play(500)
        accuracy = (head(result.outputs[-1]).argmax(1) == first).double().mean().item()
    expect(
        case.floor <= accuracy <= case.ceiling,
        f"after {case.updates} updates it recalls the first of {length} symbols with accuracy {accuracy:.3f}, expected "
        f"{case.floor} to {case.ceiling} (floor, ceiling); chance is 0.25",
    )
