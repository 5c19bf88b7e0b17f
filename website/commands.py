"""The command reference, read from the command line itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import typer

from vitdeploy.cli import app
from website.tables import as_code, make_table

_SHARED = ("--json", "--quiet", "--traceback", "--help")


def write_page() -> str:
    """Return the page: usage, arguments, options in the groups of `--help`, and examples of each command."""
    lines = [
        "# Command reference",
        "",
        "Made from the command line itself when this site is built: what `vitdeploy COMMAND --help` prints. The",
        "[guide](cli.md) says more about each option, and has the keys of `--json`.",
        "",
    ]
    commands = {name: command for name, command in _root().commands.items() if not command.hidden}
    shared = next(iter(commands.values())).params
    lines += ["## Options of all commands", "", *_list_options(o for o in shared if _is_shared(o))]
    lines += ["Without a command:", "", *_list_options(o for o in _root().params if not o.hidden)]
    for name, command in commands.items():
        lines += [f"## vitdeploy {name}", "", command.help, "", *_describe(name, command)]
    return "\n".join(lines)


def _root() -> Any:
    return typer.main.get_command(app)


def _describe(name: str, command: Any) -> Iterable[str]:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden and not _is_shared(p)]
    names = [_name_of(argument) for argument in arguments]
    yield from ["```text", " ".join(["vitdeploy", name, *names, *(["[OPTIONS]"] if options else [])]), "```", ""]
    if arguments:
        rows = [(as_code(_name_of(a)), a.help or "", "yes" if a.required else "no") for a in arguments]
        yield from make_table(("argument", "what it is", "required"), rows)
    for group in dict.fromkeys(option.rich_help_panel or "Options" for option in options):
        yield from [f"**{group}**", ""]
        yield from _list_options(o for o in options if (o.rich_help_panel or "Options") == group)
    examples = [line[2:] for line in (command.epilog or "").splitlines()[1:]]
    yield from ["```sh", *examples, "```", ""]


def _list_options(options: Iterable[Any]) -> list[str]:
    rows = [(", ".join(map(as_code, o.opts)), _list_values(o), _default_of(o), o.help or "") for o in options]
    return make_table(("option", "value", "default", "what it does"), rows)


def _list_values(option: Any) -> str:
    """Return the choices of an option, or the name of its value; empty for a flag."""
    if option.is_flag or not option.metavar:
        return ""
    return " · ".join(map(as_code, option.metavar.split("|"))) + (" (repeatable)" if option.multiple else "")


def _default_of(option: Any) -> str:
    """Return the default that is a fixed value. The others are described in the help text."""
    value = option.default
    return "" if option.is_flag or value is None or callable(value) or value == [] else as_code(value)


def _name_of(argument: Any) -> str:
    name = str(argument.metavar or argument.name.upper())
    return name if argument.nargs == 1 or name.endswith("…") else f"{name}..."


def _is_shared(parameter: Any) -> bool:
    return any(flag in _SHARED for flag in parameter.opts)
