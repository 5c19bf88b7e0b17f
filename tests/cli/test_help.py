"""The form of `--help`: groups of options, usage lines, and examples that work as they are printed."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from rich.markup import render

from tests.cli.conftest import run
from vitdeploy.cli import app

WIDTHS = ["80", "120"]
MAIN: Any = typer.main.get_command(app)
COMMANDS: dict[str, Any] = {name: command for name, command in MAIN.commands.items() if not command.hidden}


def examples() -> Iterator[tuple[str, str]]:
    """Yield the command and the text of each example. Lines that end with a backslash go on in the next."""
    for name, command in COMMANDS.items():
        title, *texts = (command.epilog or "").split("\n$ ")
        assert title == "Examples:", f"{name} has no examples"
        yield from ((name, text) for text in texts)


@pytest.mark.parametrize(("name", "text"), list(examples()))
def test_an_example_is_a_command_line_that_parses(name: str, text: str) -> None:
    words = shlex.split(text.replace("\\\n", " "), comments=True)
    assert words[:2] == ["vitdeploy", name]
    arguments = words[2 : words.index(">") if ">" in words else None]
    context = COMMANDS[name].make_context(name, arguments)
    assert set(context.params) == {parameter.name for parameter in COMMANDS[name].params} - {"help"}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", COMMANDS)
def test_examples_are_printed_with_the_line_breaks_that_they_were_written_with(
    name: str, width: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    printed = [line.rstrip() for line in run(name, "--help").out.splitlines()]
    written = [f" {line}" for line in COMMANDS[name].epilog.splitlines()]
    first = printed.index(written[0])
    assert printed[first : first + len(written)] == written


def test_options_are_in_titled_groups_and_the_common_ones_in_the_last() -> None:
    text = run("export", "--help").out
    titles = ["Arguments", "Target", "Precision", "Model", "Files", "Debugging", "Output"]
    places = [text.index(f"╭─ {title} ─") for title in titles]
    assert places == sorted(places)
    assert "╭─ Options ─" not in text
    for flag in ("--json", "--quiet", "--traceback", "--help"):
        assert text.index(f"│ {flag} ") > places[-1]


def test_the_usage_line_has_no_python_types() -> None:
    assert "predict [OPTIONS] DIR IMAGE..." in run("predict", "--help").out
    assert "recipes [OPTIONS] [NAME]" in run("recipes", "--help").out
    assert "hosts [OPTIONS] [NAME|ssh://…]…" in run("hosts", "--help").out
    for name in COMMANDS:
        assert not any(word in run(name, "--help").out for word in ("<str>", "<path>", "<bool>", "list[")), name


def test_choices_break_between_words_and_are_parsed_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = run("export", "--help").out
    assert "onnxruntime | openvino |" in text
    target = next(parameter for parameter in COMMANDS["export"].params if parameter.name == "target")
    assert target.metavar == "onnxruntime|openvino|tensorrt|tensorrt-rtx"


@pytest.mark.parametrize("name", COMMANDS)
def test_no_help_text_loses_its_brackets(name: str) -> None:
    """Typer reads `vitdeploy[hf]` as markup and prints `vitdeploy`, unless the bracket is escaped."""
    command = COMMANDS[name]
    for text in (command.help or "", *(getattr(parameter, "help", None) or "" for parameter in command.params)):
        assert render(text).plain == text.replace("\\[", "["), text
