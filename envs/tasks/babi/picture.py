"""Texts and pictures of bAbI stories: sentences up to the current word, questions with right and given answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from envs.rendering import AGENT, FAINT, FLOOR, INK, RIGHT, WRONG, Canvas, Frame, available_size, blend, font
from envs.tasks.babi.stories import PLACEHOLDER, VOCABULARY

_WIDTH, _ROWS, _TALL, _MARGIN, _SIZE = 720, 12, 30, 16, 21  # pixels; rows of a frame


class Piece(NamedTuple):
    """A word of a story, or a right answer with the given one."""

    word: str
    answer: str | None
    """The given answer, "?" if unknown; None if no answer was due."""


def sentences(symbols: Sequence[int], targets: Sequence[int], given_answers: Sequence[int]) -> list[list[Piece]]:
    """The story so far by sentences; an answer that is due but not yet given is the word `-`.

    Args:
        symbols: t + 1 of them, or t at the end of the story.
        targets: t right answers, `PLACEHOLDER` where nothing was asked.
        given_answers: t given answers, -1 where unknown.
    """
    lines: list[list[Piece]] = [[]]
    for step, symbol in enumerate(symbols):
        word = VOCABULARY[symbol]
        over = lines[-1] and (lines[-1][-1].word == "." or (symbol != PLACEHOLDER and _is_question(lines[-1])))
        if over:
            lines.append([])
        if step < len(targets) and targets[step] != PLACEHOLDER:
            answer = "?" if given_answers[step] < 0 else VOCABULARY[given_answers[step]]
            lines[-1].append(Piece(VOCABULARY[targets[step]], answer))
        else:
            lines[-1].append(Piece(word, None))
    return lines


def _is_question(line: Sequence[Piece]) -> bool:
    return any(piece.word == "?" and piece.answer is None for piece in line)


def story_text(symbols: Sequence[int], targets: Sequence[int], given_answers: Sequence[int], caption: str) -> str:
    """Caption and sentences; `[garden]` is a right answer, `[garden, not office]` a wrong one, `[-]` is due."""
    rows = [caption]
    for number, line in enumerate(sentences(symbols, targets, given_answers), start=1):
        words = []
        for word, answer in line:
            if answer is None:
                words.append("[-]" if word == "-" else word)
            else:
                words.append(f"[{word}]" if answer == word else f"[{word}, not {answer}]")
        rows.append(f"{number:>3} " + " ".join(words))
    return "\n".join(rows)


def story_frame(symbols: Sequence[int], targets: Sequence[int], given_answers: Sequence[int], caption: str) -> Frame:
    """The last sentences up to the current word, which is marked; answers on tiles, wrong ones with the right one.

    Arguments as in `sentences`; `caption` is a line underneath.
    """
    width, max_rows, available = _WIDTH, _ROWS, available_size()
    if available is not None:  # legible letters, and as many lines as fit
        width = round(min(_WIDTH, max(320, 1.1 * available.width)))
        max_rows = max(3, int((width * available.height / available.width - 3.5 * _MARGIN) / _TALL))
    canvas = Canvas(width, max_rows * _TALL + 3.5 * _MARGIN)
    left, space = _MARGIN + 38.0, 6.0
    # Lines of the picture: number of the sentence (0: continued from the line before), and pieces with x and width.
    rows: list[tuple[int, list[tuple[float, float, Piece]]]] = []
    lines = sentences(symbols, targets, given_answers)
    for number, line in enumerate(lines, start=1):
        rows.append((number, []))
        x = left
        for piece in line:
            wide = _width(piece)
            if x + wide > width - _MARGIN:
                rows.append((0, []))
                x = left + 24
            if piece.word in (".", "?") and piece.answer is None:
                x -= space - 1
            rows[-1][1].append((x, wide, piece))
            x += wide + space
    running = len(symbols) > len(targets)  # the last piece is the current one
    shown = rows[-max_rows:]
    canvas.box(_MARGIN - 6, _MARGIN - 6, width - 2 * _MARGIN + 12, max_rows * _TALL + 12, FLOOR, round=8)
    for row, (number, pieces) in enumerate(shown):
        y = _MARGIN + (row + 0.5) * _TALL
        asks = any(piece.word == "?" or piece.answer is not None for _, _, piece in pieces)
        if number:
            canvas.text(str(number), left - 12, y, 16, FAINT, "midright")
        for place, (x, wide, piece) in enumerate(pieces):
            now = running and row == len(shown) - 1 and place == len(pieces) - 1
            if piece.answer is not None:
                _draw_answer(canvas, piece, x, y)
            elif piece.word == "-":
                canvas.box(x, y - 12, wide, 24, blend(AGENT, FLOOR, 0.85), round=6)
                canvas.box(x, y - 12, wide, 24, AGENT, round=6, line=2)
                canvas.text("?", x + wide / 2, y + 1, _SIZE, AGENT, "center")
            else:
                if now:
                    pad = 1 if piece.word in (".", "?") else 4  # these stand close to their word
                    canvas.box(x - pad, y - 13, wide + 2 * pad, 26, blend(AGENT, FLOOR, 0.8), round=2 + pad)
                canvas.text(piece.word, x, y, _SIZE, AGENT if asks else INK)
    canvas.caption(caption, _MARGIN, canvas.height - 1.3 * _MARGIN)
    return canvas.frame()


def _draw_answer(canvas: Canvas, piece: Piece, x: float, y: float) -> None:
    """The given answer on a coloured tile; the right one beside it if that is wrong or unknown."""
    assert piece.answer is not None
    known, right = piece.answer != "?", piece.answer == piece.word
    verdict = FAINT if not known else RIGHT if right else WRONG
    tile = _text_width(piece.answer) + 14
    canvas.box(x, y - 12, tile, 24, blend(verdict, FLOOR, 0.8), round=6)
    canvas.box(x, y - 12, tile, 24, verdict, round=6, line=1.5)
    canvas.text(piece.answer, x + tile / 2, y + 1, _SIZE, verdict, "center")
    if not right:
        canvas.text(piece.word, x + tile + 6, y, _SIZE, RIGHT)


def _width(piece: Piece) -> float:
    if piece.answer is None:
        return 24 if piece.word == "-" else _text_width(piece.word)
    tile = _text_width(piece.answer) + 14
    return tile if piece.answer == piece.word else tile + 6 + _text_width(piece.word)


def _text_width(word: str) -> float:
    return font(3 * _SIZE).size(word)[0] / 3
