"""The custom backward of `fast_steps.py`: a sequence of steps as one autograd function.

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
_sigmoid_backward, _softplus_backward = _aten.sigmoid_backward.grad_input, _aten.softplus_backward.grad_input


class StepSequence(torch.autograd.Function):
    """The steps of a `StepTape`, with a custom backward.

    Inputs: the tape with all its steps; the input's part of the gates, `[T, B, 4 L d_h]`; names and tensors of the
    `flattened` state before the first step; `Weights`.

    Outputs: hidden states and read vectors after each step, concatenated, `[T, B, L d_h + R W]`; the other parts of the
    state after the last step, in the order of the names.
    """

    @staticmethod
    def forward(
        ctx: Any, tape: StepTape, projected: Tensor, names: tuple[str, ...], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.tape, ctx.names = tape, names
        after = torch.stack([step.after["carried"] for step in tape.steps])
        return (after, *(tape.current[name].clone() for name in names if name != "carried"))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_after: Tensor, *d_ends: Tensor) -> tuple[Tensor | None, ...]:
        back, names = BackwardSteps(ctx.tape), [name for name in ctx.names if name != "carried"]
        d = {name: end.clone() for name, end in zip(names, d_ends, strict=True)} | {"carried": d_after[-1]}
        d |= {"unit": torch.zeros_like(d["memory"]), "memory": back.d_memory.copy_(d["memory"])}
        for t in reversed(range(len(d_after))):
            d = back.step(t, d, d_after[t - 1] if t else None)
        back.norm_backward(d["unit"], ctx.tape.first_unit, ctx.tape.first_norm)
        return (None, torch.stack(back.d_gates[::-1]), None, *(d[name] for name in ctx.names), *back.d_weights())


class BackwardSteps:
    """The backward pass of the steps of a tape, from the last to the first."""

    def __init__(self, tape: StepTape) -> None:
        self.tape, steps = tape, tape.steps
        batch, slots, word = tape.current["memory"].shape
        self.d_xi = torch.zeros_like(torch.stack([step.interface for step in steps]))
        self.d_gates: list[Tensor] = []
        self.d_words = self.d_xi.new_empty(batch, slots, 2 * word)
        """d_memory and -d_memory ∘ M, concatenated: per slot, the gradients of write vector and erase vector."""
        self.d_memory = self.d_words[:, :, :word]
        self.ones = self.d_xi.new_ones(batch, 1, slots)
        used, factors = torch.stack([step.used for step in steps]), torch.stack([step.factors for step in steps])
        each = factors.unbind(2)
        others = (reduce(torch.mul, each[:head] + each[head + 1 :], used) for head in range(tape.reads))
        self.d_freed = torch.stack([*others], 2).neg_()
        """∂u/∂(f w^r) of each head, `[T, B, R, N]`, without the factor d_usage."""
        self.descending = torch.stack([step.order for step in steps]).flip(2)
        strength, length = torch.stack([s.strength for s in steps]), torch.stack([s.length for s in steps])
        self.scale = (strength + 1 if tape.oneplus else strength).unsqueeze(3) / length

    def step(self, t: int, d: dict[str, Tensor], d_outputs: Tensor | None) -> dict[str, Tensor]:
        """The gradients of the state before step t, from those of the state after it.

        Args:
            t: the step.
            d: gradients of the state by the names of `flattened`, and "unit": of M[i] / |M[i]|; overwritten.
            d_outputs: gradient of the outputs of step t - 1, `[B, L d_h + R W]`; None: t = 0.
        """
        saved, parts, reads, d_xi = self.tape.steps[t], self.tape.parts, self.tape.reads, self.d_xi[t]
        xi, before, after, d_memory = saved.interface, saved.before, saved.after, self.d_memory
        d_keys, d_candidates = torch.empty_like(saved.keys), torch.empty_like(saved.read_candidates)

        # read vectors and read modes
        d_vectors = d["carried"][:, self.tape.hidden :].view(len(xi), reads, -1)
        d_read = torch.baddbmm(d["read_weights"], d_vectors, after["memory"].mT, out=d_candidates[1])
        d_memory.baddbmm_(after["read_weights"].mT, d_vectors)
        new_linkage, d_new_linkage = after["linkage"][:, 0], d["linkage"][:, 0]
        torch.bmm(d_read, new_linkage.mT, out=d_candidates[0])
        torch.bmm(d_read, new_linkage, out=d_candidates[2])
        backward, _, forward = saved.weighted_candidates
        d_new_linkage.baddbmm_(d_read.mT, forward).baddbmm_(backward.mT, d_read)
        d_new_linkage.diagonal(dim1=1, dim2=2).zero_()
        d_modes = (d_candidates * saved.read_candidates).sum(3).transpose(0, 1)
        d_xi[:, parts.read_candidates].view(len(xi), 3, reads).copy_(softmax_backward(d_modes, saved.modes, 1))
        d_candidates *= saved.modes.transpose(0, 1)[..., None]
        d_scores = softmax_backward(d_candidates[1], saved.read_candidates[1], 2)
        torch.bmm(d_scores, after["unit"], out=d_keys[:, :reads])
        self.norm_backward(d["unit"].baddbmm_(d_scores.mT, saved.keys[:, :reads]), after["unit"], saved.norm)

        # memory, links and precedence
        write, linkage, precedence = after["write_weights"], before["linkage"][:, 0], before["precedence"]
        torch.addcmul(self.tape.zero, d_memory, before["memory"], value=-1, out=self.d_words[:, :, self.tape.word :])
        torch.bmm(write, self.d_words, out=d_xi[:, None, parts.words])
        d_write = torch.baddbmm(d["write_weights"], xi[:, None, parts.words], self.d_words.mT)
        d_memory.addcmul_(d_memory * xi[:, None, parts.erase], write.mT, value=-1)
        products = d_new_linkage * linkage
        d_write.baddbmm_(precedence, d_new_linkage.mT)
        d_write.baddbmm_(self.ones, products, alpha=-1).baddbmm_(self.ones, products.mT, alpha=-1)
        d_write += d["precedence"] - torch.bmm(d["precedence"], precedence.mT)
        d_precedence = torch.baddbmm(saved.retained * d["precedence"], write, d_new_linkage)
        d_linkage = torch.addcmul(d_new_linkage, d_new_linkage, write.mT, value=-1)
        d_linkage.addcmul_(d_new_linkage, write, value=-1)

        # write location
        d_location_gates = torch.bmm(d_write, saved.locations.permute(1, 2, 0))
        torch.bmm(d_location_gates, xi[:, parts.allocate, None], out=d_xi[:, parts.write, None])
        torch.mul(d_location_gates[:, 0], xi[:, parts.write], out=d_xi[:, parts.allocate])
        d_allocation, d_content = saved.location_gates.t()[:, :, None] * d_write[:, 0]
        d_scores = softmax_backward(d_content, saved.locations[1], 1).unsqueeze(1)
        torch.bmm(d_scores, before["unit"], out=d_keys[:, reads:])
        d_unit = torch.bmm(d_scores.mT, saved.keys[:, reads:])

        # allocation and usage: u[i] is a factor of all slots later in the order
        order, usage = self.descending[t], after["usage"]
        sums = (d_allocation * saved.locations[0]).gather(1, order).cumsum(1)
        later = torch.zeros_like(usage).scatter_(1, order[:, 1:], sums[:, :-1])
        d_usage = d["usage"].addcdiv_(later, usage).addcmul_(d_allocation, saved.usage_products, value=-1)
        d_used, d_freed = d_usage * saved.retention, d_usage.unsqueeze(1) * self.d_freed[t]
        torch.sum(d_freed * before["read_weights"], 2, out=d_xi[:, parts.free])
        d_state = {"read_weights": (d_candidates[0] + d_candidates[2]).addcmul_(d_freed, xi[:, parts.free, None])}
        d_state["usage"] = torch.addcmul(d_used, d_used, before["write_weights"][:, 0], value=-1)
        d_written = (
            torch.zeros_like(usage)
            if self.tape.stop_usage_gradient
            else d_used.addcmul(d_used, before["usage"], value=-1)
        )
        d_state |= {"write_weights": d_written.unsqueeze(1), "linkage": d_linkage.unsqueeze(1)}
        d_state |= {"memory": d_memory, "precedence": d_precedence, "unit": d_unit}

        # keys and gates
        d_strengths = (d_keys * saved.unit_keys).sum(2)
        _softplus_backward(d_strengths, xi[:, parts.strengths], 1, 20, grad_input=d_xi[:, parts.strengths])
        d_keys.addcmul_(saved.unit_keys, d_strengths[:, :, None], value=-1)
        d_raw_keys = d_xi[:, parts.keys].view(len(xi), reads + 1, -1)
        torch.mul(d_keys, self.scale[t], out=d_raw_keys[:, :, :-1])
        _sigmoid_backward(d_xi[:, parts.gates], xi[:, parts.gates], grad_input=d_xi[:, parts.gates])
        return self.control(t, d, d_state, d_outputs)

    def norm_backward(self, d_unit: Tensor, unit: Tensor, norm: Tensor) -> None:
        """The backward pass of M[i] / |M[i]|: adds to d_memory; overwrites d_unit."""
        d_unit.addcmul_(unit, (d_unit * unit).sum(2, keepdim=True), value=-1)
        self.d_memory.addcdiv_(d_unit, norm)

    def control(
        self, t: int, d: dict[str, Tensor], d_state: dict[str, Tensor], d_outputs: Tensor | None
    ) -> dict[str, Tensor]:
        """The backward pass of the controller and of the resets before the step; arguments as in `step`."""
        tape, saved, one = self.tape, self.tape.steps[t], self.tape.layers == 1
        addend = d_outputs if one and saved.starts is None else None
        d_hidden = torch.addmm(d["carried"][:, : tape.hidden], self.d_xi[t], tape.weights.interface)
        d_hiddens = list(d_hidden.chunk(tape.layers, 1))
        d_gates, d_hiddens_in, d_reads = list[Tensor](), list[Tensor](), list[Tensor]()
        for layer in reversed(range(tape.layers)):
            (before, cell, activations), d_cell, d_h = saved.cells[layer], d[f"cell {layer}"], d_hiddens[layer]
            if tape.limit is not None:
                d_cell = _aten.hardtanh_backward(d_cell, cell, -tape.limit, tape.limit)
            if tape.clip_gradients is not None:
                d_h = d_h.clamp(-tape.clip_gradients, tape.clip_gradients)
            d_gate, d_state[f"cell {layer}"] = fused_cells.lstm_backward(d_h, d_cell, before, cell, activations)
            factors = d_gate, tape.weights.layers[layer]
            d_layer_input = torch.mm(*factors) if addend is None else torch.addmm(addend, *factors)
            size, read = d_h.shape[1], tape.reads * tape.word
            d_hidden_in, d_read, below = d_layer_input.tensor_split([size, size + read], 1)
            if layer:
                d_hiddens[layer - 1] = d_hiddens[layer - 1] + below
            for each, part in ((d_gates, d_gate), (d_hiddens_in, d_hidden_in), (d_reads, d_read)):
                each.insert(0, part)
        self.d_gates.append(d_gates[0] if one else torch.cat(d_gates, 1))
        d_state["carried"] = d_layer_input if one else torch.cat([*d_hiddens_in, reduce(torch.add, d_reads)], 1)
        if saved.starts is not None:
            d_state = masked(d_state, saved.starts)
            d_state["memory"] = self.d_memory.copy_(d_state["memory"])
        if d_outputs is not None and addend is None:
            d_state["carried"] = d_state["carried"] + d_outputs
        return d_state

    def d_weights(self) -> tuple[Tensor, ...]:
        """Gradients of `Weights`, each by one product over all steps."""
        tape, steps, d_xi = self.tape, self.tape.steps, self.d_xi.flatten(0, 1)
        hidden = torch.cat([step.after["carried"][:, : tape.hidden] for step in steps])
        d_gates = torch.cat(self.d_gates[::-1]).chunk(tape.layers, 1)
        layer_inputs = [torch.cat(each) for each in zip(*(step.layer_inputs for step in steps), strict=True)]
        d_layers = (d_gate.t() @ each for d_gate, each in zip(d_gates, layer_inputs, strict=True))
        return (d_xi.t() @ hidden, d_xi.sum(0), *d_layers)


def softmax_backward(d_out: Tensor, out: Tensor, dim: int) -> Tensor:
    d_state: Tensor = _aten._softmax_backward_data(d_out, out, dim, out.dtype)
    return d_state
