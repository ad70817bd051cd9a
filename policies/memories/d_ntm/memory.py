"""Dynamic neural Turing machine: slots with learned addresses, with soft or discrete addressing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies.memories.contract import Memory, MemoryStep, Panel, State
from policies.memories.d_ntm.fast import FastDNTM
from policies.memories.registry import register_memory
from policies.memories.shared.addressing import next_memory, oneplus
from policies.memories.shared.arguments import at_least, one_of
from policies.memories.shared.noise import SEEDS, fingerprint, mix, next_seed
from policies.memories.shared.numbers import focus
from policies.memories.shared.pictures import read_panel, vector_panel, write_panel

NORM_EPS = 1e-6
"""Added to squared norms, so that the cosine with an empty slot is 0."""


class Addressed(NamedTuple):
    """The weights of a set of heads."""

    weights: Tensor
    """The weights for reading or writing, `[B, H, N + 1]`: the probabilities, or one-hot for a sampled slot."""
    probabilities: Tensor
    """w, `[B, H, N + 1]`; the last slot is the no-operation slot."""
    usage: Tensor
    """v after the step, `[B, H, N + 1]`."""


@register_memory("d-ntm")
class DNTM(Memory):
    """D-NTM (Gulcehre, Chandar, Cho and Bengio, 2016, arXiv:1607.00036; Neural Computation 30, 2018).

    A slot is [A ; C]: a trained address, equal in all episodes, and a content, to which write heads erase and add. A
    controller reads the input x and the last read-out m. Its hidden layer h gives each head a key k, a sharpness β and
    a weight γ for avoiding recently addressed slots:

        z(i) = β cos(k, [A(i) ; C(i)]),  β = softplus(u_β h + b) + 1
        w = softmax(z - γ v_{t-1}),  γ = σ(u_γ h + b),  v_t = 0.1 v_{t-1} + 0.9 z_t           no gradient through v
        C_t(i) = C_{t-1}(i) (1 - w(i) e) + w(i) c,  e = σ(W_e h + b),  c = ReLU(W h + α W_x x + b),  α a learned gate
        m = Σ_i w(i) [A(i) ; C_t(i)],  repeated `reading_steps` times, with a controller step on m in between

    Discrete addressing reads and writes one slot, sampled from w, or the most probable one if `deterministic` is set.
    docs/memories/d-ntm.md describes its training. The order within a step is that of the authors' code: controller,
    write, read.

    State: `contents` `[B, slots, word_size]`, initially 0; `read_value` m `[B, read_heads (address_size +
    word_size)]`; `hidden` `[B, num_layers, hidden_size]` of a GRU; `read_usage`, `write_usage` v and `read_weights`
    (of every reading step), `write_weights` w `[B, ..., slots + 1]`, or `[B, ..., slots]` without `no_operation`. With
    options also: `seed` of the samples `[B]` (discrete), `steps` `[B, 1]`, `mean_write` `[B, slots]`, `prediction`
    `[B, F]`.
    Losses, `[B]` each, if their coefficients are not 0: `entropy`, `consistency`, `prediction`.

    Args:
        input_size: F, width of the input.
        hidden_size: units per layer of the controller.
        output_size: width of the output, a linear map of h and m; None: hidden_size.
        controller: "gru", or "feedforward": tanh layers, so that the slots are the only memory.
        num_layers: layers of the controller.
        slots: N, without the no-operation slot.
        word_size, address_size: d_c and d_a, widths of the two parts of a slot.
        read_heads, write_heads: numbers of heads; the read-outs m are concatenated.
        reading_steps: K, reads per step.
        no_operation: add a slot with an address but no content: reading it gives zeros, writing to it has no effect.
        least_recently_used: subtract γ v, which avoids recently used slots.
        usage_decay: decay of v per step; the authors' code has 0.04.
        addressing: "soft" or "discrete".
        curriculum: use soft addressing with probability 1/√(1+t) at training step t, per step and environment.
        deterministic: use the most probable slot and no soft steps, for evaluation. The attribute of the same name may
            be changed.
        entropy_coef: λ_H, coefficient of `entropy`, minus the entropy of w summed over heads.
        consistency_coef: λ, coefficient of `consistency`: (1 - w^r · w̄^w)²; w̄^w: mean write weights so far.
        prediction_coef: coefficient of `prediction`, the error of predicting the next input from h and m.
        prediction: "squared" errors, or "bernoulli" as in the paper, for binary inputs; averaged over the input.
        draws_depend_on: whether samples depend on the "history" of inputs in the episode (see `noise`) or only on the
            "step": for a trained encoder, whose outputs change between acting and replay.
        draw_seed: seed of the sampled slots.

    Raises:
        ValueError: a size is below 1, address_size or a coefficient is below 0, usage_decay is not in 0..1, a choice is
            unknown, or `curriculum` is set with soft addressing.
    """

    fast_form = FastDNTM

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 100,
        output_size: int | None = None,
        controller: Literal["gru", "feedforward"] = "gru",
        num_layers: int = 1,
        slots: int = 64,
        word_size: int = 28,
        address_size: int = 20,
        read_heads: int = 1,
        write_heads: int = 1,
        reading_steps: int = 1,
        no_operation: bool = True,
        least_recently_used: bool = True,
        usage_decay: float = 0.1,
        addressing: Literal["soft", "discrete"] = "soft",
        curriculum: bool = False,
        deterministic: bool = False,
        entropy_coef: float = 0.0,
        consistency_coef: float = 0.0,
        prediction_coef: float = 0.0,
        prediction: Literal["squared", "bernoulli"] = "squared",
        draws_depend_on: Literal["history", "step"] = "history",
        draw_seed: int = 0,
    ) -> None:
        super().__init__()
        one_of("controller", controller, "gru", "feedforward")
        one_of("addressing", addressing, "soft", "discrete")
        one_of("prediction", prediction, "squared", "bernoulli")
        one_of("draws_depend_on", draws_depend_on, "history", "step")
        at_least(1, hidden_size=hidden_size, output_size=output_size, num_layers=num_layers, slots=slots)
        at_least(1, word_size=word_size, read_heads=read_heads, write_heads=write_heads, reading_steps=reading_steps)
        at_least(0, address_size=address_size, entropy_coef=entropy_coef)
        at_least(0, consistency_coef=consistency_coef, prediction_coef=prediction_coef)
        if not 0 <= usage_decay <= 1:
            raise ValueError(f"usage_decay is {usage_decay}; it must be in 0..1")
        if curriculum and addressing == "soft":
            raise ValueError("curriculum goes from soft to discrete addressing; it needs addressing='discrete'")
        self.output_size = output_size or hidden_size
        self.hidden_size, self.num_layers, self.recurrent = hidden_size, num_layers, controller == "gru"
        self.slots, self.word_size, self.places = slots, word_size, slots + no_operation
        self.read_heads, self.write_heads, self.reading_steps = read_heads, write_heads, reading_steps
        self.usage_decay, self.least_recently_used = usage_decay, least_recently_used
        self.discrete = addressing == "discrete"
        self.curriculum, self.deterministic = curriculum, deterministic
        self.entropy_coef, self.consistency_coef, self.prediction_coef = entropy_coef, consistency_coef, prediction_coef
        self.bernoulli, self.by_history = prediction == "bernoulli", draws_depend_on == "history"
        self.draw_seed = draw_seed % SEEDS

        width = word_size + address_size
        self.read_size = read_heads * width
        layer = nn.GRUCell if self.recurrent else nn.Linear
        inputs = [input_size + self.read_size] + [hidden_size] * (num_layers - 1)
        self.controller = nn.ModuleList(layer(size, hidden_size) for size in inputs)
        self.addresses = nn.Parameter(torch.randn(self.places, address_size) / max(1, address_size) ** 0.5)  # A
        self.head_sizes = [width, 1, 1] if least_recently_used else [width, 1]  # k, β, γ
        self.read_interface = nn.Linear(hidden_size, read_heads * sum(self.head_sizes))
        self.write_interface = nn.Linear(hidden_size, write_heads * sum(self.head_sizes))
        self.erase = nn.Linear(hidden_size, write_heads * word_size)
        self.candidate = nn.Linear(hidden_size, write_heads * word_size)  # W, b
        self.input_candidate = nn.Linear(input_size, write_heads * word_size, bias=False)  # W_x
        self.input_gate = nn.Linear(hidden_size + input_size, 1)  # α
        self.output = nn.Linear(hidden_size + self.read_size, self.output_size)
        self.predictor = nn.Linear(hidden_size + self.read_size, input_size) if prediction_coef else None
        if curriculum:
            self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
            # counts optimiser steps: each has one backward pass, which computes a gradient of the addresses
            self.addresses.register_post_accumulate_grad_hook(self._count)  # type: ignore[no-untyped-call]

    def _count(self, _: Tensor) -> None:
        self.get_buffer("updates").add_(1)

    def initial_state(self, batch_size: int) -> State:
        shapes: dict[str, tuple[int, ...]] = {
            "contents": (self.slots, self.word_size),
            "read_value": (self.read_size,),
            "write_weights": (self.write_heads, self.places),
            "read_weights": (self.reading_steps * self.read_heads, self.places),
        }
        if self.recurrent:
            shapes["hidden"] = (self.num_layers, self.hidden_size)
        if self.least_recently_used:
            shapes |= {"write_usage": (self.write_heads, self.places), "read_usage": (self.read_heads, self.places)}
        if self.discrete:
            shapes["seed"] = ()
        if self.consistency_coef:
            shapes["mean_write"] = (self.slots,)
        if self.predictor is not None:
            shapes["prediction"] = (self.predictor.out_features,)
        if self.consistency_coef or self.predictor is not None:
            shapes["steps"] = (1,)
        begin = {"seed": float(self.draw_seed)}
        return {
            name: self.addresses.new_full((1, *shape), begin.get(name, 0.0)).expand(batch_size, *shape)
            for name, shape in shapes.items()
        }

    def forward(self, x: Tensor, state: State) -> MemoryStep:
        new_state: State = {}
        draws: Sequence[Tensor | None] = [None] * (1 + self.reading_steps)
        soft = None
        if self.discrete:
            new_state["seed"] = next_seed(state["seed"], fingerprint(x if self.by_history else x[:, :0]))
            sizes = [self.write_heads * self.places] + [self.read_heads * self.places] * self.reading_steps + [1]
            *draws, curriculum = torch.split(uniform(new_state["seed"], sum(sizes)), sizes, 1)
            if self.curriculum and not self.deterministic:
                soft = curriculum < (1 + self.get_buffer("updates")).to(x.dtype).rsqrt()

        m = state["read_value"]
        hidden, layers = self._control(x, m, state.get("hidden"))
        write = self.address(self.write_interface(hidden), state["contents"], state.get("write_usage"), draws[0], soft)
        contents = self.write(x, hidden, state["contents"], write.weights)

        reads: list[Addressed] = []
        for draw in draws[1:]:
            if reads:
                hidden, layers = self._control(x, m, layers)
            # all reading steps avoid the slots read in the previous step, as in the authors' code
            read = self.address(self.read_interface(hidden), contents, state.get("read_usage"), draw, soft)
            slots = torch.cat([self.addresses[: self.slots].expand(x.shape[0], -1, -1), contents], 2)
            m = (read.weights[..., : self.slots] @ slots).flatten(1)
            reads.append(read)

        new_state |= {"contents": contents, "read_value": m, "write_weights": write.probabilities}
        new_state["read_weights"] = torch.cat([read.probabilities for read in reads], 1)
        if layers is not None:
            new_state["hidden"] = layers
        if self.least_recently_used:
            new_state |= {"write_usage": write.usage, "read_usage": reads[-1].usage}
        features = torch.cat([hidden, m], 1)
        losses = self._losses(x, features, state, new_state, write.weights)
        return MemoryStep(self.output(features), new_state, losses)

    def address(
        self, parameters: Tensor, contents: Tensor, usage: Tensor | None, draw: Tensor | None, soft: Tensor | None
    ) -> Addressed:
        """Computes the weights of heads.

        Args:
            parameters: k, β and γ of the heads before their activations, `[B, H (d_a + d_c + 2)]`.
            contents: C, `[B, N, d_c]`.
            usage: v_{t-1}, `[B, H, N + 1]`; None: no γ v is subtracted.
            draw: uniform random numbers, `[B, H (N + 1)]`; None: soft addressing.
            soft: bool `[B, 1]`, true where the curriculum uses soft addressing; None: all false.
        """
        parameters = parameters.view(contents.shape[0], -1, sum(self.head_sizes))
        key, sharpness, *avoidance = torch.split(parameters, self.head_sizes, 2)
        contents = F.pad(contents, (0, 0, 0, self.places - self.slots))
        slots = torch.cat([self.addresses.expand(contents.shape[0], -1, -1), contents], 2)
        z = oneplus(sharpness) * (unit(key) @ unit(slots).transpose(1, 2))
        logits = z
        if usage is None:
            usage = z
        else:
            usage = usage.detach()
            logits = z - avoidance[0].sigmoid() * usage
            usage = self.usage_decay * usage + (1 - self.usage_decay) * z.detach()
        log_probabilities = logits.log_softmax(2)
        weights = probabilities = log_probabilities.exp()
        if draw is not None:
            scores = log_probabilities.detach()
            if not self.deterministic:
                scores = scores - (-draw.log()).log().view_as(scores)  # Gumbel noise: the argmax is a sample
            index = scores.argmax(2, keepdim=True)
            weights = torch.zeros_like(probabilities).scatter(2, index, 1.0)
            weights = weights + (probabilities - probabilities.detach())  # straight-through
            if soft is not None:
                weights = torch.where(soft[..., None], probabilities, weights)
        return Addressed(weights, probabilities, usage)

    def write(self, x: Tensor, hidden: Tensor, contents: Tensor, weights: Tensor) -> Tensor:
        """C_t from C_{t-1} `[B, N, d_c]`, with write weights w `[B, H, N + 1]`."""
        shape = (self.write_heads, self.word_size)
        gate = self.input_gate(torch.cat([hidden, x], 1)).sigmoid()  # α
        candidate = F.relu(self.candidate(hidden) + gate * self.input_candidate(x))
        erase = self.erase(hidden).sigmoid()
        weights = weights[..., : self.slots]
        return next_memory(contents, weights, erase.view(-1, *shape), candidate.view(-1, *shape))

    def _control(self, x: Tensor, read_value: Tensor, layers: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The last hidden layer `[B, d_h]`; for a GRU also all layers `[B, layers, d_h]`, for the next step."""
        hidden = torch.cat([x, read_value], 1)
        if layers is None:
            for layer in self.controller:
                hidden = layer(hidden).tanh()
            return hidden, None
        new_layers = []
        for layer, before in zip(self.controller, layers.unbind(1), strict=True):
            hidden = layer(hidden, before)
            new_layers.append(hidden)
        return hidden, torch.stack(new_layers, 1)

    def _losses(self, x: Tensor, features: Tensor, state: State, new_state: State, written: Tensor) -> State:
        """The losses, `[B]` each, times their coefficients; adds the state that they need to `new_state`."""
        losses: State = {}
        if self.entropy_coef:
            w = torch.cat([new_state["write_weights"], new_state["read_weights"]], 1)
            losses["entropy"] = self.entropy_coef * torch.xlogy(w, w).sum((1, 2))
        if "steps" in state:
            new_state["steps"] = state["steps"] + 1
        if self.consistency_coef:
            write_weights = written[..., : self.slots].mean(1)
            mean = (state["mean_write"] + (write_weights - state["mean_write"]) / new_state["steps"]).detach()
            new_state["mean_write"] = mean
            read = new_state["read_weights"][..., : self.slots].mean(1)
            losses["consistency"] = self.consistency_coef * (1 - (read * mean).sum(1)).square()
        if self.predictor is not None:
            error = F.binary_cross_entropy_with_logits if self.bernoulli else F.mse_loss
            unit_errors = error(state["prediction"], x.detach(), reduction="none")
            predicted = (state["steps"] > 0).squeeze(1)  # the first input is not predicted
            losses["prediction"] = self.prediction_coef * unit_errors.mean(1) * predicted
            new_state["prediction"] = self.predictor(features)
        return losses

    def metrics(self, state: State) -> dict[str, Tensor]:
        """`read_focus`, `write_focus`: `focus` of the read and the write weights."""
        return {"read_focus": focus(state["read_weights"]), "write_focus": focus(state["write_weights"])}

    def panels(self, state: State) -> dict[str, Panel]:
        """The contents, the heads' weights, and the read-out. The last slot is the no-operation slot."""
        first = {name: value[0].detach() for name, value in state.items()}
        return {
            "contents": Panel(first["contents"].T, "slot", "number in the content", about="what each slot holds"),
            "write_weights": write_panel(first["write_weights"]),
            "read_weights": read_panel(first["read_weights"], "reading step and head"),
            "read_value": vector_panel(
                first["read_value"][None], unit="number", limits=None, about="output of the read"
            ),
        }


def unit(words: Tensor) -> Tensor:
    """Words `[..., W]`, each divided by its norm."""
    return words * (words.square().sum(-1, keepdim=True) + NORM_EPS).rsqrt()


def uniform(seed: Tensor, count: int) -> Tensor:
    """Random numbers in the open interval (0, 1), `[B, count]`, a function of `seed` `[B]` from `noise.next_seed`."""
    indices = torch.arange(count, device=seed.device) * 0x9E3779B1
    bits = mix(mix(seed.detach().to(torch.int64) + 0x51ED270B)[:, None] + indices)
    # 23 bits, plus a half: the largest is 1 - 2^-24, the largest number below 1 in single precision
    return ((bits >> 9).to(seed.dtype) + 0.5) / 2**23
