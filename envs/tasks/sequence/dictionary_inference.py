"""DictionaryInference: learn a secret alphabet from examples, then translate."""

from __future__ import annotations

import torch

from envs.single_env import single as _single
from envs.tasks.sequence.base import Sequences, SymbolTask
from envs.tensor_env import AnswerGroup

_HALF = 13  # letters in a vocabulary
_DRAWS = 4  # queries drawn, of which the first new one is taken


class DictionaryInference(SymbolTask):
    """Read k words with their translations letter by letter, then translate a new word.

    Description:
        Each episode divides the 26 letters at random into 13 source and 13 target letters and maps one set onto the
        other. The support is k words of l source letters, drawn with replacement, each with its translation. Then comes
        a word of letters that the support has shown, and its translation must be reproduced at the placeholders behind
        it.

        With k = 2 and l = 3 an episode reads `abc.def.,gha.kld.;cab.___`. The four special symbols are `.` the end of a
        sequence, `,` between two examples, `;` the end of the support and `_` a placeholder.

    Observation: `Box(float32)` `[30]`: a letter or a special symbol in the order above, one-hot.

    Action: `Discrete(26)`: a letter. `info["target"]` (int64 `[num_envs]`) is the letter due, `info["weight"]` (float32
        `[num_envs]`) 1 at the placeholders, else 0.

    Reward: `weight * [action == target] / l`; a perfect episode returns 1.

    Termination: after `k * (2 * l + 3) + 2 * l + 1` steps.

    Metrics: `error` (% of letters), `sequence_error` (share of words with a wrong letter).

    Args:
        num_envs: number of environments.
        k: examples in the support, at least 1.
        l: letters in a word, at least 1.
        device: torch device of all tensors.
        render_mode: None or "rgb_array".

    Scores:
        Without memory 1 / 26 = 0.038: all placeholders look alike. With memory 1. Knowing only which letters are
        targets gives 1 / 13.

    Raises:
        ValueError: `k` or `l` is below 1.

    Source: Munkhdalai, Sordoni, Wang, Trischler, "Metalearned Neural Memory" (NeurIPS 2019), section 4.1 and appendix:
        (k, l) is (4, 1), (8, 4), (12, 8) and (16, 12). The paper names the four symbols but not their order, which is
        ours. Its query is a word that the support does not have: here the first new one of four drawn. Words of one
        letter are never new; longer ones of the paper's sizes fail to be in less than 1 of 10^12 episodes.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        k: int = 4,
        l: int = 1,  # noqa: E741 (the paper's name)
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ) -> None:
        if k < 1 or l < 1:
            raise ValueError(f"k is {k}, l {l}; expected at least 1")
        alphabet = "abcdefghijklmnopqrstuvwxyz.,;_"
        super().__init__(num_envs, alphabet, 2 * _HALF, k * (2 * l + 3) + 2 * l + 1, device, render_mode)
        self.k, self.l = k, l

    def _sequences(self) -> Sequences:
        num_envs, k, l = self.num_envs, self.k, self.l  # noqa: E741
        end, separator, support_end, placeholder = range(26, 30)
        letters = self._uniform(num_envs, 2 * _HALF).argsort(1)
        source, target = letters[:, :_HALF], letters[:, _HALF:]

        # Words as numbers of dictionary entries, 0 to 12.
        words = self._integers(0, _HALF - 1, num_envs, k, l)
        seen = torch.zeros(num_envs, _HALF, dtype=torch.bool, device=self.device).scatter_(1, words.flatten(1), True)
        chances = self._uniform(num_envs, _DRAWS, l, _HALF).masked_fill(~seen[:, None, None], -1.0)
        drawn = chances.argmax(3)  # [N, draws, l], each entry one of those seen, all equally likely
        new = (drawn[:, :, None] != words[:, None]).any(3).all(2)  # [N, draws]
        query = drawn[self._env_indices, new.long().argmax(1)]  # [N, l]

        def spelled(vocabulary: torch.Tensor, entries: torch.Tensor) -> torch.Tensor:
            return vocabulary.gather(1, entries.flatten(1)).view_as(entries)

        def filled(symbol: int, *shape: int) -> torch.Tensor:
            return torch.full((num_envs, *shape), symbol, device=self.device)

        stop, between = filled(end, k, 1), filled(separator, k, 1)
        between[:, -1] = support_end
        support = torch.cat([spelled(source, words), stop, spelled(target, words), stop, between], 2)
        asking = torch.cat([spelled(source, query), filled(end, 1), filled(placeholder, l)], 1)
        inputs = torch.cat([support.flatten(1), asking], 1).T.contiguous()

        targets = torch.zeros_like(inputs)
        targets[-l:] = spelled(target, query).T
        asked = (self._times >= self.length - l).expand_as(inputs)
        return Sequences(inputs, targets, asked.float())

    def answer_groups(self) -> dict[str, AnswerGroup]:
        """Also groups by how often the support shows the letter, and by the last support word that contains it."""
        k, l = self.k, self.l  # noqa: E741
        source = self.inputs[: k * (2 * l + 3)].view(k, 2 * l + 3, self.num_envs)[:, :l]  # [k, l, N]
        query = self.inputs[-2 * l - 1 : -l - 1]  # [l, N]
        shows = source[:, :, None] == query  # [k, l, l, N]: word, its letter, letter of the query
        words = torch.arange(1, k + 1, device=self.device)[:, None, None]
        times, last = torch.zeros_like(self.inputs), torch.zeros_like(self.inputs)
        times[-l:] = shows.sum((0, 1))
        last[-l:] = (shows.any(1) * words).amax(0)
        return {
            **super().answer_groups(),
            "times the letter was shown": AnswerGroup(times),
            "last word with the letter": AnswerGroup(last),
        }


single = _single(DictionaryInference)
