"""PrioritySort: reproduce bit vectors in the order of their priorities."""

from __future__ import annotations

from itertools import pairwise

import torch
from gymnasium import spaces

from envs.single_env import single as _single
from envs.tasks.sequence.base import BitTask, Sequences, check_range
from envs.tensor_env import AnswerGroup

_GAPS = (0.002, 0.005, 0.01, 0.02, 0.05)


class PrioritySort(BitTask):
    """Remember bit vectors and their priorities; then reproduce those with the highest priorities, highest first.

    Description:
        L random vectors are shown, each with a priority drawn from U[-1, 1]; then nothing, while the first
        `min(outputs, L)` of them in descending order of priority must be reproduced. L is drawn for each environment
        and episode from `min_length` to `max_length`. The end of the input is not marked: the priority becomes 0.

    Observation: `Box(float32)` `[bits + 1]`: a vector and its priority. With `grid=True` `[2, 3, 3]`: the vector's 9
        bits as a map, and a second map filled with the priority.

    Action: `MultiBinary(bits)`; with `grid=True` `MultiBinary([3, 3])`. `info["target"]` (int8, shaped likewise) is the
        vector due, `info["weight"]` (float32 `[num_envs]`) 1 at the steps with an answer due, else 0.

    Reward: `weight * (share of right bits) / min(outputs, L)`; a perfect episode returns 1.

    Termination: after `max_length + min(outputs, max_length)` steps; a shorter sequence is over earlier, with weight 0
        from then on.

    Metrics: `wrong_bits` (per sequence), `error` (% of bits), `sequence_error` (share of sequences with a wrong bit).

    Args:
        num_envs: number of environments.
        min_length: fewest vectors, at least 1.
        max_length: most vectors.
        outputs: maximum number of vectors to reproduce; at least 1.
        bits: bits in a vector, at least 1; None: 8, or 9 with `grid=True`, which allows no other value.
        grid: observations and answers as 3x3 maps.
        device: torch device of all tensors.
        render_mode: None or "rgb_array".

    Scores:
        Without memory 0.5: the answers are independent of what is seen when they are due. With memory 1.

    Raises:
        ValueError: an argument is out of its range.

    Source: Graves, Wayne, Danihelka, "Neural Turing Machines" (arXiv 1410.5401, 2014), section 4.5: 20 vectors, of
        which 16 must be reproduced; 8 bits as in Munkhdalai et al., "Metalearned Neural Memory" (NeurIPS 2019),
        appendix. The maps are those of Huynh, Maire, Walter, "Multigrid Neural Memory" (ICML 2020), supplement B.2.1,
        whose text gives no number of vectors; `outputs=20` sorts them all.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        min_length: int = 20,
        max_length: int = 20,
        outputs: int = 16,
        bits: int | None = None,
        grid: bool = False,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ) -> None:
        check_range("length", min_length, max_length)
        if outputs < 1:
            raise ValueError(f"outputs is {outputs}, expected at least 1")
        bits = vector_bits(bits, 8, grid)
        super().__init__(
            num_envs,
            spaces.Box(-1.0, 1.0, (2, 3, 3) if grid else (bits + 1,)),
            spaces.MultiBinary([3, 3] if grid else bits),
            max_length + min(outputs, max_length),
            device,
            render_mode,
        )
        self.min_length, self.max_length, self.outputs = min_length, max_length, outputs
        self.bits, self.grid = bits, grid
        self._name_parts("priority")

    def _sequences(self) -> Sequences:
        num_envs, most = self.num_envs, self.max_length
        length = self._integers(self.min_length, most, num_envs)
        vectors = self._bits(most, num_envs, self.bits)
        priority = 2.0 * self._uniform(most, num_envs) - 1.0
        shown = self._times[:most] < length
        order = priority.masked_fill(~shown, -2.0).argsort(0, descending=True)

        inputs = torch.zeros(self.length, num_envs, self.bits + 1, device=self.device)
        inputs[:most, :, :-1] = vectors * shown[..., None]
        inputs[:most, :, -1] = priority * shown

        due = self._times - length
        asked = (due >= 0) & (due < length.clamp(max=self.outputs))
        targets = self._pick(vectors, self._pick(order, due)) * asked[..., None]
        if self.grid:
            inputs, targets = as_maps(inputs), targets.view(*targets.shape[:2], 3, 3)
        return Sequences(inputs, targets, asked.float())

    def answer_groups(self) -> dict[str, AnswerGroup]:
        """Also groups by the distance to the nearest other priority."""
        most, num_envs = self.max_length, self.num_envs
        length = self._asked().argmax(0)  # the first answer is due when all has been shown
        priority = (self.inputs[:, :, 1, 0, 0] if self.grid else self.inputs[..., -1])[:most]
        descending = priority.masked_fill(self._times[:most] >= length, -torch.inf).sort(0, descending=True).values
        beyond = torch.full((1, num_envs), torch.inf, device=self.device)
        # infinite at vectors that are not shown: nan is inf - inf
        between = (descending[:-1] - descending[1:]).nan_to_num(torch.inf, torch.inf)
        gaps = torch.cat([beyond, between, beyond])
        nearest = torch.minimum(gaps[:-1], gaps[1:])
        which = torch.bucketize(nearest, torch.tensor(_GAPS, device=self.device), right=True)
        labels = (f"below {_GAPS[0]}", *(f"{a} to {b}" for a, b in pairwise(_GAPS)), f"{_GAPS[-1]} and more")
        due = self._pick(which, self._times - length)
        return {**super().answer_groups(), "distance to the nearest priority": AnswerGroup(due, labels)}


def vector_bits(bits: int | None, default: int, grid: bool) -> int:
    """The number of bits in a vector, or on a 3x3 map.

    Raises:
        ValueError: it is below 1, or not 9 for a map.
    """
    bits = (9 if grid else default) if bits is None else bits
    if grid and bits != 9:
        raise ValueError(f"bits is {bits}, expected 9 with grid=True: a 3x3 map")
    if bits < 1:
        raise ValueError(f"bits is {bits}, expected at least 1")
    return bits


def as_maps(inputs: torch.Tensor) -> torch.Tensor:
    """Nine bits and further numbers `[T, N, 9 + n]` as maps `[T, N, 1 + n, 3, 3]`: each number fills its own map."""
    bits = inputs[..., :9].reshape(*inputs.shape[:2], 1, 3, 3)
    return torch.cat([bits, inputs[..., 9:, None, None].expand(-1, -1, -1, 3, 3)], 2)


single = _single(PrioritySort)
