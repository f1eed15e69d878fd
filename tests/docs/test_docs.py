"""Prose that can rot is tested: the CLI reference, the read-me's snippets and commands, the public names, the links."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import re
import shlex
import types
from pathlib import Path
from typing import Any

import pytest

import headwater as hw
import tiny

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "LOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
NOT_OURS = {"--extra-index-url", "--no-deps"}
"""Options of other programs that the pages mention."""


def _generator() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("generate_cli", ROOT / "docs" / "generate_cli.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate_cli = _generator()
COMMANDS: dict[str, Any] = generate_cli.commands()


def blocks(page: Path, language: str) -> list[str]:
    return [body for found, body in FENCE.findall(page.read_text("utf-8")) if found == language]


def command_lines() -> list[tuple[str, list[str]]]:
    """(page, words) of every headwater command in the shell blocks of the pages."""
    found = []
    for page in PAGES:
        for body in blocks(page, "sh"):
            for line in body.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == ["headwater"]:
                    found.append((f"{page.name}: {line}", words[1:]))
    return found


def test_cli_reference_is_up_to_date() -> None:
    assert (ROOT / "docs" / "cli.md").read_text("utf-8") == generate_cli.render(), "run: python docs/generate_cli.py"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_has_help(name: str) -> None:
    command = COMMANDS[name]
    assert command.help
    for option in generate_cli.options(command):
        assert option.help and option.help.endswith((".", "]")), f"{name} {option.opts}"


def test_public_names_are_what_is_visible() -> None:
    assert sorted(hw.__all__) == sorted(dir(hw))
    assert len(set(hw.__all__)) == len(hw.__all__)
    for name in hw.__all__:
        thing = getattr(hw, name)
        if isinstance(thing, type) or callable(thing):
            assert thing.__doc__ and not thing.__doc__.startswith(f"{name}("), f"{name} has no docstring of its own"


def test_public_methods_have_docstrings() -> None:
    for name in ("Scores", "TrainingRun", "Examples", "Query", "Index"):
        for member, value in vars(getattr(hw, name)).items():
            function = value.__func__ if isinstance(value, classmethod) else value
            if not member.startswith("_") and inspect.isfunction(function) and len(function.__code__.co_varnames) > 2:
                assert function.__doc__ or member in ("named", "require_base"), f"{name}.{member}"


@pytest.mark.parametrize(("where", "words"), [pytest.param(w, x, id=w[:70]) for w, x in command_lines()])
def test_command_lines_parse(where: str, words: list[str]) -> None:
    if "..." in words:  # stands for what every trace needs
        position = words.index("...")
        words = [*words[:position], "--checkpoints", "run", "--train", "rows.jsonl", *words[position + 1 :]]
    group = COMMANDS["headwater"]
    if words[0].startswith("-"):
        assert words[0] in {name for option in group.params for name in option.opts} | {"--help"}, where
        return
    name = f"headwater {words[0]}"
    if len(words) > 1 and f"{name} {words[1]}" in COMMANDS:
        name, words = f"{name} {words[1]}", words[1:]
    COMMANDS[name].make_context(words[0], words[1:])


def test_there_are_command_lines() -> None:
    commands = {words[0] for _, words in command_lines()}
    assert {"trace", "index", "methods", "demo"} <= commands


def test_options_in_running_text_exist() -> None:
    known = {"--help", *NOT_OURS}
    for command in COMMANDS.values():
        for option in command.params:
            known |= {*option.opts, *option.secondary_opts}
    for page in PAGES:
        text = FENCE.sub("", page.read_text("utf-8"))
        for code in re.findall(r"`([^`\n]+)`", text):
            for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", code):
                assert flag in known, f"{page.name}: {flag}"


def test_snippets_run(run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in tiny.FACTS))
    places = {"runs/sft": str(run_folder / "run"), "Qwen/Qwen2.5-0.5B": str(run_folder / "base")}
    ran = 0
    for page in PAGES:
        space: dict[str, Any] = {}
        if page.name != "README.md":
            space = _prepared(run_folder)
        for body in blocks(page, "python"):
            code = body
            for before, after in places.items():
                code = code.replace(before, after)
            exec(compile(code, str(page), "exec"), space)
            ran += 1
    assert ran >= 3
    assert (tmp_path / "traces" / "sydney" / "trace.json").exists()


def _prepared(folder: Path) -> dict[str, Any]:
    """What a page's snippets may take as given: the run, the rows and the query of the read-me."""
    return {
        "hw": hw,
        "run": hw.TrainingRun.from_pretrained(folder / "run", base=folder / "base"),
        "train": hw.Examples.from_rows(tiny.FACTS),
        "query": hw.Query("The capital of Australia is", " Sydney", corrected=" Canberra"),
    }


@pytest.mark.parametrize("name", hw.METHODS)
def test_every_method_has_its_page(name: str) -> None:
    assert any(f"`{name}`" in page.read_text("utf-8") for page in (ROOT / "docs" / "methods").glob("*.md"))
    assert f"`{name}`" in (ROOT / "README.md").read_text("utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_named_files_exist(page: Path) -> None:
    text = FENCE.sub("", page.read_text("utf-8"))
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target and not target.endswith(".png"):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
    for named in re.findall(r"`((?:src|tests|docs|benchmarks)/[\w./-]+)`", text):
        assert (ROOT / named).exists(), f"{page.name}: {named}"


def test_imports_go_the_way_architecture_says() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    allowed = {
        name: set(re.findall(r"`(\w+)`", imports))
        for name, imports in re.findall(r"^\| `(\w+)` \| ([^|]*) \|$", text, re.MULTILINE)
    }
    source = ROOT / "src" / "headwater"
    for file in source.rglob("*.py"):
        unit = file.relative_to(source).parts[0].removesuffix(".py")
        if unit == "__init__":
            continue
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "headwater":
                parts = str(node.module).split(".")
                for target in [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]:
                    if target not in (unit, "__version__"):
                        assert target in allowed[unit], f"{file.relative_to(source)} imports {target}"


def test_tree_of_architecture_is_the_tree() -> None:
    body = blocks(ROOT / "ARCHITECTURE.md", "text")[0]
    named = re.findall(r"^  (\w+(?:\.py|/))", body, re.MULTILINE)
    source = ROOT / "src" / "headwater"
    there = {p.name if p.is_file() else f"{p.name}/" for p in source.iterdir() if p.suffix == ".py" or p.is_dir()}
    assert set(named) == there - {"__pycache__/"}
