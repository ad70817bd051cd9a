"""Stack RNN: a recurrent network with differentiable stacks."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from policies.memories.contract import Memory, MemoryStep, Panel, State
from policies.memories.registry import register_memory
from policies.memories.shared.arguments import at_least, one_of
from policies.memories.shared.pictures import vector_panel
from policies.memories.stack_rnn.fast import FastStackRNN

EMPTY = -1.0
"""Value of an empty cell."""
SHOWN = 40
"""Number of cells in a stack's picture, from the top."""


@register_memory("stack-rnn")
class StackRNN(Memory):
    """Stack RNN (Joulin and Mikolov, NIPS 2015), §3.2, with its extensions to several stacks and to NO-OP.

    The hidden layer reads the input, its last state and the top cells of every stack. The new content of a stack is a
    mixture, with weights a_t, of the results of pushing a number, popping one, and doing nothing (NO-OP):

        h_t = σ(U x_t + R h_{t-1} + P s^k_{t-1})
        a_t = softmax(A h_t)                                                                         for each stack
        s_t[0] = a_t[PUSH] σ(D h_t)     + a_t[POP] s_{t-1}[1]   (+ a_t[NO-OP] s_{t-1}[0])
        s_t[i] = a_t[PUSH] s_{t-1}[i-1] + a_t[POP] s_{t-1}[i+1] (+ a_t[NO-OP] s_{t-1}[i])

    State: `hidden` `[B, hidden_size]`, initially 0; `stacks` `[B, num_stacks, capacity]`, top first, -1 where empty.
    Output: `hidden`; the policy's heads replace the paper's y_t = softmax(V h_t).

    Args:
        input_size: F, width of the input.
        hidden_size: m, units of the hidden layer, which is also the output size.
        num_stacks: number of stacks, which interact only through the hidden layer.
        capacity: cells of a stack; entries pushed beyond the last cell are lost, and a pop moves -1 into the last cell.
        top_k: k, cells of each stack that the hidden layer reads.
        no_op: allow NO-OP besides PUSH and POP; without it, the top of a stack changes at every step.
        recurrent: False: R = 0, as in the released code's toy experiments: the stacks are the only memory.
        bias: biases in U, A and D. The paper has none: with its one-hot input, U can act as a bias.
        rounding: when a_t is rounded to one-hot at its maximum: "never"; "evaluation", while `training` is False, as in
            the paper's tests; "always". The gradient is that of the unrounded a_t. With "evaluation", use A2C: PPO acts
            with `training` False and replays with True.

    Raises:
        ValueError: a size is below 1, top_k is above capacity, or rounding is unknown.
    """

    fast_form = FastStackRNN

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 100,
        num_stacks: int = 10,
        capacity: int = 200,
        top_k: int = 2,
        no_op: bool = True,
        recurrent: bool = True,
        bias: bool = False,
        rounding: Literal["never", "evaluation", "always"] = "never",
    ) -> None:
        super().__init__()
        at_least(1, hidden_size=hidden_size, num_stacks=num_stacks)
        if not 1 <= top_k <= capacity:
            raise ValueError(f"top_k is {top_k}; it must be at least 1 and at most capacity, which is {capacity}")
        one_of("rounding", rounding, "never", "evaluation", "always")
        self.output_size = hidden_size
        self.num_stacks, self.capacity, self.top_k = num_stacks, capacity, top_k
        self.no_op, self.recurrent, self.rounding = no_op, recurrent, rounding

        self.input = nn.Linear(input_size, hidden_size, bias)  # U
        self.hidden = nn.Linear(hidden_size, hidden_size, bias=False) if recurrent else None  # R
        self.tops = nn.Linear(num_stacks * top_k, hidden_size, bias=False)  # P
        self.actions = nn.Linear(hidden_size, num_stacks * (3 if no_op else 2), bias)  # A
        self.pushed = nn.Linear(hidden_size, num_stacks, bias)  # D

    def initial_state(self, batch_size: int) -> State:
        zero = torch.zeros((), device=self.device, dtype=self.dtype)
        return {
            "hidden": zero.expand(batch_size, self.output_size),
            "stacks": (zero + EMPTY).expand(batch_size, self.num_stacks, self.capacity),
        }

    def forward(self, x: Tensor, state: State) -> MemoryStep:
        stacks = state["stacks"]
        total = self.input(x) + self.tops(stacks[:, :, : self.top_k].flatten(1))
        if self.hidden is not None:
            total = total + self.hidden(state["hidden"])
        hidden = total.sigmoid()

        push, pop, *no_op = self.act(hidden).unsqueeze(3).unbind(2)
        # elements 0 ... capacity - 1 are the stack after PUSH, elements 2 ... capacity + 1 after POP
        top = self.pushed(hidden).sigmoid().unsqueeze(2)
        extended = torch.cat([top, stacks, torch.full_like(top, EMPTY)], 2)
        new_stacks = push * extended[:, :, :-2] + pop * extended[:, :, 2:]
        if no_op:
            new_stacks = new_stacks + no_op[0] * stacks
        return MemoryStep(hidden, {"hidden": hidden, "stacks": new_stacks}, {})

    def act(self, hidden: Tensor) -> Tensor:
        """a_t: weights of PUSH, POP and, if allowed, NO-OP, `[B, num_stacks, 2 or 3]`."""
        actions: Tensor = self.actions(hidden).unflatten(1, (self.num_stacks, -1)).softmax(2)
        if self.rounds:
            rounded = torch.zeros_like(actions).scatter(2, actions.argmax(2, keepdim=True), 1.0)
            return rounded + (actions - actions.detach())
        return actions

    @property
    def rounds(self) -> bool:
        """Whether a_t is currently rounded."""
        return self.rounding == "always" or (self.rounding == "evaluation" and not self.training)

    def metrics(self, state: State) -> dict[str, Tensor]:
        """`push`, `pop`: weights of PUSH and POP in the last step, averaged over stacks."""
        push, pop, *_ = self.act(state["hidden"]).mean(1).unbind(1)
        return {"push": push, "pop": pop}

    def panels(self, state: State) -> dict[str, Panel]:
        """The upper cells of each stack, -1 (empty) to 1; the last step's stack actions; the hidden layer."""
        hidden = state["hidden"][:1].detach()
        names = "push, pop, no-op" if self.no_op else "push, pop"
        return {
            "stacks": Panel(
                state["stacks"][0, :, :SHOWN].t().detach(),
                "stack",
                "depth",
                (EMPTY, 1.0),
                about="each stack's cells from the top; −1: empty",
            ),
            "actions": Panel(
                self.act(hidden)[0].t().detach(), "stack", names, (0.0, 1.0), about="action weights of each stack"
            ),
            "hidden": vector_panel(hidden, limits=(0.0, 1.0), about="the hidden layer"),
        }
