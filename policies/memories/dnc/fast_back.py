"""The derivative of `fast_steps.py`: a sequence of steps as one autograd function with a custom backward.

Autograd would launch twice as many kernels. d_x is the gradient of x. Quantities of the same kind are computed
together, as in the forward pass.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from policies.memories.dnc.fast_steps import StepTape, masked
from policies.memories.shared import fused_cells

_aten = torch.ops.aten
_sigmoid_back, _softplus_back = _aten.sigmoid_backward.grad_input, _aten.softplus_backward.grad_input


class StepSequence(torch.autograd.Function):
    """The steps of a `StepTape`, with a custom backward.

    Inputs: the tape with all its steps; the input's part of the gates, `[T, B, 4 L d_h]`; names and tensors of
    `entering` before the first step; `Weights`.

    Outputs: hidden states and read vectors after each step, concatenated, `[T, B, L d_h + R W]`; the other parts of the
    state after the last step, in the order of the names.
    """

    @staticmethod
    def forward(
        ctx: Any, tape: StepTape, projected: Tensor, names: tuple[str, ...], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.tape, ctx.names = tape, names
        after = torch.stack([step.after["carried"] for step in tape.steps])
        return (after, *(tape.now[name].clone() for name in names if name != "carried"))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_after: Tensor, *d_ends: Tensor) -> tuple[Tensor | None, ...]:
        back, names = BackwardSteps(ctx.tape), [name for name in ctx.names if name != "carried"]
        d = {name: end.clone() for name, end in zip(names, d_ends, strict=True)} | {"carried": d_after[-1]}
        d |= {"unit": torch.zeros_like(d["memory"]), "memory": back.d_memory.copy_(d["memory"])}
        for t in reversed(range(len(d_after))):
            d = back.step(t, d, d_after[t - 1] if t else None)
        back.through_norm(d["unit"], ctx.tape.first_unit, ctx.tape.first_norm)
        return (None, torch.stack(back.d_gates[::-1]), None, *(d[name] for name in ctx.names), *back.d_weights())


class BackwardSteps:
    """The derivative of the steps of a tape, from the last to the first."""

    def __init__(self, tape: StepTape) -> None:
        self.tape, steps = tape, tape.steps
        batch, slots, word = tape.now["memory"].shape
        self.d_xi = torch.zeros_like(torch.stack([step.interface for step in steps]))
        self.d_gates: list[Tensor] = []
        self.d_words = self.d_xi.new_empty(batch, slots, 2 * word)
        """Gradients of the write vector and the erase vector: d_memory and -d_memory ∘ M, concatenated."""
        self.d_memory = self.d_words[:, :, :word]
        self.ones = self.d_xi.new_ones(batch, 1, slots)
        seen, factors = torch.stack([step.seen for step in steps]), torch.stack([step.factors for step in steps])
        each = factors.unbind(2)
        others = (reduce(torch.mul, each[:head] + each[head + 1 :], seen) for head in range(tape.reads))
        self.against = torch.stack([*others], 2).neg_()
        """Gradient of f w^r of each head, which comes from the usage."""
        self.backwards = torch.stack([step.order for step in steps]).flip(2)
        strength, length = torch.stack([s.strength for s in steps]), torch.stack([s.length for s in steps])
        self.scale = (strength + 1 if tape.oneplus else strength).unsqueeze(3) / length

    def step(self, t: int, d: dict[str, Tensor], d_before: Tensor | None) -> dict[str, Tensor]:
        """The gradients of the state before step t, from those of the state after it.

        Args:
            t: the step.
            d: gradients by the names of `entering`, and "unit", that of M[i] / |M[i]|; overwritten.
            d_before: gradient of the outputs of the previous step, `[B, L d_h + R W]`.
        """
        kept, parts, reads, d_xi = self.tape.steps[t], self.tape.parts, self.tape.reads, self.d_xi[t]
        xi, entered, after, d_memory = kept.interface, kept.entered, kept.after, self.d_memory
        d_keys, d_ways = torch.empty_like(kept.keys), torch.empty_like(kept.read_candidates)

        # read vectors and read modes
        d_vectors = d["carried"][:, self.tape.hidden :].view(len(xi), reads, -1)
        d_read = torch.baddbmm(d["read_weights"], d_vectors, after["memory"].mT, out=d_ways[1])
        d_memory.baddbmm_(after["read_weights"].mT, d_vectors)
        linked, d_linked = after["linkage"][:, 0], d["linkage"][:, 0]
        torch.bmm(d_read, linked.mT, out=d_ways[0])
        torch.bmm(d_read, linked, out=d_ways[2])
        d_linked.baddbmm_(d_read.mT, kept.weighed[2]).baddbmm_(kept.weighed[0].mT, d_read)
        d_linked.diagonal(dim1=1, dim2=2).zero_()
        d_modes = (d_ways * kept.read_candidates).sum(3).transpose(0, 1)
        d_xi[:, parts.read_candidates].view(len(xi), 3, reads).copy_(softmax_back(d_modes, kept.modes, 1))
        d_ways *= kept.modes.transpose(0, 1)[..., None]
        d_scores = softmax_back(d_ways[1], kept.read_candidates[1], 2)
        torch.bmm(d_scores, after["unit"], out=d_keys[:, :reads])
        self.through_norm(d["unit"].baddbmm_(d_scores.mT, kept.keys[:, :reads]), after["unit"], kept.norm)

        # memory, links and precedence
        write, linkage, precedence = after["write_weights"], entered["linkage"][:, 0], entered["precedence"]
        torch.addcmul(self.tape.zero, d_memory, entered["memory"], value=-1, out=self.d_words[:, :, self.tape.word :])
        torch.bmm(write, self.d_words, out=d_xi[:, None, parts.words])
        d_write = torch.baddbmm(d["write_weights"], xi[:, None, parts.words], self.d_words.mT)
        d_memory.addcmul_(d_memory * xi[:, None, parts.erase], write.mT, value=-1)
        moved = d_linked * linkage
        d_write.baddbmm_(precedence, d_linked.mT)
        d_write.baddbmm_(self.ones, moved, alpha=-1).baddbmm_(self.ones, moved.mT, alpha=-1)
        d_write += d["precedence"] - torch.bmm(d["precedence"], precedence.mT)
        d_precedence = torch.baddbmm(kept.keep * d["precedence"], write, d_linked)
        d_linkage = torch.addcmul(d_linked, d_linked, write.mT, value=-1).addcmul_(d_linked, write, value=-1)

        # where to write
        d_shares = torch.bmm(d_write, kept.places.permute(1, 2, 0))
        torch.bmm(d_shares, xi[:, parts.allocate, None], out=d_xi[:, parts.write, None])
        torch.mul(d_shares[:, 0], xi[:, parts.write], out=d_xi[:, parts.allocate])
        d_allocation, d_content = kept.shares.t()[:, :, None] * d_write[:, 0]
        d_scores = softmax_back(d_content, kept.places[1], 1).unsqueeze(1)
        torch.bmm(d_scores, entered["unit"], out=d_keys[:, reads:])
        d_unit = torch.bmm(d_scores.mT, kept.keys[:, reads:])

        # allocation: u[i] is a factor in every later slot of the order; and usage
        order, usage = self.backwards[t], after["usage"]
        sums = (d_allocation * kept.places[0]).gather(1, order).cumsum(1)
        later = torch.zeros_like(usage).scatter_(1, order[:, 1:], sums[:, :-1])
        d_usage = d["usage"].addcdiv_(later, usage).addcmul_(d_allocation, kept.before, value=-1)
        d_seen, against = d_usage * kept.retention, d_usage.unsqueeze(1) * self.against[t]
        torch.sum(against * entered["read_weights"], 2, out=d_xi[:, parts.free])
        found = {"read_weights": (d_ways[0] + d_ways[2]).addcmul_(against, xi[:, parts.free, None])}
        found["usage"] = torch.addcmul(d_seen, d_seen, entered["write_weights"][:, 0], value=-1)
        d_written = (
            torch.zeros_like(usage)
            if self.tape.stop_usage_gradient
            else d_seen.addcmul(d_seen, entered["usage"], value=-1)
        )
        found |= {"write_weights": d_written.unsqueeze(1), "linkage": d_linkage.unsqueeze(1)}
        found |= {"memory": d_memory, "precedence": d_precedence, "unit": d_unit}

        # keys and gates
        along = (d_keys * kept.unit_keys).sum(2)
        _softplus_back(along, xi[:, parts.strengths], 1, 20, grad_input=d_xi[:, parts.strengths])
        d_keys.addcmul_(kept.unit_keys, along[:, :, None], value=-1)
        whole = d_xi[:, parts.keys].view(len(xi), reads + 1, -1)
        torch.mul(d_keys, self.scale[t], out=whole[:, :, :-1])
        _sigmoid_back(d_xi[:, parts.gates], xi[:, parts.gates], grad_input=d_xi[:, parts.gates])
        return self.control(t, d, found, d_before)

    def through_norm(self, d_unit: Tensor, unit: Tensor, norm: Tensor) -> None:
        """Adds to d_memory; overwrites d_unit."""
        d_unit.addcmul_(unit, (d_unit * unit).sum(2, keepdim=True), value=-1)
        self.d_memory.addcdiv_(d_unit, norm)

    def control(
        self, t: int, d: dict[str, Tensor], found: dict[str, Tensor], d_before: Tensor | None
    ) -> dict[str, Tensor]:
        """The backward pass of the controller and of the resets before the step; arguments as in `step`."""
        tape, kept, one = self.tape, self.tape.steps[t], self.tape.layers == 1
        onto = d_before if one and kept.starts is None else None
        d_hidden = torch.addmm(d["carried"][:, : tape.hidden], self.d_xi[t], tape.weights.interface)
        d_hiddens = list(d_hidden.chunk(tape.layers, 1))
        d_gates, d_own, d_reads = list[Tensor](), list[Tensor](), list[Tensor]()
        for layer in reversed(range(tape.layers)):
            (before, cell, activations), d_cell, d_h = kept.cells[layer], d[f"cell {layer}"], d_hiddens[layer]
            if tape.limit is not None:
                d_cell = _aten.hardtanh_backward(d_cell, cell, -tape.limit, tape.limit)
            if tape.clip_gradients is not None:
                d_h = d_h.clamp(-tape.clip_gradients, tape.clip_gradients)
            d_gate, found[f"cell {layer}"] = fused_cells.lstm_backward(d_h, d_cell, before, cell, activations)
            into = d_gate, tape.weights.layers[layer]
            d_sees = torch.mm(*into) if onto is None else torch.addmm(onto, *into)
            size, read = d_h.shape[1], tape.reads * tape.word
            own, d_read, below = d_sees.tensor_split([size, size + read], 1)
            if layer:
                d_hiddens[layer - 1] = d_hiddens[layer - 1] + below
            for each, part in ((d_gates, d_gate), (d_own, own), (d_reads, d_read)):
                each.insert(0, part)
        self.d_gates.append(d_gates[0] if one else torch.cat(d_gates, 1))
        found["carried"] = d_sees if one else torch.cat([*d_own, reduce(torch.add, d_reads)], 1)
        if kept.starts is not None:
            found = masked(found, kept.starts)
            found["memory"] = self.d_memory.copy_(found["memory"])
        if d_before is not None and onto is None:
            found["carried"] = found["carried"] + d_before
        return found

    def d_weights(self) -> tuple[Tensor, ...]:
        """Gradients of `Weights`, each by one product over all steps."""
        tape, steps, d_xi = self.tape, self.tape.steps, self.d_xi.flatten(0, 1)
        hidden = torch.cat([step.after["carried"][:, : tape.hidden] for step in steps])
        d_gates = torch.cat(self.d_gates[::-1]).chunk(tape.layers, 1)
        layer_inputs = [torch.cat(each) for each in zip(*(step.layer_inputs for step in steps), strict=True)]
        d_layers = (d_gate.t() @ each for d_gate, each in zip(d_gates, layer_inputs, strict=True))
        return (d_xi.t() @ hidden, d_xi.sum(0), *d_layers)


def softmax_back(d_out: Tensor, out: Tensor, dim: int) -> Tensor:
    found: Tensor = _aten._softmax_backward_data(d_out, out, dim, out.dtype)
    return found
