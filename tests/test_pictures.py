"""Pictures tell the truth: each has a command, and was drawn from what is there and shown now."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest

from agents.run.parsing import parse
from agents.run.recipes import RECIPES, load_config

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
pictures = importlib.import_module("pictures")
PICTURES, RESULTS, OfAgent = pictures.PICTURES, pictures.RESULTS, pictures.OfAgent

PAGES = [ROOT / "README.md", *sorted(RESULTS.rglob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def shown() -> set[str]:
    """Every picture of results/ that a page shows or links, by its name there."""
    found = set()
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+\.(?:png|gif))\)", page.read_text(encoding="utf-8")):
            found.add((page.parent / target).resolve().relative_to(RESULTS).as_posix())
    return found


def test_every_picture_has_a_command_and_none_lies_about() -> None:
    known = {*PICTURES, *pictures.ELSEWHERE}
    assert shown() <= known, "name the command that draws it in benchmarks/pictures.py (PICTURES or ELSEWHERE)"
    files = {path.relative_to(RESULTS).as_posix() for path in RESULTS.rglob("*") if path.suffix in (".png", ".gif")}
    assert files == known


@pytest.mark.parametrize("table", sorted(RESULTS.rglob("*.csv")), ids=lambda path: path.name)
def test_a_published_table_names_no_folder_of_one_machine(table: Path) -> None:
    assert not re.search(r"(^|[,\s\"])(/|[A-Z]:)\w", table.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("name", sorted({*PICTURES, *pictures.ELSEWHERE}))
def test_the_command_exists(name: str) -> None:
    python, script, *words = pictures.command(name).split()
    assert python == "python"
    assert (ROOT / script).is_file()
    if script == "train.py":
        parse(words)


@pytest.mark.parametrize("name", sorted(PICTURES))
def test_a_picture_is_as_it_was_drawn_from_what_is_there(name: str) -> None:
    """Tables and the code that draws them; of an agent the recipe's settings and the panels of its memory."""
    record = dict(pictures.recorded()[name])
    again = f"out of date: {pictures.command(name)}"
    assert record.pop("content") == pictures.content(RESULTS / name), again
    record.pop("trained", None)
    assert record == PICTURES[name].source(), again


@pytest.mark.parametrize("name", sorted(name for name, picture in PICTURES.items() if isinstance(picture, OfAgent)))
def test_a_picture_of_an_agent_is_of_the_training_that_its_recipe_describes(name: str) -> None:
    picture = PICTURES[name]
    assert isinstance(picture, OfAgent)
    config = load_config(RECIPES / f"{picture.recipe}.yaml")
    steps = pictures.recorded()[name]["trained"]
    assert picture.least * config.total_timesteps <= steps < 1.05 * config.total_timesteps  # whole rollouts
    drawn = picture.session(None)
    assert drawn.policy is not None
    assert drawn.policy.memory_name == config.memory


def test_a_changed_table_makes_its_picture_out_of_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = (RESULTS / "compare-curves.csv").read_text()
    monkeypatch.setattr(pictures, "RESULTS", tmp_path)
    (tmp_path / "compare-curves.csv").write_text(table)
    same = PICTURES["compare.png"].source()
    (tmp_path / "compare-curves.csv").write_text(table.replace("0.2", "0.3", 1))
    assert PICTURES["compare.png"].source() != same
