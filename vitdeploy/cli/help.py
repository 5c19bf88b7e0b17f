"""The form of `--help`, and completion: groups of options, choices that break between words, examples at the end."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any, get_args

from typer.core import TyperCommand, TyperGroup

from vitdeploy.escaping import escape_log

OUTPUT = "Output"
"""The title of the last group."""


class HelpCommand(TyperCommand):
    """A command whose help is easy to read. Its parameters stay as they are for parsing and messages."""

    def get_help_option(self, ctx: Any) -> Any:
        """Return `--help`, in the last group of options."""
        option = super().get_help_option(ctx)
        if option is not None:
            vars(option).update(rich_help_panel=OUTPUT, metavar="")
        return option

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help of a copy with readable parameters."""
        TyperCommand.format_help(_make_readable(self), ctx, formatter)


class HelpGroup(TyperGroup):
    """A group of commands whose help is easy to read."""

    def get_help_option(self, ctx: Any) -> Any:
        """Return `--help`, without a type."""
        option = super().get_help_option(ctx)
        if option is not None:
            vars(option)["metavar"] = ""
        return option

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        """Parse the words before the name of the command."""
        with _usage_errors_escaped():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        """Parse the words of the command, and run it."""
        with _usage_errors_escaped():
            return super().invoke(ctx)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help of a copy with readable parameters."""
        TyperGroup.format_help(_make_readable(self), ctx, formatter)


@contextmanager
def _usage_errors_escaped() -> Iterator[None]:
    """Escape the message of wrong usage: it quotes words of the command line, which may be names of files."""
    try:
        yield
    except Exception as error:
        message = getattr(error, "message", None)
        if hasattr(error, "format_message") and isinstance(message, str):
            vars(error)["message"] = escape_log(message)
        raise


def group_options(
    parameters: Iterable[inspect.Parameter], groups: Mapping[str, Sequence[str]]
) -> list[inspect.Parameter]:
    """Put parameters into groups of the help: title -> names. The other parameters stay in "Options"."""
    titles = {name: title for title, names in groups.items() for name in names}
    grouped = []
    for parameter in parameters:
        if parameter.name in titles:
            kind, option = get_args(parameter.annotation)
            option = copy.copy(option)
            option.rich_help_panel = titles[parameter.name]
            parameter = parameter.replace(annotation=Annotated[kind, option])
        grouped.append(parameter)
    return grouped


def complete_choices(parameters: Iterable[inspect.Parameter]) -> list[inspect.Parameter]:
    """Let the shell complete the values of options whose callback has `choices`."""
    completed = []
    for parameter in parameters:
        option = next(iter(get_args(parameter.annotation)[1:]), None)
        choices = getattr(getattr(option, "callback", None), "choices", ())
        if option is not None and choices:
            option = copy.copy(option)
            option.autocompletion = _completion_of(choices)
            parameter = parameter.replace(annotation=Annotated[get_args(parameter.annotation)[0], option])
        completed.append(parameter)
    return completed


def _completion_of(choices: Sequence[str]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:  # typer reads this signature
        return [choice for choice in choices if choice.startswith(incomplete)]

    return complete


def join_lines(text: str) -> str:
    """Join the lines of each paragraph, so that the terminal breaks them at its own width."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in inspect.cleandoc(text).split("\n\n"))


def list_examples(examples: Sequence[str]) -> str | None:
    """Return the end of the help: command lines, each after a prompt."""
    return "\n".join(["Examples:", *(f"$ {line}" for line in examples)]) if examples else None


def _make_readable(command: Any) -> Any:
    """Return a copy without the types of flags and arguments, and with `A | B` for `A|B`, which breaks between words.

    In the usage line, an argument is `NAME` (required) or `[NAME]`, with `...` if it can be repeated.
    """
    readable = copy.copy(command)
    readable.params = [copy.copy(parameter) for parameter in command.params]
    for parameter in readable.params:
        if parameter.param_type_name == "argument":
            vars(parameter).update(display_type_rich=_hide_type, get_usage_pieces=partial(_write_usage, parameter))
        elif getattr(parameter, "is_flag", False):
            parameter.metavar = ""
        elif parameter.metavar:
            parameter.metavar = parameter.metavar.replace("|", " | ")
    return readable


def _hide_type(ctx: object) -> None:  # noqa: ARG001  the signature of typer's method
    return None


def _write_usage(argument: Any, ctx: object) -> list[str]:  # noqa: ARG001  the signature of typer's method
    name = argument.metavar or argument.name.upper()
    if not (argument.required or name.startswith("[")):
        name = f"[{name}]"
    return [name if argument.nargs == 1 or name.endswith("…") else f"{name}..."]
