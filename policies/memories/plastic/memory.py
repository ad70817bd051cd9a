"""Differentiable plasticity: a recurrent network whose connections change with activity."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from policies.memories.contract import Memory, MemoryStep, Panel, State
from policies.memories.plastic.fast_sequence import FastPlastic
from policies.memories.plastic.rules import advance, plastic_input
from policies.memories.registry import register_memory
from policies.memories.shared.arguments import at_least, one_of
from policies.memories.shared.numbers import rms, saturation
from policies.memories.shared.pictures import vector_panel


class PlasticNetwork(Memory):
    """Differentiable plasticity (Miconi, Clune and Stanley, ICML 2018), §2: base class of both forms.

    Each recurrent connection has a trained weight w and a Hebbian trace. The trace is zero at the start of an episode
    and changes with the activity of its two units at every step. α is the strength of the trace and η its learning
    rate; both are trained.

        h_t[j] = tanh( (W_in x_t + b)[j] + Σ_i (w[i,j] + α[i,j] Hebb_{t-1}[i,j]) h_{t-1}[i] )                    (1)
        "hebb":    Hebb_t[i,j] = η h_{t-1}[i] h_t[j] + (1 - η) Hebb_{t-1}[i,j]                                  (2)
        "oja":     Hebb_t[i,j] = Hebb_{t-1}[i,j] + η h_t[j] (h_{t-1}[i] - h_t[j] Hebb_{t-1}[i,j])               (3)
        "clipped": Hebb_t[i,j] = clip(Hebb_{t-1}[i,j] + η h_{t-1}[i] h_t[j], ±clip)

    Positive weights that sum to more than 1 saturate all units within a few steps, and an update of Adam can move η
    below zero, where traces grow without bound (docs/memories/plastic.md). With parametrization="scaled"

        α = strength / hidden_size      η = σ(rate)      w: 0.9 times a random orthogonal matrix

    with `strength` and `rate` trained; "paper" trains α and η themselves.

    State: `hidden` `[B, hidden_size]`; `hebb` `[B, hidden_size, hidden_size]`, from unit i (rows) to unit j (columns);
    both zero at the start of an episode. Output: `hidden`.

    Args:
        input_size: F, width of the input.
        hidden_size: n, units, which is also the output size.
        rule: update of the trace. "oja", eq. (3), is the default of the released maze code; "hebb" is eq. (2);
            "clipped", from the authors' later batched code, has no decay, but bounds.
        clip: bound of the rule "clipped".
        init_scale: only for "paper": w and α per connection are initialised uniformly in 0..init_scale, a shared α to
            init_scale. 0.01 suits up to 200 units, whose weights then sum to about 1; a smaller network needs more.
        init_eta: η at the start of training, between 0 and 1; with "paper" also 0 or 1, and any number for "clipped".
        parametrization: of α, η and the initial w: "scaled", as above, or "paper". None: "paper" for `plastic`
            and "scaled" for `homo-plastic`, which saturates otherwise.
        init_strength: only for "scaled": mean of the initial strengths, which are uniform in 0..2 init_strength per
            connection; a shared one is init_strength.

    Raises:
        ValueError: hidden_size is below 1, init_scale is below 0, clip is not above 0, init_eta is out of its range, or
            a choice is unknown.
    """

    fast_form = FastPlastic
    shared_alpha: ClassVar[bool]
    """Whether all connections share one α."""
    default_parametrization: ClassVar[Literal["scaled", "paper"]]
    """The default parametrization."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 200,
        rule: Literal["oja", "hebb", "clipped"] = "oja",
        clip: float = 1.0,
        init_scale: float = 0.01,
        init_eta: float = 0.01,
        parametrization: Literal["scaled", "paper"] | None = None,
        init_strength: float = 0.3,
    ) -> None:
        super().__init__()
        at_least(1, hidden_size=hidden_size)
        one_of("rule", rule, "oja", "hebb", "clipped")
        at_least(0, init_scale=init_scale)
        parametrization = self.default_parametrization if parametrization is None else parametrization
        one_of("parametrization", parametrization, "scaled", "paper")
        if parametrization == "scaled" and not 0 < init_eta < 1:
            raise ValueError(f"init_eta is {init_eta}; with parametrization='scaled' it must be between 0 and 1")
        if rule != "clipped" and not 0 <= init_eta <= 1:  # else the decay factors of (2) and (3) leave 0..1
            raise ValueError(f"init_eta is {init_eta}; with rule={rule!r} it must be from 0 to 1")
        if clip <= 0:
            raise ValueError(f"clip is {clip}; it must be more than 0")
        self.output_size = hidden_size
        self.clip = clip if rule == "clipped" else None
        self.rule = rule
        self.input = nn.Linear(input_size, hidden_size)
        self.scaled = parametrization == "scaled"
        square = (hidden_size, hidden_size)
        if self.scaled:
            self.w = nn.Parameter(nn.init.orthogonal_(torch.empty(square), gain=0.9))
            shared, each = torch.full((1, 1), float(init_strength)), 2 * init_strength
            self.strength = nn.Parameter(shared if self.shared_alpha else each * torch.rand(square))
            self.rate = nn.Parameter(torch.full((1,), init_eta).logit())
        else:
            self.w = nn.Parameter(init_scale * torch.rand(square))
            shared = torch.full((1, 1), float(init_scale))
            self.alpha = nn.Parameter(shared if self.shared_alpha else init_scale * torch.rand(square))
            self.eta = nn.Parameter(torch.full((1,), float(init_eta)))

    def plasticity(self) -> tuple[Tensor, Tensor]:
        """α, `[n, n]` or `[1, 1]`, and η, `[1]`."""
        if self.scaled:
            return self.strength / self.output_size, self.rate.sigmoid()
        return self.alpha, self.eta

    def initial_state(self, batch_size: int) -> State:
        n = self.output_size
        return self.zeros_state(batch_size, {"hidden": (n,), "hebb": (n, n)})

    def forward(self, x: Tensor, state: State) -> MemoryStep:
        before, hebb = state["hidden"], state["hebb"]
        alpha, eta = self.plasticity()
        fixed = torch.addmm(self.input(x), before, self.w)
        hidden = torch.tanh(fixed + plastic_input(before, hebb, alpha))  # (1)
        new_hebb = advance(hebb, before, hidden, eta, self.rule, self.clip)  # (2), (3)
        return MemoryStep(hidden, {"hidden": hidden, "hebb": new_hebb}, {})

    def metrics(self, state: State) -> dict[str, Tensor]:
        """`trace_rms`: root mean square of the traces; `saturation`: share of saturated units."""
        return {"trace_rms": rms(state["hebb"]), "saturation": saturation(state["hidden"])}

    def panels(self, state: State) -> dict[str, Panel]:
        """The trace of each connection, and the activations."""
        return {
            "hebb": Panel(state["hebb"][0].detach(), "to unit", "from unit", about="trace of each connection"),
            "hidden": vector_panel(state["hidden"][:1], about="activations of the units"),
        }


@register_memory("plastic")
class Plastic(PlasticNetwork):
    """Differentiable plasticity (Miconi et al., ICML 2018): each connection has its own α.

    Arguments: see `PlasticNetwork`.
    """

    shared_alpha = False
    default_parametrization = "paper"


@register_memory("homo-plastic")
class HomogeneousPlastic(PlasticNetwork):
    """Homogeneous plasticity (Miconi et al., ICML 2018): all connections share one α.

    Arguments: see `PlasticNetwork`.
    """

    shared_alpha = True
    default_parametrization = "scaled"
