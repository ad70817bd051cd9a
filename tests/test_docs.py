"""The documentation is true: its code runs, its links lead somewhere, and nothing that exists is left out."""

from __future__ import annotations

import ast
import csv
import doctest
import importlib
import inspect
import io
import json
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import MEMORIES
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import PLUGIN_NAME as HPARAMS

import agents
import envs
import policies
import train
from agents import LEARNERS
from agents.registry import learners
from agents.run.display import RunDisplay
from agents.run.parsing import parse
from agents.run.recipes import load_config
from agents.sweep.check import check
from agents.sweep.space_file import load_space
from policies.memories import built_in, make_memory, memory_class, registered, registry

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += [*sorted((ROOT / "results").glob("*.md")), *sorted(DOCS.rglob("*.md"))]
SHARED_PAGES = {"mnm-p": "mnm", "mnm-g": "mnm", "homo-plastic": "plastic"}
PACKAGES = (agents, envs, policies)
COMMANDS = ("train", "evaluate", "compare")
MODULES = [
    info.name for package in PACKAGES for info in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """The fenced blocks of a language: the line each begins after, and its text."""
    text = page.read_text(encoding="utf-8")
    fence = re.compile(rf"^```{language}\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    return [(text.count("\n", 0, match.start(1)), match[1]) for match in fence.finditer(text)]


def resolves(name: str) -> bool:
    """Whether a dotted name is a module of this project, or an attribute of one."""
    parts = name.split(".")
    modules = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    module = max((each for each in modules if each in (*MODULES, "agents", "envs", "policies")), key=len)
    owner: Any = importlib.import_module(module)
    for part in parts[len(module.split(".")) :]:
        if not hasattr(owner, part) and part not in getattr(owner, "__annotations__", {}):
            return False
        owner = getattr(owner, part, None)
    return True


def anchors(page: Path) -> set[str]:
    """Of the headings of a page, as GitHub makes them: lower case, hyphens for spaces, no punctuation."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ +(.*?) *$", text, flags=re.MULTILINE)
    shown = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in shown}


def table(page: Path, heading: str) -> list[list[str]]:
    """The cells of the rows whose first cell is `code`, under a heading."""
    section = page.read_text(encoding="utf-8").split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line.strip().strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip().strip("`") for cell in row] for row in rows]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to run in, one thread, and registries that forget what a page registers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry.memories, "classes", dict(registry.memories.classes))
    monkeypatch.setattr(learners, "classes", dict(learners.classes))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


# Code


def test_the_space_file_of_the_sweep_page_is_accepted(tmp_path: Path) -> None:
    [(_, text)] = blocks(DOCS / "sweep.md", "yaml")
    file = tmp_path / "page.yaml"
    file.write_text(text, encoding="utf-8")
    flags = ["--sweep", str(file)]
    assert check(load_space(str(file)), parse(flags)[0], flags).parameters


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name_of)
def test_python_blocks_run(page: Path, elsewhere: Path) -> None:
    """One after the other, in one namespace; the README's with less to do."""
    namespace: dict[str, Any] = {"__name__": f"docs_{page.stem.replace('-', '_')}"}
    for line, source in blocks(page, "python"):
        if page.parent == ROOT:
            source = re.sub(r"num_envs=\d+", "num_envs=2", source)
            source = re.sub(r"n_steps=\d+", "n_steps=8", source)
            source = re.sub(r"\.learn\([\d_]+\)", ".learn(2)", source)
        tree = ast.increment_lineno(ast.parse(source), line)  # a failure names the line of the page
        exec(compile(tree, str(page), "exec", dont_inherit=True), namespace)


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=name_of)
def test_train_commands_parse(page: Path, elsewhere: Path) -> None:
    """They name options, memories and learners that exist; the README's are run, in test_readme.py.

    What a command imports is the page's first block that registers something.
    """
    for _, block in blocks(page, "bash"):
        for command in block.replace("\\\n", " ").splitlines():
            words = command.split("#")[0].split()
            if words[:2] != ["python", "train.py"] or "--resume" in words:
                continue
            if "--imports" in words:
                own = next(source for _, source in blocks(page, "python") if "\n@register_" in source)
                (elsewhere / f"{words[words.index('--imports') + 1]}.py").write_text(own, encoding="utf-8")
            config, _ = parse(words[2:])
            assert config.algo in LEARNERS, command
            assert config.memory in registered(), command


@pytest.mark.parametrize("name", [*MODULES, *(package.__name__ for package in PACKAGES), *COMMANDS])
def test_docstring_examples_run(name: str, elsewhere: Path) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


# Links and completeness


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    targets = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text))
    inside = [target.partition("#") for target in targets if not re.match(r"[a-z]+:", target)]
    places = [(page.parent / path if path else page, anchor) for path, _, anchor in inside]
    assert not [place for place, _ in places if not place.exists()]
    assert not [(place.name, anchor) for place, anchor in places if anchor and anchor not in anchors(place)]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_are_named_exist(page: Path) -> None:
    """`agents/ppo.py` and the like, in code or prose."""
    tops = "agents|envs|policies|tests|docs|benchmarks|recipes"
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(rf"(?<![\w/.-])((?:{tops})/[\w./-]+\.(?:py|md|yaml|csv|png|gif))", text))
    missing = {path for path in named if not (ROOT / path).exists()}
    assert missing <= {"policies/memories/trace.py", "docs/memories/trace.md", "envs/recall.py"}  # a reader writes them


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=name_of)
def test_modules_and_attributes_that_are_named_exist(page: Path) -> None:
    names = re.findall(r"`((?:agents|envs|policies)(?:\.\w+)+)[`(]", page.read_text(encoding="utf-8"))
    assert [name for name in names if not resolves(name)] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_nothing_is_left_to_fill_in(page: Path) -> None:
    assert not re.search(r"@@|\bTODO\b|\bTBD\b", page.read_text(encoding="utf-8"))


def test_every_memory_and_learner_has_a_page() -> None:
    ours = built_in()
    pages = {path.stem for path in (DOCS / "memories").glob("*.md")}
    assert {SHARED_PAGES.get(name, name) for name in ours} == pages
    for learner in LEARNERS:
        assert (DOCS / f"{learner}.md").is_file()


def test_the_index_lists_every_page() -> None:
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    listed = {link for link in re.findall(r"\]\(([^)#]+\.md)[)#]", index) if not link.startswith("..")}
    assert listed == {str(page.relative_to(DOCS).as_posix()) for page in DOCS.rglob("*.md")} - {"README.md"}


@pytest.mark.parametrize("name", built_in())
def test_memory_pages_have_the_arguments_and_defaults_of_the_code(name: str) -> None:
    page = DOCS / "memories" / f"{SHARED_PAGES.get(name, name)}.md"
    section = page.read_text(encoding="utf-8").partition("## Arguments\n")[2].split("\n## ", 1)[0]
    documented: dict[str, str] = {}
    for line in section.splitlines():
        if re.match(r"\| `\w+`", line):
            names, default = line.split("|")[1:3]
            documented |= dict.fromkeys(
                re.findall(r"`(\w+)`", names), default.replace("`", "").replace('"', "'").strip()
            )
    expected = {
        parameter.name: repr(parameter.default)
        for parameter in inspect.signature(memory_class(name)).parameters.values()
        if parameter.name not in ("input_size", "queries")
    }
    assert documented.keys() == expected.keys()
    for argument, default in expected.items():  # words may follow: `None` (= `hidden_size`)
        assert documented[argument].startswith(default), argument


# Metrics


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two iterations of each learner, with a memory that has a loss of its own."""
    folders = {}
    sizes = ["hidden_size=6", "key_size=4", "value_size=4", "memory_units=4", "heads=1"]
    for algo in LEARNERS:
        folders[algo] = tmp_path_factory.mktemp("runs") / algo
        options = f"--algo {algo} --num-envs 4 --n-steps 16 --total-timesteps 128 --eval-episodes 4".split()
        options += ["--env", "Engram/RepeatFirst-v0", "--memory", "mnm-p", "--memory-kwargs", *sizes]
        with pytest.raises(SystemExit) as finished:
            train.main([*options, "--run-dir", str(folders[algo]), "--no-progress"])
        assert finished.value.code == 0
    return folders


def logged(folder: Path) -> tuple[set[str], set[str]]:
    """What a run wrote to progress.csv and to TensorBoard."""
    with open(folder / "progress.csv", newline="", encoding="utf-8") as file:
        columns = {"memory/NAME" if name.startswith("memory/") else name for name in next(csv.reader(file))}
    events = EventAccumulator(str(folder))
    events.Reload()
    tags = events.Tags()
    names = set(tags["scalars"]) | {tag.removesuffix("/text_summary") for tag in tags["tensors"]}
    names = {"memory/NAME" if name.startswith("memory/") else name for name in names}
    names |= {"view/NAME" for tag in tags["images"] if tag.startswith("view/")}
    assert events.PluginTagToContent(HPARAMS)
    return columns, names | {"hparams"}


@pytest.mark.parametrize("algo", LEARNERS)
def test_metrics_page_lists_exactly_what_is_logged(algo: str, runs: dict[str, Path]) -> None:
    every = table(DOCS / "metrics.md", "Logged names")
    rows = [row for row in every if {"all", LEARNERS[algo].__name__} & set(row[2].split(", "))]
    listed = {row[0].replace("NAME_loss", "meta_loss"): row[1].split(", ") for row in rows}
    in_csv = {name for name, where in listed.items() if "csv" in where}
    in_tensorboard = {name for name, where in listed.items() if "tb" in where}
    for folder in (runs[algo], runs[algo] / "identity"):
        columns, names = logged(folder)
        own = set() if folder is runs[algo] else {"train/meta_loss", "memory/NAME", "view/NAME"}  # identity has none
        # of a task with scores of its own, masks or successes; this has none
        own |= {"task/NAME", "score/NAME", "rollout/valid_actions", "rollout/success_rate"}
        assert columns == in_csv - own
        assert names == in_tensorboard - own


def test_metrics_page_lists_the_numbers_of_every_memory() -> None:
    rows = [
        [cell.replace("`", "").split(", ") for cell in row[:2]]
        for row in table(DOCS / "metrics.md", "Numbers of memories")
    ]
    listed = {name.removeprefix("memory/"): set(memories) for names, memories in rows for name in names}
    said: dict[str, set[str]] = {}
    every = [(name, MEMORIES[name].build()) for name in built_in()]
    pooled = {"controller": "none", "memory_size": 8, "crop_size": 4}
    for name, memory in [*every, ("kanerva++", make_memory("kanerva++", input_size=5, **pooled))]:
        for number in memory.metrics(memory.initial_state(1)):
            said.setdefault(number, set()).add(name)
    assert said == listed


def test_metrics_page_lists_the_fields_of_the_summary(runs: dict[str, Path]) -> None:
    summary = json.loads((runs["ppo"] / "summary.json").read_text(encoding="utf-8"))
    assert [row[0] for row in table(DOCS / "metrics.md", "summary.json")] == list(summary)


def test_metrics_page_shows_the_progress_line(runs: dict[str, Path]) -> None:
    display = RunDisplay("", Console())
    config = load_config(runs["ppo"] / "config.yaml")
    display.model = agents.load(agents.latest_checkpoint(runs["ppo"]), config.make_env(config.num_envs), device="cpu")
    display.model._total_timesteps = display.model.num_timesteps
    display.console = Console(width=300, file=io.StringIO())
    display.console.print(display.lines())
    shown = display.console.file.getvalue()
    parts = re.findall(r"[\d,]+/[\d,]+ +\d+%|left|elapsed|return|best|steps/s|env/memory/learn", shown)
    parts[0] = "steps"
    assert [row[0] for row in table(DOCS / "metrics.md", "The progress line")] == parts
