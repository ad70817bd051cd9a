"""AssociativeRecall: given one item of a list, recall the next."""

from __future__ import annotations

import torch
from gymnasium import spaces
from torch import Tensor

from envs.single_env import single as _single
from envs.tasks.sequence.base import BitTask, Sequences, check_range
from envs.tasks.sequence.priority_sort import as_maps, vector_bits
from envs.tensor_env import AnswerGroup


class AssociativeRecall(BitTask):
    """Remember a list of items; then one of them is shown again, and its successor must be reproduced.

    Description:
        K items are shown, each of `item_length` random bit vectors behind a delimiter. Then comes the query, one of the
        first K - 1 items between two delimiters of another kind, then nothing, while the item that followed it in the
        list must be reproduced. K and the query are drawn for each environment and episode.

        With `grid=True` an item is one 3x3 map of 9 bits, there are no delimiters, the query is marked, and the answer
        is due at once, while the query is seen.

    Observation: `Box(float32)` `[bits + 2]`: a vector, 1 in channel `bits` at an item's delimiter, 1 in channel
        `bits + 1` at a query's delimiters. With `grid=True` `[2, 3, 3]`: an item, and a map of ones beside the query.

    Action: `MultiBinary(bits)`; with `grid=True` `MultiBinary([3, 3])`. `info["target"]` (int8, shaped likewise) is the
        vector due, `info["weight"]` (float32 `[num_envs]`) 1 at the steps with an answer due, else 0.

    Reward: `weight * (share of right bits) / item_length`; a perfect episode returns 1.

    Termination: after `max_items * (item_length + 1) + 2 * item_length + 2` steps, with `grid=True` `max_items + 1`; a
        shorter list is over earlier, with weight 0 from then on.

    Metrics: `wrong_bits` (per sequence), `error` (% of bits), `sequence_error` (share of sequences with a wrong bit).

    Args:
        num_envs: number of environments.
        min_items: fewest items, at least 2; None: 2, or 10 with `grid=True`.
        max_items: most items; None: 6, or 10 with `grid=True`.
        item_length: vectors in an item, at least 1; None: 3, or 1 with `grid=True`, which allows no other value.
        bits: bits in a vector, at least 1; None: 6, or 9 with `grid=True`, which allows no other value.
        grid: observations and answers as 3x3 maps.
        device: torch device of all tensors.
        render_mode: None or "rgb_array".

    Scores:
        Without memory 0.5: the answer is independent of the observation when it is due. With memory 1, except for lists
        that contain the query twice among the items with a successor, so that the answer is ambiguous: 1 in 100,000 by
        default and 1.6 % of the 3x3 ones, whose best score is 0.996.

    Raises:
        ValueError: an argument is out of its range.

    Source: Graves, Wayne, Danihelka, "Neural Turing Machines" (arXiv 1410.5401, 2014), section 4.3: items of three
        6-bit vectors, 2 to 6 of them in training and up to 20 in tests. The maps are those of Huynh, Maire, Walter,
        "Multigrid Neural Memory" (ICML 2020), supplement B.2.1; ten items and a query among the first nine are the
        numbers of its MNIST variant (repository trihuynh88/multigrid_mem, `mnist_recall`).
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        min_items: int | None = None,
        max_items: int | None = None,
        item_length: int | None = None,
        bits: int | None = None,
        grid: bool = False,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ) -> None:
        bits = vector_bits(bits, 6, grid)
        min_items = (10 if grid else 2) if min_items is None else min_items
        max_items = (10 if grid else 6) if max_items is None else max_items
        item_length = (1 if grid else 3) if item_length is None else item_length
        check_range("items", min_items, max_items, least=2)
        if item_length < 1 or (grid and item_length != 1):
            raise ValueError(f"item_length is {item_length}, expected {'1 with grid=True' if grid else 'at least 1'}")
        super().__init__(
            num_envs,
            spaces.Box(0.0, 1.0, (2, 3, 3) if grid else (bits + 2,)),
            spaces.MultiBinary([3, 3] if grid else bits),
            max_items + 1 if grid else max_items * (item_length + 1) + 2 * item_length + 2,
            device,
            render_mode,
        )
        self.min_items, self.max_items = min_items, max_items
        self.item_length, self.bits, self.grid = item_length, bits, grid
        self._name_parts(*(("query",) if grid else ("item", "query")))

    def _sequences(self) -> Sequences:
        num_envs = self.num_envs
        count = self._integers(self.min_items, self.max_items, num_envs)
        vectors = self._bits(self.max_items * self.item_length, num_envs, self.bits)
        query = (self._uniform(num_envs) * (count - 1)).long()  # 0 to K - 2
        return self._maps(count, vectors, query) if self.grid else self._lists(count, vectors, query)

    def _lists(self, count: Tensor, vectors: Tensor, query: Tensor) -> Sequences:
        size, times = self.item_length, self._times
        item, place = times // (size + 1), times % (size + 1)  # place 0 is the delimiter's
        listed = item < count
        after = times - count * (size + 1)  # steps since the list: delimiter, query, delimiter, answer
        querying = (after >= 1) & (after <= size)
        seen = torch.where(listed, item * size + place - 1, query * size + after - 1)

        inputs = torch.zeros(self.length, self.num_envs, self.bits + 2, device=self.device)
        showing = (listed & (place > 0)) | querying
        inputs[..., : self.bits] = self._pick(vectors, seen) * showing[..., None]
        inputs[..., self.bits] = listed & (place == 0)
        inputs[..., self.bits + 1] = (after == 0) | (after == size + 1)

        due = after - size - 2
        asked = (due >= 0) & (due < size)
        targets = self._pick(vectors, (query + 1) * size + due) * asked[..., None]
        return Sequences(inputs, targets, asked.float())

    def _maps(self, count: Tensor, vectors: Tensor, query: Tensor) -> Sequences:
        times = self._times
        querying = times == count
        seen = torch.where(querying, query, times)
        bits = self._pick(vectors, seen) * (times <= count)[..., None]
        inputs = torch.cat([bits, querying[..., None]], 2).float()
        targets = self._pick(vectors, (query + 1).expand_as(seen)) * querying[..., None]
        return Sequences(as_maps(inputs), targets.view(*targets.shape[:2], 3, 3), querying.float())

    def answer_groups(self) -> dict[str, AnswerGroup]:
        """Also groups by the number of items in the list."""
        steps = self._asked().argmax(0)  # before the first answer: a list's items, and two delimiters around the query
        items = steps if self.grid else (steps - self.item_length - 2) // (self.item_length + 1)
        return {**super().answer_groups(), "items shown": AnswerGroup(items.expand(self.length, -1))}


single = _single(AssociativeRecall)
