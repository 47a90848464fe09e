"""README.md and docs/: their code runs, and the files, links, commands and options exist."""

from __future__ import annotations

import csv
import importlib
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer.main

from tests.support import EXTRAS, ROOT, needs
from vla_gym import VLAEnv, list_policies
from vla_gym.cli import app
from vla_gym.registration import SUITE_MODULES

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXTRAS_BY_WORD = {
    "MetaWorld": "metaworld",
    "Robosuite": "robosuite",
    "RLBench": "rlbench-twin",
    "stable_baselines3": "sb3",
    "vla_gym.evaluation": "eval",
    "vla_gym.data": "data",
    "vla_gym_policies.vla": "vla",
}
PATH = re.compile(r"[\w.-]+/[\w./-]+|[\w-]+\.(?:md|toml|txt|sh)")


@dataclass(frozen=True)
class Block:
    """A code block of a page: its language, its text and the line it starts on."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def file(self) -> str:
        """The file name that its first line names, else ""."""
        found = re.match(r"# ([\w-]+\.py)\n", self.text)
        return found.group(1) if found else ""


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def read_blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text[: m.start()].count("\n") + 1, m.group(1), m.group(2))
        for m in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    ]


BLOCKS = [block for page in PAGES for block in read_blocks(page)]


def python_blocks():
    for block in BLOCKS:
        if block.language == "python":
            extras = [extra for word, extra in EXTRAS_BY_WORD.items() if word in block.text]
            marks = [needs(*extras)] if extras else []
            if "sb3" in extras or len(extras) > 1:
                marks.append(pytest.mark.slow)
            yield pytest.param(block, marks=marks, id=f"{name(block.page)}:{block.line}")


def write_files(page: Path, folder: Path) -> None:
    """Write the page's files, and its entry points as an installed package would have them."""
    for block in read_blocks(page):
        if block.file:
            (folder / block.file).write_text(block.text, encoding="utf-8")
        if block.language == "toml":
            info = folder / "readme_example-1.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(
                "Metadata-Version: 2.1\nName: readme-example\nVersion: 1\n"
            )
            head, _, rest = block.text.partition("\n")
            group = re.fullmatch(r'\[project\.entry-points\."(.+)"\]', head)
            assert group, f"not an entry-point table: {head}"
            points = rest.replace('"', "")
            (info / "entry_points.txt").write_text(f"[{group.group(1)}]\n{points}")


def run(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("block", list(python_blocks()))
def test_each_python_block_runs(block, tmp_path):
    write_files(block.page, tmp_path)
    script = tmp_path / (block.file or "block.py")
    script.write_text(block.text, encoding="utf-8")
    output = run(tmp_path, script.name)
    for line in re.findall(r"^print\(.*\)  # (.+)$", block.text, re.MULTILINE):
        if block.page.name == "README.md" and "strings" not in line and "..." not in line:
            assert line in output, f"the page promises {line!r}"


@needs("eval")
def test_the_policy_example_is_found_by_name_and_solves_its_task(tmp_path):
    write_files(ROOT / "README.md", tmp_path)
    arguments = ("-p", "reach", "-p", "random", "-e", "Toy-Reach", "-n", "4", "-o", "out")
    run(tmp_path, "-m", "vla_gym.cli", "eval", *arguments, "--no-video")
    rows = csv.DictReader((tmp_path / "out" / "report.csv").open())
    solved = {row["policy"]: (row["n"], row["successes"]) for row in rows}
    assert solved["reach"] == ("4", "4")
    assert solved["random"][0] == "4"


def find_anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_files_exist(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        assert "://" not in target, f"{target}: pages link to files of this repository only"
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), f"{name(page)} links to {target}"
        assert file.resolve().is_relative_to(ROOT)
        if anchor:
            assert anchor in find_anchors(file), f"{name(page)} links to {target}"
    for code in re.findall(r"`([^`\n]+)`", text):
        roots = ("vla_gym/", "policies/", "tests/", "benchmarks/", "docs/", "scripts/")
        if PATH.fullmatch(code) and (code.startswith(roots) or (ROOT / code).suffix == ".txt"):
            assert (ROOT / code).exists(), f"{name(page)} names {code}"


def find_commands() -> list[tuple[str, list[str]]]:
    """Return (place, words) of every command line in code blocks and in inline code."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
        lines = re.findall(r"`([^`]+)`", prose)
        for block in read_blocks(page):
            if block.language == "bash":
                lines += re.sub(r"\\\n", " ", block.text).splitlines()
        found += [(name(page), shlex.split(line, comments=True)) for line in lines if line.strip()]
    return found


def test_commands_and_options_exist():
    group = typer.main.get_command(app)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    seen = 0
    for place, words in find_commands():
        if words[:1] == ["make"] and len(words) > 1:
            recipe = ROOT / "docs/recipes" / f"{words[1].removeprefix('recipe-')}.sh"
            assert words[1] in targets or recipe.exists(), f"{place}: make {words[1]}"
        if words[:1] == ["python"] and len(words) > 1 and words[1].endswith(".py"):
            assert (ROOT / words[1]).exists(), f"{place}: {words[1]}"
        if words[:1] != ["vla-gym"] or len(words) == 1:
            continue
        command = group.commands.get(words[1])  # type: ignore[attr-defined]  # a click group
        assert command is not None, f"{place}: vla-gym {words[1]}"
        options = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
        for word in words[2:]:
            if word.startswith("-"):
                assert word.partition("=")[0] in options, f"{place}: vla-gym {words[1]} {word}"
        seen += 1
    assert seen >= 8


def test_options_in_prose_exist():
    group = typer.main.get_command(app)
    commands = group.commands.values()  # type: ignore[attr-defined]  # a click group
    options = {o for c in commands for p in c.params for o in (*p.opts, *p.secondary_opts)}
    for page in PAGES:
        for option in re.findall(r"`(--?[a-z][a-z-]*)[ `]", page.read_text(encoding="utf-8")):
            assert option in options, f"{name(page)}: {option}"


def test_tables_of_extras_policies_and_keywords_are_complete():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for extra in EXTRAS:
        assert f"`{extra}`" in text, f"extra {extra}"
    for policy in list_policies():
        assert re.search(rf"`{policy}(:[A-Z:]+)?`", text), f"policy {policy}"
    known = set(inspect.signature(VLAEnv.__init__).parameters)
    table = text[text.index("**Keywords**") : text.index("## Suites")]
    listed = {
        w for row in re.findall(r"^\| (`.+?) \|", table, re.M) for w in re.findall(r"`(\w+)`", row)
    }
    assert listed <= known
    assert known - listed == {
        *("self", "suite", "task", "keywords"),
        *("render_mode", "render_size"),  # Gymnasium's, docs/contract.md
    }


def test_suites_and_figures_are_true():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for suite in (importlib.import_module(module).SUITE for module in SUITE_MODULES):
        row = re.search(rf"^\| (?:\[{suite.name}\]\(.*?\)|{suite.name}) \| (\d+)", text, re.M)
        assert row and int(row.group(1)) == len(suite.tasks), suite.name
    found = json.loads((ROOT / "benchmarks/results/metaworld_experts.json").read_text())
    assert f"{found['solved']} of {found['episodes']} solved" in text
    assert found["differing"] == []
    found = json.loads((ROOT / "benchmarks/results/import_time.json").read_text())
    ratio = found["cases"]["import"]["ratios"]["vla_gym / gymnasium"]["median"]
    assert ratio < 1.5 and "less than 1.5 times `import gymnasium`" in text
