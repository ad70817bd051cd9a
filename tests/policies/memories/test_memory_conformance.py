"""What every memory must do, over every registered one.

A new memory needs one row in `CASES`; without it the suite fails. What is asked of time, over the same rows, is in
`test_memory_conformance_time.py`.
"""

from __future__ import annotations

import pytest
import torch
from conformance_helpers import BATCH, LENGTH, Case, assert_same
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from policies.memories import make_memory, registered
from policies.memories.base import Memory, State, Unrolled, detach, select, unroll

MNM = {"hidden_size": 7, "output_size": 5, "key_size": 4, "value_size": 3, "memory_units": 6, "heads": 2}
MNM_LEARNER = {"hidden_size": 24, "key_size": 12, "value_size": 12, "memory_units": 12, "heads": 2}
SALU = {"hidden_size": 7, "output_size": 5, "key_size": 4, "value_size": 3, "heads": 2}
PLASTIC = {"hidden_size": 6, "init_scale": 0.4, "init_eta": 0.3}
PLASTIC_LEARNER = {"hidden_size": 32, "init_scale": 0.05}
DNC = {"hidden_size": 6, "output_size": 5, "slots": 5, "word_size": 3, "read_heads": 2, "write_heads": 2}

CASES = {
    "identity": Case(floor=0.0, ceiling=0.4),  # sees the answer never, so chance is all it can have
    "gru": Case({"hidden_size": 6, "num_layers": 2}, learner={"hidden_size": 24}),
    "lstm": Case({"hidden_size": 6, "num_layers": 2}, learner={"hidden_size": 24}),
    "dmn": Case(
        {"hidden_size": 4, "capacity": 4, "passes": 2, "answer": "gru"},
        learner={"hidden_size": 24, "capacity": 8, "passes": 2},
        updates=100,
    ),
    "memn2n": Case({"embedding_size": 4, "capacity": 4, "hops": 2}, learner={"embedding_size": 24, "capacity": 8}),
    "mnm-p": Case({**MNM, "rate": "per-layer"}, learner=MNM_LEARNER),
    "mnm-g": Case({**MNM, "rate": "per-layer"}, learner=MNM_LEARNER, updates=150),
    "dnc": Case(DNC, learner={"hidden_size": 24, "slots": 8, "word_size": 8, "read_heads": 1}, updates=100),
    "sdnc": Case(
        {"hidden_size": 6, "output_size": 5, "slots": 9, "word_size": 4, "read_heads": 2, "sparse_reads": 2}
        | {"sparse_links": 3},
        learner={"hidden_size": 24, "slots": 16, "word_size": 8, "read_heads": 2},
        updates=100,
    ),
    "multigrid": Case(
        {"levels": (1, 2), "channels": (2, 3), "down_channels": (4,)},
        input_shape=(5, 3, 3),
        learner={"levels": (1, 2), "channels": (4, 4), "down_channels": (4,)},
        updates=100,
    ),
    "plastic": Case(PLASTIC, learner=PLASTIC_LEARNER),
    "homo-plastic": Case(PLASTIC, learner=PLASTIC_LEARNER),
    "salu": Case(
        {**SALU, "capacity": 4}, learner={"hidden_size": 24, "key_size": 12, "value_size": 12, "capacity": 10}
    ),
    "stack-rnn": Case(
        {"hidden_size": 6, "num_stacks": 2, "capacity": 5, "bias": True},
        learner={"hidden_size": 100, "capacity": 10},
    ),
    "d-ntm": Case(
        {"hidden_size": 6, "output_size": 5, "num_layers": 2, "memory_size": 7, "content_size": 4, "address_size": 3}
        | {"read_heads": 2, "write_heads": 2, "reading_steps": 2, "addressing": "discrete"}
        | {"entropy_coef": 0.1, "consistency_coef": 0.1, "prediction_coef": 0.1},
        learner={"hidden_size": 24, "memory_size": 16, "content_size": 8, "address_size": 8},
        updates=100,
    ),
    "ntm": Case(
        {"hidden_size": 6, "output_size": 5, "num_layers": 2, "memory_size": 7, "word_size": 4, "read_heads": 2}
        | {"write_heads": 2, "shift_range": 2, "memory_init": "learned"},
        learner={"hidden_size": 24, "memory_size": 16, "word_size": 8},
        updates=150,
    ),
    "kanerva++": Case(
        {"output_size": 5, "hidden_size": 6, "dense_size": 8, "latent_size": 3, "memory_size": 8, "prior_features": 8}
        | {"map_shape": (1, 4, 4), "reconstruct": True},
        learner={"memory_size": 8, "hidden_size": 24, "output_size": 24},
        updates=100,
    ),
    "dkm": Case(
        {"output_size": 5, "memory_size": 4, "code_size": 3, "num_opt_iters": 2, "read_iterations": 2}
        | {"sample_w": True, "sample_memory": True, "obs_noise_stddev": 0.0, "reconstruct": True},
        learner={"memory_size": 8, "code_size": 16},
    ),
}

every_memory = pytest.mark.parametrize("name", sorted(CASES))


def build(name: str, dtype: torch.dtype = torch.float64) -> Memory:
    torch.manual_seed(0)
    return make_memory(name, input_size=CASES[name].input_size, **CASES[name].options).to(dtype)


def inputs(name: str, *sizes: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*sizes, *CASES[name].input_shape, generator=generator, dtype=dtype)


def used_state(memory: Memory, name: str, batch: int = BATCH) -> State:
    """A state that has seen two steps, unlike the initial one."""
    with torch.no_grad():
        return unroll(memory, inputs(name, 2, batch, seed=7), None, memory.initial_state(batch)).state


def test_every_registered_memory_has_a_row() -> None:
    missing, stale = set(registered()) - set(CASES), set(CASES) - set(registered())
    assert not missing, f"add a row to CASES for {sorted(missing)}: nothing here has tested it"
    assert not stale, f"CASES has rows for {sorted(stale)}, which are not registered"


# What the contract says of one step


@every_memory
def test_a_step_keeps_names_shapes_and_types(name: str) -> None:
    memory = build(name)
    state = memory.initial_state(BATCH)
    step = memory(inputs(name, BATCH), state)
    assert step.output.shape == (BATCH, memory.output_size)
    assert step.output.dtype == memory.dtype == torch.float64
    assert {key: (value.shape, value.dtype) for key, value in step.state.items()} == {
        key: (value.shape, value.dtype) for key, value in state.items()
    }
    assert all(value.shape[0] == BATCH for value in state.values())
    assert all(loss.shape == (BATCH,) for loss in step.losses.values())
    if memory.output_grid is None:
        assert step.grid is None
    else:
        assert step.grid is not None
        assert step.grid.shape == (BATCH, *memory.output_grid)


@every_memory
def test_the_initial_state_is_the_same_for_every_entry_and_every_batch_size(name: str) -> None:
    memory = build(name)
    one, many = memory.initial_state(1), memory.initial_state(4)
    assert one.keys() == many.keys()
    for key in one:
        assert torch.equal(one[key].expand_as(many[key]), many[key])


@every_memory
@pytest.mark.parametrize("grad", [True, False])
def test_nothing_the_caller_holds_is_written_to(name: str, grad: bool) -> None:
    memory = build(name)
    for state in (memory.initial_state(BATCH), used_state(memory, name)):
        xs, starts = inputs(name, LENGTH, BATCH), torch.ones(LENGTH, BATCH, dtype=torch.bool)
        held = {"xs": xs, "starts": starts, **state, **dict(memory.named_buffers()), **dict(memory.named_parameters())}
        before = {key: value.clone() for key, value in held.items()}
        with torch.set_grad_enabled(grad):
            first = memory(xs[0], state)
            again = memory(xs[0], state)
            memory.unroll(xs, starts, state)
            memory.unroll(xs, None, state)
        for key, value in held.items():
            assert torch.equal(value, before[key]), f"{key} was changed in place"
        assert torch.equal(first.output, again.output)
        for key in state:
            assert torch.equal(first.state[key], again.state[key])


@every_memory
def test_batch_entries_do_not_know_of_each_other(name: str) -> None:
    memory = build(name)
    state, xs = used_state(memory, name), inputs(name, LENGTH, BATCH)
    starts = torch.rand(LENGTH, BATCH) < 0.3
    order = torch.tensor([2, 0, 1])
    result = memory.unroll(xs, starts, state)
    permuted = memory.unroll(xs[:, order], starts[:, order], select(state, order))
    torch.testing.assert_close(permuted.outputs, result.outputs[:, order])
    for key, value in select(result.state, order).items():
        torch.testing.assert_close(permuted.state[key], value)

    changed = xs.clone()
    changed[:, 0] += 1
    disturbed = memory.unroll(changed, starts, state)
    assert not torch.equal(disturbed.outputs[:, 0], result.outputs[:, 0])
    assert_same(
        {"outputs": disturbed.outputs[:, 1:], **select(disturbed.state, slice(1, None))},
        {"outputs": result.outputs[:, 1:], **select(result.state, slice(1, None))},
    )


class NoAnswers(TorchDispatchMode):
    """Fails where a value is asked of the device: `.item()`, `float(x)`, `if x:`, `nonzero`."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        assert func.__name__.split(".")[0] not in ("_local_scalar_dense", "nonzero", "is_nonzero")
        return func(*args, **(kwargs or {}))


@every_memory
def test_a_step_asks_nothing_of_the_device(name: str) -> None:
    memory, x = build(name), inputs(name, BATCH)
    state = used_state(memory, name)
    with NoAnswers():
        memory(x, state)
        unroll(memory, x[None], torch.ones(1, BATCH, dtype=torch.bool), state, [0])


@every_memory
def test_panels_show_the_first_entry_and_change_with_it(name: str) -> None:
    memory = build(name)
    state = used_state(memory, name)
    later = unroll(memory, inputs(name, 2, BATCH), None, detach(state)).state
    others = {key: torch.cat([value[:1], torch.randn_like(value[1:])]) for key, value in state.items()}
    panels, changed = memory.panels(state), memory.panels(later)
    assert bool(panels) == bool(state)
    assert panels.keys() == changed.keys()
    for title, panel in panels.items():
        image = panel.image
        assert not image.requires_grad
        assert not changed[title].image.requires_grad
        assert image.dim() == 2 or (image.dim() == 3 and image.shape[2] == 3)
        assert image.isfinite().all()
        assert panel.x_label, f"{title} needs a label on its axes"
        assert panel.y_label, f"{title} needs a label on its axes"
        assert image.unique().numel() > 1, f"{title} is constant"
        assert torch.equal(image, memory.panels(others)[title].image), f"{title} shows other entries than the first"
        assert not torch.equal(image, changed[title].image), f"{title} does not change from step to step"


# What training needs


@every_memory
def test_gradients_reach_every_parameter(name: str) -> None:
    memory = build(name)
    result = memory.unroll(inputs(name, 4, BATCH), None, memory.initial_state(BATCH))
    loss = result.outputs.square().sum() + sum(value.sum() for value in result.losses.values())
    if result.grids is not None:
        loss = loss + result.grids.square().sum()
    if list(memory.parameters()):
        loss.backward()
    for key, parameter in memory.named_parameters():
        assert parameter.grad is not None, f"{key} has no gradient"
        assert parameter.grad.isfinite().all(), f"the gradient of {key} is not finite"
        assert parameter.grad.count_nonzero() > 0, f"the gradient of {key} is zero"


@every_memory
def test_saved_and_loaded_it_is_the_same_memory(name: str) -> None:
    memory = build(name)
    torch.manual_seed(1)
    other = make_memory(name, input_size=CASES[name].input_size, **CASES[name].options).double()
    other.load_state_dict(memory.state_dict())
    xs = inputs(name, LENGTH, BATCH)
    with torch.no_grad():
        ours = memory.unroll(xs, None, memory.initial_state(BATCH))
        theirs = other.unroll(xs, None, other.initial_state(BATCH))
    assert torch.equal(ours.outputs, theirs.outputs)
    for key in ours.state:
        assert torch.equal(ours.state[key], theirs.state[key])


@every_memory
def test_it_learns_to_recall_the_first_symbol(name: str) -> None:
    """RepeatFirst: one of four symbols, then seven random ones; at the last step, which was the first?

    A memoryless agent sees only noise at the last step, and stays at 1/4: `identity` is held below 0.4.
    """
    case = CASES[name]
    symbols, length, batch = 4, 8, 32
    torch.manual_seed(0)
    options = case.learner or case.options
    memory = make_memory(name, input_size=case.input_size, **options)
    head = nn.Linear(memory.output_size, symbols)
    optimizer = torch.optim.Adam([*memory.parameters(), *head.parameters()], lr=5e-3)

    def play(episodes: int) -> tuple[Tensor, Unrolled]:
        shown = torch.randint(symbols, (length, episodes))
        xs = F.one_hot(shown, symbols + 1).float()
        xs[0, :, symbols] = 1  # marks the symbol to remember
        xs = xs.view(length, episodes, symbols + 1, *[1] * (len(case.input_shape) - 1))
        xs = xs.expand(length, episodes, symbols + 1, *case.input_shape[1:])
        return shown[0], memory.unroll(xs, None, memory.initial_state(episodes))

    for _ in range(case.updates):
        first, result = play(batch)
        loss = F.cross_entropy(head(result.outputs).flatten(0, 1), first.repeat(length))
        loss = loss + sum(value.mean() for value in result.losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        first, result = play(500)
        accuracy = (head(result.outputs[-1]).argmax(1) == first).double().mean().item()
    assert case.floor <= accuracy <= case.ceiling
