"""What LSTM and GRU share: a step by torch's cell, a sequence by torch's sequence kernel, the same parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from policies.memories.contract import Memory, MemoryStep, Panel, State, Unrolled
from policies.memories.recurrent import fast_native as recurrent_native
from policies.memories.recurrent.fast_gradient import RecurrentSequence
from policies.memories.recurrent.fast_sequence import Tape
from policies.memories.shared.pictures import vector_panel
from policies.memories.steps import reset, select
from policies.memories.time.host_reads import host_may_read
from policies.memories.time.recording import Recording
from policies.memories.time.unroll import unroll, unroll_segments


class TorchRecurrent(Memory):
    """A memory around `nn.LSTM` or `nn.GRU`.

    Its state holds one tensor `[B, num_layers, hidden_size]` for each of `state_names`, zero when an episode starts.
    """

    kernel: ClassVar[type[nn.RNNBase]]
    tape: ClassVar[type[Tape]]
    state_names: ClassVar[tuple[str, ...]]
    has_cpu_kernel: ClassVar[bool]
    """Whether torch runs whole sequences by oneDNN on a CPU."""

    def __init__(self, input_size: int, hidden_size: int, num_layers: int, fast: bool) -> None:
        super().__init__()
        self.fast = fast
        self.bf16 = False
        """Whether the sequence kernel multiplies in bfloat16; states and outputs stay as they are."""
        self.output_size = hidden_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.rnn = self.kernel(input_size, hidden_size, num_layers)  # type: ignore[arg-type]

    def initial_state(self, batch_size: int) -> State:
        zeros = torch.zeros(1, self.num_layers, self.hidden_size, device=self.device, dtype=self.dtype)
        return {name: zeros.expand(batch_size, -1, -1) for name in self.state_names}

    def cell(self, x: Tensor, state: tuple[Tensor, ...], parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """One step of one layer: `x` `[B, F]` and state tensors `[B, hidden_size]` to the next state tensors."""
        raise NotImplementedError

    def forward(self, x: Tensor, state: State) -> MemoryStep:
        step = self.tape.once if self._by_hand and not torch.is_grad_enabled() else self.cell
        layers = []
        for index, parameters in enumerate(self.rnn.all_weights):
            layers.append(step(x, self._layer(state, index), parameters))
            x = layers[-1][0]
        return MemoryStep(x, self._state(layers, 1), {})

    @property
    def _by_hand(self) -> bool:
        """Whether `recurrent_sequence` is used: on other devices torch's kernels are the faster."""
        return self.fast and self.device.type == "cpu"

    def _by_loops(self, xs: Tensor) -> bool:
        """Whether C loops take the steps of `xs` `[T, B, F]`."""
        return not self.bf16 and recurrent_native.usable(xs.new_empty(xs.shape[1], self.hidden_size))

    def _layer(self, state: State, index: int) -> tuple[Tensor, ...]:
        return tuple(state[name][:, index] for name in self.state_names)

    def _state(self, layers: Sequence[tuple[Tensor, ...]], dim: int) -> State:
        """The state of all layers from their state tensors."""
        stacked = (torch.stack(parts, dim) for parts in zip(*layers, strict=True))
        return dict(zip(self.state_names, stacked, strict=True))

    def unroll(self, xs: Tensor, starts: Tensor | None, state: State, resets: Sequence[int] | None = None) -> Unrolled:  # type: ignore[override]
        """As `time.unroll`, by torch's sequence kernel or, on a CPU, by hand, whichever is the faster.

        On a CPU: an LSTM by the kernel of oneDNN, cut at a few resets that the host knows of; a GRU, for which torch
        has no such kernel, and an LSTM with more resets by `fast_sequence`, which takes resets anywhere. Where there is
        a compiler both go through C loops (`fast_native`), an LSTM where there is any reset.
        Elsewhere: by cuDNN, cut at a few resets. With more of them `starts` is read by the host, one synchronisation,
        and every episode becomes a sequence of its own in one packed batch: what that costs does not depend on how
        many episodes start, or where. Where the host may read nothing, step by step.
        """
        if not self.fast:
            return unroll(self, xs, starts, state, resets)
        whole = starts is None or (resets is not None and not resets)
        # where `starts` would have to be read from an accelerator, cutting pays for longer
        most = max(1, len(xs) // 8) if self.device.type == "cpu" else max(2, len(xs) // 4)
        few = resets is not None and len(resets) <= most
        if self._by_hand and not (self.has_cpu_kernel and (whole or (few and not self._by_loops(xs)))):
            return self._unroll_by_hand(xs, starts, state, resets)
        if whole:
            outputs, state = self._run(xs, state)
            return Unrolled(outputs, state, {})
        assert starts is not None
        if resets is None or not few:
            if not host_may_read():
                return unroll(self, xs, starts, state, resets)
            return self._unroll_packed(xs, starts, state)
        return unroll_segments(
            self, lambda part, state: Unrolled(*self._run(part, state), {}), xs, starts, state, resets
        )

    def take_bf16(self) -> bool:
        self.bf16 = self.has_cpu_kernel or self.device.type != "cpu"
        return self.bf16

    def _unroll_by_hand(
        self, xs: Tensor, starts: Tensor | None, state: State, resets: Sequence[int] | None
    ) -> Unrolled:
        layers = []
        for index, parameters in enumerate(self.rnn.all_weights):
            before = self._layer(state, index)
            tape = self.tape(before, parameters, len(xs))
            tape.run(xs.detach(), starts, resets)
            layers.append(RecurrentSequence.apply(tape, xs, *before, *parameters))  # type: ignore[no-untyped-call]
            xs = layers[-1][0]
        return Unrolled(xs, self._state([tuple(part[-1] for part in layer) for layer in layers], 1), {})

    def record(self, state: State, room: int) -> Recording:
        """As `Memory.record`, on tapes of `recurrent_sequence`."""
        return TapedRecording(self, state, room) if self._by_hand else super().record(state, room)

    def _unroll_packed(self, xs: Tensor, starts: Tensor, state: State) -> Unrolled:
        episodes = _Episodes.of(starts.cpu())
        owner, fresh, source, back, last = (index.to(xs.device) for index in episodes[:5])
        begin = reset(select(state, owner), fresh, self.initial_state(len(owner)))
        packed = PackedSequence(xs.flatten(0, 1)[source], episodes.batch_sizes)
        outputs, end = self._run(packed, begin)
        return Unrolled(outputs.data[back].view(*xs.shape[:2], -1), select(end, last), {})

    def _run(self, xs: Tensor | PackedSequence, state: State) -> tuple[Tensor, State]:
        """Whole sequences without a reset: `[T, B, F]`, or packed."""
        # torch keeps the layer first
        hx: Any = tuple(state[name].transpose(0, 1).contiguous() for name in self.state_names)
        outputs: Any
        if self.bf16:
            outputs, hx = self._run_in_bf16(xs, hx)
        else:
            outputs, hx = self.rnn(xs, hx if len(hx) > 1 else hx[0])
        hx = hx if isinstance(hx, tuple) else (hx,)
        return outputs, {name: value.transpose(0, 1) for name, value in zip(self.state_names, hx, strict=True)}

    def _run_in_bf16(
        self, xs: Tensor | PackedSequence, hx: tuple[Tensor, ...]
    ) -> tuple[Tensor | PackedSequence, tuple[Tensor, ...]]:
        """`self.rnn` with input, state and weights cast to bfloat16, results cast back.

        Not by autocast: for cuDNN it casts to float16, whatever type it is told.
        """
        inputs = xs.data if isinstance(xs, PackedSequence) else xs
        weights = [weight.bfloat16() for weight in self.rnn._flat_weights if weight is not None]
        first = [value.bfloat16() for value in hx]
        settings: tuple[Any, ...] = (weights, True, self.num_layers, 0.0, self.training, False)
        sizes, layout = ((xs.batch_sizes,), ()) if isinstance(xs, PackedSequence) else ((), (False,))
        run = getattr(torch._VF, self.rnn.mode.lower())
        given = first if len(first) > 1 else first[0]
        out, *last = run(inputs.bfloat16(), *sizes, given, *settings, *layout)
        out, last = out.to(self.dtype), tuple(value.to(self.dtype) for value in last)
        return PackedSequence(out, xs.batch_sizes) if isinstance(xs, PackedSequence) else out, last

    def panels(self, state: State) -> dict[str, Panel]:
        """Each state tensor of the first batch entry, a block for each layer; the cell of an LSTM has no bounds."""
        return {
            name: vector_panel(value[0], limits=(-1.0, 1.0) if name == "hidden" else None)
            for name, value in state.items()
        }


class TapedRecording(Recording):
    """A recording whose steps are taken without a graph, which is made from their tapes afterwards."""

    def __init__(self, memory: TorchRecurrent, state: State, room: int) -> None:
        self.network = memory
        self.layers = list(enumerate(memory.rnn.all_weights))
        self.first = [memory._layer(state, index) for index, _ in self.layers]
        self.tapes = [memory.tape(self.first[index], parameters, room) for index, parameters in self.layers]
        self.xs: list[Tensor] = []

    def step(self, x: Tensor, starts: Tensor | None) -> MemoryStep:  # type: ignore[override]
        self.xs.append(x)
        x = x.detach()
        taken = []
        for tape in self.tapes:
            taken.append(tape.step(x, starts))
            x = taken[-1][0]
        return MemoryStep(x, self.network._state(taken, 1), {})

    def unrolled(self) -> Unrolled:
        xs = torch.stack(self.xs)
        layers = []
        for tape, before, (_, parameters) in zip(self.tapes, self.first, self.layers, strict=True):
            layers.append(RecurrentSequence.apply(tape, xs, *before, *parameters))  # type: ignore[no-untyped-call]
            xs = layers[-1][0]
        return Unrolled(xs, self.network._state([tuple(part[-1] for part in layer) for layer in layers], 1), {})


class _Episodes(NamedTuple):
    """`starts` `[T, B]` as N episodes, longest first: the index arithmetic of a packed batch."""

    owner: Tensor
    """Batch entry of each episode, `[N]`."""
    fresh: Tensor
    """Whether it begins in the initial state, rather than in the state carried in, `[N]`."""
    source: Tensor
    """For each packed row, the row of `xs.flatten(0, 1)` it holds, `[T * B]`."""
    back: Tensor
    """The inverse of `source`."""
    last: Tensor
    """The last episode of each batch entry, `[B]`."""
    batch_sizes: Tensor
    """How many episodes are at least `p + 1` steps long, `[longest]`."""

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
        # packed rows run by position in the episode, and within one position from the longest episode down
        packed = (position * len(first) + rank[episode]).argsort()
        source = packed % length * batch_size + packed // length
        return cls(
            owner=(first // length)[order],
            fresh=starts.t().flatten()[first][order],
            source=source,
            back=source.argsort(),
            last=rank[episode.view(batch_size, length)[:, -1]],
            batch_sizes=position.bincount(),
        )
