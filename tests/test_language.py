"""Docstrings, comments, messages and pages use the field's words: CONTRIBUTING.md, "Language"."""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PLAIN = {
    r"roll-outs?": "rollout",
    r"plain(?:ly)? twin": "reference implementation",
    r"(?:is|are|be|run|done|does) (?:it |them )?plainly": "eagerly",
    r"by hand": "custom backward; or say who does it",
    r"hangs? on": "depends on",
    r"told apart|tells? apart|tell apart": "distinguish; cache key",
    r"tak(?:es?|en|ing) down(?! once the)": "capture",
    r"(?:made|makes?|make) (?:it |them |the rest )?again": "recompute",
    r"ask(?:s|ed|ing)? (?:nothing of )?the device|asks? nothing of": "synchronise with the device",
    r"waits? for the device": "synchronise with the device",
    r"who(?:ever| does not| looks)": "name it",
    r"nobody|somebody": "name it, or no one",
    r"is had|to be had|could be had": "is available",
    r"where it is one": "if",
    r"as it were": "as configured",
    r"numbers? that (?:are|is) (?:none|no numbers?)": "NaN or infinite",
    r"holds? most probable": "greedy",
    r"goes? on as|going on as": "continues with",
    r"on the way back": "in the backward pass",
    r"as far as it likes": "no limit",
    r"copies of (?:an|the) environments?": "environments",
    r"gives the exit status": "returns",
    r"the words of the command": "arguments",
    r"stands? alone": "say what it lacks",
    r"room for so many|so many bytes": "maximum number; this many",
    r"written down as they are taken|are written down": "stored",
    r"left as (?:it is|they are)": "not modified",
    r"in the manner of": "in the style of",
    r"(?:can|may|might) be had": "is available; can be obtained",
    r"main job": "the default run; `python train.py`",
    r"hand(?:s|ed)? (?:it |them |the state )?back": "pass to the next call; return",
    r"thrown onto": "teleported to",
    r"taken through|takes? (?:some |an? )?environments? through": "process over many steps",
    r"goes? on with(?:out)?|going on with(?:out)?": "continue",
    r"amid": "in the middle of",
    r"who knows which": "if it is known",
    r"is not for (?:here|there)": "cannot be given here",
    r"no fewer than these": "at least",
    r"of yours": "of your own",
    r"each its own": "see page; separate",
    r"made stories": "generated stories",
    r"steps? a second": "steps per second",
    r"(?:forward and|forward or) back(?!ward|-)": "forward and backward",
    r"hand-written derivatives?": "custom backward",
    r"as they (?:are|were) taken": "while they run",
    r"but for": "except",
    r"one (?:below|beside) another": "stacked, concatenated",
    r"by the clock": "wall-clock time",
    r"nats an image|steps an update|blocks a stage|logistics a pixel": "per",
    r"every so many": "every N",
    r"leans? on": "depends on",
    r"foretells?": "predicts",
    r"came to (?:it|\d+)": "reached",
    r"how it was found|what brought it": "how it was chosen",
    r"such as these": "name them",
    r"to begin with": "initial",
    r"in the place of what": "replaces",
    r"what (?:the input|the hidden state) gives": "the input's part of the pre-activations",
    r"room for so": "maximum number",
}
"""What is not written, and the plain word."""


def gap(phrase: str) -> str:
    """Any white space between its words."""
    return phrase.replace(" ", r"\s+")


BANNED = re.compile(
    "|".join(f"(?P<w{number}>\\b(?:{gap(phrase)})\\b)" for number, phrase in enumerate(PLAIN)), re.IGNORECASE
)
CODE = [path for top in ("agents", "envs", "policies") for path in sorted((ROOT / top).rglob("*.py"))]
CODE += [ROOT / f"{name}.py" for name in ("train", "evaluate", "compare")]
PAGES = [ROOT / "README.md", *(path for top in ("results", "docs") for path in sorted((ROOT / top).rglob("*.md")))]
PAGES += sorted((ROOT / "recipes").rglob("*.yaml"))
ALLOWED: set[str] = set()
"""Files that are not rewritten yet. A file that is clean fails the test."""


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def found(path: Path) -> list[str]:
    """Each banned phrase in a file's comments and strings, or in its text, with the line and the word to use."""
    text = path.read_text(encoding="utf-8")
    pieces = [(1, text)]
    if path.suffix == ".py":
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        pieces = [(t.start[0], t.string) for t in tokens if t.type in (tokenize.STRING, tokenize.COMMENT)]
    lines = []
    for start, piece in pieces:
        for match in BANNED.finditer(re.sub(r"\s", " ", piece)):  # of the same length, so that places stay
            word = list(PLAIN.values())[int(str(match.lastgroup)[1:])]
            row = start + piece[: match.start()].count("\n")
            lines.append(f"{name_of(path)}:{row}: {' '.join(match[0].split())!r}; write: {word}")
    return lines


@pytest.mark.parametrize("path", [path for path in [*CODE, *PAGES] if name_of(path) not in ALLOWED], ids=name_of)
def test_plain_words(path: Path) -> None:
    assert not found(path)


@pytest.mark.parametrize("name", sorted(ALLOWED))
def test_every_exception_is_still_needed(name: str) -> None:
    assert found(ROOT / name)


def test_phrases_are_found_across_line_breaks_and_in_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_language.ROOT", tmp_path)
    path = tmp_path / "one.py"
    path.write_text('"""A roll-out that is done\n    plainly."""\nraise ValueError("it hangs on luck")  # by hand\n')
    assert [line.split("'")[1].lower() for line in found(path)] == [
        "roll-out",
        "done plainly",
        "hangs on",
        "by hand",
    ]
