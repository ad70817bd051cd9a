"""Fast forms of LSTM and GRU: torch's kernels for whole sequences, and on a CPU the tapes of `fast_sequence.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from policies.memories.contract import MemoryStep, State, Unrolled
from policies.memories.recurrent import fast_native
from policies.memories.recurrent.fast_gradient import RecurrentSequence
from policies.memories.recurrent.fast_sequence import GRUTape, LSTMTape, Tape
from policies.memories.steps import reset, select
from policies.memories.time.recording import Recording
from policies.memories.time.scopes import host_may_read
from policies.memories.time.taped import TapedForm
from policies.memories.time.unroll import unroll_segments


class Layers:
    """A tape for each layer."""

    full = False

    def __init__(self, tapes: Sequence[Tape], memory: Any) -> None:
        self.tapes, self.memory = tapes, memory

    def step(self, projected: Tensor, starts: Tensor | None) -> None:
        self.after = []
        for tape in self.tapes:
            self.after.append(tape.step(projected, starts))
            projected = self.after[-1][0]

    def state(self) -> State:
        stacked: State = self.memory.stacked(self.after)
        return stacked


class FastRecurrent(TapedForm):
    """Computes sequences by torch's kernels or, on a CPU, by tapes, whichever is faster.

    CPU: an LSTM without resets, or with few known resets and no C compiler, uses oneDNN's kernel; the sequence is cut
    at the resets. An LSTM with other resets, and a GRU, for which torch has no such kernel, use `fast_sequence`, which
    supports resets at any step, with C loops (`fast_native`) if there is a compiler.
    Other devices: cuDNN, with the sequence cut at few resets. With more, the host reads `starts` (one synchronisation),
    and every episode becomes a sequence in one packed batch, at a cost that does not depend on the resets. If the host
    may not read, the memory runs step by step.
    """

    tape_of: ClassVar[type[Tape]]
    """The tape of one layer."""
    has_cpu_kernel: ClassVar[bool]
    """Whether torch has a oneDNN kernel for whole sequences on a CPU."""
    memory: Any
    bf16 = False
    """Whether the sequence kernel multiplies in bfloat16; states and outputs keep their dtype."""

    def cell(self, x: Tensor, state: tuple[Tensor, ...], parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """One step of one layer by torch's kernel."""
        raise NotImplementedError

    @property
    def uses_tapes(self) -> bool:
        """Whether to use tapes; on other devices torch's kernels are faster."""
        return bool(self.memory.device.type == "cpu")

    def few_resets(self, length: int, resets: Sequence[int] | None) -> bool:
        """Whether there are few enough known resets to cut the sequence at them."""
        # elsewhere the alternative synchronises, so more resets are worth cutting at
        maximum = max(1, length // 8) if self.memory.device.type == "cpu" else max(2, length // 4)
        return resets is not None and len(resets) <= maximum

    def fits(self, length: int, resets: Sequence[int] | None, grad: bool) -> bool:
        return self.uses_tapes or self.few_resets(length, resets) or host_may_read()

    def step(self, x: Tensor, state: State) -> MemoryStep:
        step = self.tape_of.single_step if x.is_cpu and not torch.is_grad_enabled() else self.cell
        output, new_state = self.memory.through_layers(x, state, step)
        return MemoryStep(output, new_state, {})

    def tape(self, state: State, expected_steps: int) -> Layers:
        parameters = enumerate(self.memory.rnn.all_weights)
        return Layers(
            [self.tape_of(self.memory.layer(state, i), each, expected_steps) for i, each in parameters], self.memory
        )

    def output(self, state: State) -> Tensor:
        return state["hidden"][:, -1]

    def finish(self, tape: Any, projected: Tensor, state: State) -> Unrolled:
        layers = []
        for index, parameters in enumerate(self.memory.rnn.all_weights):
            before = self.memory.layer(state, index)
            layers.append(RecurrentSequence.apply(tape.tapes[index], projected, *before, *parameters))  # type: ignore[no-untyped-call]
            projected = layers[-1][0]
        last = [tuple(part[-1] for part in layer) for layer in layers]
        return Unrolled(layers[-1][0], self.memory.stacked(last), {})

    def record(self, state: State, expected_steps: int) -> Recording:
        return super().record(state, expected_steps) if self.uses_tapes else Recording(self.memory, state)

    def unroll(self, xs: Tensor, starts: Tensor | None, state: State, resets: Sequence[int] | None) -> Unrolled:
        few_resets = self.few_resets(len(xs), resets)
        loops = not self.bf16 and fast_native.usable(xs.new_empty(xs.shape[1], self.memory.hidden_size))
        if self.uses_tapes and not (self.has_cpu_kernel and (starts is None or (few_resets and not loops))):
            return self.unroll_on_tapes(xs, starts, state, resets)
        if starts is not None and not few_resets:
            return self._unroll_packed(xs, starts, state)
        return unroll_segments(
            self.memory, lambda part, state: Unrolled(*self._run(part, state), {}), xs, starts, state, resets or ()
        )

    def unroll_on_tapes(
        self, xs: Tensor, starts: Tensor | None, state: State, resets: Sequence[int] | None
    ) -> Unrolled:
        """The sequence on tapes, layer by layer."""
        layers, projected = self.tape(state, len(xs)), xs.detach()
        for tape in layers.tapes:
            tape.run(projected, starts, resets)
            projected = tape.states[0][1:]
        return self.finish(layers, xs, state)

    def use_bf16(self) -> bool:
        self.bf16 = self.has_cpu_kernel or self.memory.device.type != "cpu"
        return self.bf16

    def _unroll_packed(self, xs: Tensor, starts: Tensor, state: State) -> Unrolled:
        episodes = _Episodes.of(starts.cpu())
        owner, starts_new, source, inverse, last = (index.to(xs.device) for index in episodes[:5])
        begin = reset(select(state, owner), starts_new, self.memory.initial_state(len(owner)))
        packed = PackedSequence(xs.flatten(0, 1)[source], episodes.batch_sizes)
        outputs, end = self._run(packed, begin)
        return Unrolled(outputs.data[inverse].view(*xs.shape[:2], -1), select(end, last), {})

    def _run(self, xs: Tensor | PackedSequence, state: State) -> tuple[Tensor, State]:
        """Whole sequences without a reset: `[T, B, F]`, or packed."""
        # torch has the layer as first dimension
        hx: Any = tuple(state[name].transpose(0, 1).contiguous() for name in self.memory.state_names)
        outputs: Any
        if self.bf16:
            outputs, hx = self._run_in_bf16(xs, hx)
        else:
            outputs, hx = self.memory.rnn(xs, hx if len(hx) > 1 else hx[0])
        hx = hx if isinstance(hx, tuple) else (hx,)
        return outputs, {name: value.transpose(0, 1) for name, value in zip(self.memory.state_names, hx, strict=True)}

    def _run_in_bf16(
        self, xs: Tensor | PackedSequence, hx: tuple[Tensor, ...]
    ) -> tuple[Tensor | PackedSequence, tuple[Tensor, ...]]:
        """The kernel with input, state and weights cast to bfloat16, results cast back.

        Autocast is not used, because for cuDNN it always casts to float16.
        """
        inputs = xs.data if isinstance(xs, PackedSequence) else xs
        weights = [weight.bfloat16() for weight in self.memory.rnn._flat_weights if weight is not None]
        first = [value.bfloat16() for value in hx]
        settings: tuple[Any, ...] = (weights, True, self.memory.num_layers, 0.0, self.memory.training, False)
        sizes, layout = ((xs.batch_sizes,), ()) if isinstance(xs, PackedSequence) else ((), (False,))
        run = getattr(torch._VF, self.memory.rnn.mode.lower())
        first_state = first if len(first) > 1 else first[0]
        out, *last = run(inputs.bfloat16(), *sizes, first_state, *settings, *layout)
        out, last = out.to(self.memory.dtype), tuple(value.to(self.memory.dtype) for value in last)
        return PackedSequence(out, xs.batch_sizes) if isinstance(xs, PackedSequence) else out, last


class FastLSTM(FastRecurrent):
    """The fast form of the LSTM."""

    tape_of = LSTMTape
    has_cpu_kernel = True

    def cell(self, x: Tensor, state: tuple[Tensor, ...], parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return torch.lstm_cell(x, state, *parameters)


class FastGRU(FastRecurrent):
    """The fast form of the GRU."""

    tape_of = GRUTape
    has_cpu_kernel = False

    def cell(self, x: Tensor, state: tuple[Tensor, ...], parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return (torch.gru_cell(x, *state, *parameters),)


class _Episodes(NamedTuple):
    """Index arithmetic of a packed batch: `starts` `[T, B]` as N episodes, longest first."""

    owner: Tensor
    """Batch entry of each episode, `[N]`."""
    starts_new: Tensor
    """Whether it starts from the initial state instead of the carried state, `[N]`."""
    source: Tensor
    """For each packed row, its row in `xs.flatten(0, 1)`, `[T * B]`."""
    inverse: Tensor
    """The inverse of `source`."""
    last: Tensor
    """The last episode of each batch entry, `[B]`."""
    batch_sizes: Tensor
    """Number of episodes with at least p + 1 steps, `[longest]`."""

    @classmethod
    def of(cls, starts: Tensor) -> _Episodes:
        length, batch_size = starts.shape
        begins = starts.t().clone()  # [B, T]: episodes of one batch entry follow one another
        begins[:, 0] = True
        episode = begins.flatten().cumsum(0) - 1  # of each (b, t)
        first = begins.flatten().nonzero().flatten()  # b * T + t of each episode's first step
        lengths = episode.bincount()
        order = lengths.argsort(descending=True, stable=True)
        rank = order.argsort()
        position = torch.arange(batch_size * length) - first[episode]
        # packed rows are sorted by position in the episode, then from the longest episode to the shortest
        packed = (position * len(first) + rank[episode]).argsort()
        source = packed % length * batch_size + packed // length
        return cls(
            owner=(first // length)[order],
            starts_new=starts.t().flatten()[first][order],
            source=source,
            inverse=source.argsort(),
            last=rank[episode.view(batch_size, length)[:, -1]],
            batch_sizes=position.bincount(),
        )
