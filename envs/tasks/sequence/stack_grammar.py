"""StackGrammar: predict the next symbol of a stream of sequences that require counting or memorising."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from envs.single_env import single as _single
from envs.tasks.sequence.base import Sequences, Steps, SymbolTask

_COUNTING = {"anbn": "ab", "anbncn": "abc", "anbncndn": "abcd", "anb2n": "ab", "anbmcnm": "abc"}
GRAMMARS = (*_COUNTING, "memorisation", "addition")


class _Stream(NamedTuple):
    """A stream of sequences, each tensor `[N, T + 1]`."""

    symbols: Tensor
    counted: Tensor
    """Whether the symbol is determined by those before it."""
    closing: Tensor
    """Whether it is the last counted symbol of a sequence."""


class StackGrammar(SymbolTask):
    """Predict every next symbol in a stream of sequences without separators.

    Description:
        | `grammar`      | sequence                                | what `n` is           | counted after  |
        |----------------|-----------------------------------------|-----------------------|----------------|
        | `anbn`         | n times a, n times b                    | n                     | the first b    |
        | `anbncn`       | n times each of a, b, c                 | n                     | the first b    |
        | `anbncndn`     | n times each of a, b, c, d              | n                     | the first b    |
        | `anb2n`        | n times a, 2n times b                   | n                     | the first b    |
        | `anbmcnm`      | n times a, m times b, n + m times c     | n + m, split anywhere | the first c    |
        | `memorisation` | a word, `=`, the word backwards         | the word's length     | the `=`        |
        | `addition`     | `11+11=011.`, the sum's low digit first | digits of both        | the `=`        |

        Only the deterministic part of a sequence is counted: symbols that follow with certainty from those before. It
        lasts to the end of the sequence and, for the first five grammars, includes the first a of the next one, which
        shows that the end was recognised. n is drawn uniformly from `n_min` to `n_max` for every sequence. In
        `addition` the digits are split between the two numbers at random; a number without digits is 0.

        An episode is a stream of `length + 1` symbols; its last sequence may be cut.

    Observation: `Box(float32)` `[symbols]`: the symbol, one-hot. The symbols are those of the table; `memorisation` has
        `letters` letters and `=` (the last), `addition` 0, 1, `+`, `=`, `.`.

    Action: `Discrete(symbols)`: the next symbol. `info["target"]` (int64 `[num_envs]`) is that symbol, `info["weight"]`
        (float32 `[num_envs]`) 1 where it is counted, else 0; with `score_all=True` it is 1 everywhere.

    Reward: `weight * [action == target] / (sum of the episode's weights)`; a perfect episode returns 1 (less with
        `score_all=True`, since random symbols cannot be predicted).

    Termination: after `length` predictions.

    Metrics:
        `error`: % of wrong symbols among those counted.
        `success`: share of sequences with no wrong symbol among those counted; only sequences that the stream does not
        cut. This is the paper's measure, evaluated for each n separately (`n_min=n_max=n`).

    Args:
        num_envs: number of environments.
        grammar: "anbn", "anbncn", "anbncndn", "anb2n", "anbmcnm", "memorisation" or "addition".
        n_min: smallest n, at least 1; at least 2 for `anbmcnm`. Both `n_min` and `n_max` may be changed between
            episodes, for a curriculum.
        n_max: largest n, at most 60 for `addition`.
        length: predictions in an episode, at least as many as the longest sequence has symbols.
        letters: letters of `memorisation`, 2 to 25.
        score_all: give every step weight 1, as the paper does in training.
        device: torch device of all tensors.
        render_mode: None or "rgb_array".

    Scores:
        Without memory, with the other defaults: anbn 0.91, anbncn 0.91, anbncndn 0.91, anb2n 0.96, anbmcnm 0.91,
        memorisation 0.50, addition 0.49. Repeating the symbol is right except at the ends of runs, so look at
        `success`, which is 0 without memory (0.03 for memorisation). With memory 1 and a `success` of 1.

    Raises:
        ValueError: an argument is out of its range.

    Source: Joulin, Mikolov, "Inferring Algorithmic Patterns with Stack-Augmented Recurrent Nets" (NIPS 2015), and its
        repository facebookarchive/Stack-RNN (`task.h`, `train_toy.cpp`, `train_add.cpp`), whose upper end of n is
        exclusive where ours is not. Training there begins at n from 2 to 3 and goes up to 10 to 20; tests take n from 2
        to 59.
    """

    metric_names = ("error", "success")
    state_names = (*SymbolTask.state_names, "counted", "closing")

    def __init__(
        self,
        num_envs: int = 1,
        *,
        grammar: str = "anbn",
        n_min: int = 2,
        n_max: int = 20,
        length: int = 200,
        letters: int = 2,
        score_all: bool = False,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ) -> None:
        if grammar not in GRAMMARS:
            raise ValueError(f"grammar is {grammar!r}, expected one of {GRAMMARS}")
        if not 2 <= letters <= 25:
            raise ValueError(f"letters is {letters}, expected 2 to 25")
        if length < 1:
            raise ValueError(f"length is {length}, expected at least 1")
        alphabet = _COUNTING.get(grammar, "01+=.")
        if grammar == "memorisation":
            alphabet = "abcdefghijklmnopqrstuvwxyz"[:letters] + "="
        super().__init__(num_envs, alphabet, len(alphabet), length, device, render_mode)
        self.grammar, self.letters, self.score_all = grammar, letters, score_all
        self.n_min, self.n_max = n_min, n_max
        self._places = torch.arange(length + 1, device=self.device).expand(num_envs, -1).contiguous()
        self._check()

    def _check(self) -> None:
        least = 2 if self.grammar == "anbmcnm" else 1
        if not least <= self.n_min <= self.n_max:
            raise ValueError(f"n_min is {self.n_min}, n_max {self.n_max}; expected {least} <= n_min <= n_max")
        if self.grammar == "addition" and self.n_max > 60:
            raise ValueError(f"n_max is {self.n_max}, expected at most 60 for addition: sums are 64-bit integers")
        longest = self._bounds(self.n_max)[1]
        if self.length < longest:
            raise ValueError(f"length is {self.length}, expected at least {longest}, the longest sequence's size")

    def _bounds(self, n: int) -> tuple[int, int]:
        """Bounds of the size of a sequence of this n."""
        if self.grammar == "addition":  # `1+1=01.` at n = 2, `11+0=11.` too
            return n + 4, 2 * n + 5
        size = {"anbncn": 3 * n, "anbncndn": 4 * n, "anb2n": 3 * n, "memorisation": 2 * n + 1}.get(self.grammar, 2 * n)
        return size, size

    def _sequences(self) -> Sequences:
        self._check()
        stream = self._addition() if self.grammar == "addition" else self._words_or_counts()
        symbols, counted, closing = (part.T.contiguous() for part in stream)
        self.counted, self.closing = counted[1:], closing[1:]
        weights = torch.ones_like(counted[1:]) if self.score_all else self.counted
        return Sequences(symbols[:-1], symbols[1:], weights.float())

    def _draw(self) -> Tensor:
        """n of enough sequences `[N, S]` to fill a stream."""
        return self._integers(self.n_min, self.n_max, self.num_envs, self.length // self._bounds(self.n_min)[0] + 2)

    def _positions(self, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """For each position of the stream `[N, T + 1]`: its sequence and the offset in it."""
        ends = sizes.cumsum(1)
        which = torch.searchsorted(ends, self._places, right=True)
        return which, self._places - (ends - sizes).gather(1, which)

    def _words_or_counts(self) -> _Stream:
        drawn = self._draw()
        which, offset = self._positions(self._bounds(1)[0] * drawn if self.grammar in _COUNTING else 2 * drawn + 1)
        n = drawn.gather(1, which)
        if self.grammar == "memorisation":
            letters = self._integers(0, self.letters - 1, *offset.shape)
            mirrored = torch.where(offset > n, self._places + 2 * (n - offset), self._places)
            symbols = torch.where(offset == n, self.letters, letters.gather(1, mirrored))
            return _Stream(symbols, offset > n, offset == 2 * n)
        if self.grammar == "anbmcnm":
            split = 1 + (self._uniform(*drawn.shape) * (drawn - 1)).long()  # how many of n + m are a
            symbols = (offset >= split.gather(1, which)).long() + (offset >= n)
        else:
            symbols = (offset // n).clamp(max=len(self.alphabet) - 1)
        closing = offset == 0
        return _Stream(symbols, (offset > n) | closing, closing)

    def _addition(self) -> _Stream:
        digits = self._draw()
        first = (self._uniform(*digits.shape) * (digits + 1)).long()  # digits of the first number, from none to all
        numbers, widths = [], []
        for width in (first, digits - first):
            top = torch.ones_like(width) << (width - 1).clamp(min=0)
            low = torch.randint(2**62, width.shape, generator=self.generator, device=self.device) & (top - 1)
            numbers.append((top | low) * (width > 0))  # the first digit is a 1
            widths.append(width.clamp(min=1))
        total = numbers[0] + numbers[1]
        most = torch.maximum(widths[0], widths[1])
        size = widths[0] + widths[1] + most + (total >> most) + 3  # `total >> most` is the last carry

        which, offset = self._positions(size)
        # `+` is at offset `plus`
        a, b, c, plus, second, last = (part.gather(1, which) for part in (*numbers, total, *widths, size - 1))
        equals = plus + second + 1
        value = torch.where(offset < plus, a, torch.where(offset < equals, b, c))
        shift = torch.where(offset < plus, plus - 1, equals - 1) - offset
        shift = torch.where(offset > equals, offset - equals - 1, shift)
        symbols = (value >> shift.clamp(0, 62)) & 1
        for mark, place in enumerate((plus, equals, last), start=2):
            symbols = torch.where(offset == place, mark, symbols)
        return _Stream(symbols, offset > equals, offset == last)

    def _metrics(self, wrong: Tensor, asked: Tensor, steps: Steps) -> dict[str, tuple[Tensor, Tensor]]:
        counted, closing = self.counted[steps], self.closing[steps]
        wrong = wrong * counted  # with `score_all` the others were asked for as well
        if isinstance(steps, slice):
            failures = (wrong > 0).cumsum(0) + self.failed
            closed = (failures * closing).cummax(0).values  # the failures up to the last closed sequence
            failed = failures > torch.cat([torch.zeros_like(closed[:1]), closed[:-1]])
            self.failed = failed[-1] & ~closing[-1]
        else:
            failed = self.failed | (wrong > 0)
            self.failed = failed & ~closing
        return {
            "error": (100.0 * wrong, counted.float()),
            "success": ((closing & ~failed).float(), closing.float()),
        }


single = _single(StackGrammar)
