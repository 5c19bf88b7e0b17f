"""The parts that all commands share: --json, --quiet, --traceback, exit codes, signals."""

from __future__ import annotations

import inspect
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, NoReturn, TextIO

import typer

from vitdeploy.cli import signals
from vitdeploy.cli.console import INTERRUPTED, Console
from vitdeploy.cli.help import OUTPUT, HelpCommand, complete_choices, group_options, join_lines, list_examples
from vitdeploy.errors import VitdeployError
from vitdeploy.escaping import escape_log
from vitdeploy.plugins import did_you_mean

_Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print the result as one JSON object on stdout. Everything else goes to stderr.",
        rich_help_panel=OUTPUT,
    ),
]
_Quiet = Annotated[bool, typer.Option("--quiet", help="Do not show progress.", rich_help_panel=OUTPUT)]
_Traceback = Annotated[
    bool, typer.Option("--traceback", help="Show the Python traceback of an error.", rich_help_panel=OUTPUT)
]
_COMMON = {"json": _Json, "quiet": _Quiet, "traceback": _Traceback}

EXIT_CODES = {"pass": 0, "fail": 1, "invalid": 3}
"""The exit codes of the gate's verdicts."""

_results: TextIO | None = None
"""The stream for results. `run_app` sets it once, and redirects stdout so that libraries cannot write to it."""

_SHOW_CURSOR = "\x1b[?25h"


def command(
    app: typer.Typer,
    name: str | None = None,
    *,
    section: str | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    examples: Sequence[str] = (),
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a command with the common options, and pass it a `console`.

    An error becomes one line and exit code 1, Ctrl-C exit code 130. Exit codes that the function raises stay.

    Args:
        app: the application.
        name: the name of the command; None is the function's name.
        section: the section of `vitdeploy --help` that lists the command.
        groups: groups of options in the command's help: title -> parameter names.
        examples: command lines at the end of the command's help.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(function, eval_str=True)
        specific = [p for p in signature.parameters.values() if p.name != "console"]
        common = [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
            for key, annotation in _COMMON.items()
        ]

        def call(*, json: bool, quiet: bool, traceback: bool, **arguments: Any) -> None:
            console = Console(json=json, quiet=quiet, out=_results, interrupted=signals.was_interrupted)
            with console.errors_as_lines(traceback=traceback):
                function(console=console, **arguments)

        # Typer reads a command's options from its signature.
        specific = complete_choices(specific)
        specific = group_options((p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in specific), groups or {})
        vars(call)["__signature__"] = inspect.Signature([*specific, *common])
        call.__annotations__ = {p.name: p.annotation for p in (*specific, *common)}
        call.__name__ = function.__name__
        text, epilog = join_lines(function.__doc__ or ""), list_examples(examples)
        app.command(name=name, cls=HelpCommand, help=text, epilog=epilog, rich_help_panel=section)(call)
        return function

    return register


def one_of(choices: Sequence[str]) -> Callable[[str | None], str | None]:
    """Return a callback that checks an option's value against `choices`. Other values are wrong usage (exit code 2)."""

    def check(value: str | None) -> str | None:
        if value is not None and value not in choices:
            hint = did_you_mean(value, list(choices))
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(choices)}{hint}.")
        return value

    vars(check)["choices"] = tuple(choices)  # for the completion of the shell
    return check


def choice(choices: Sequence[str], *flags: str, help: str) -> Any:
    """Return an option that takes one of these words."""
    return typer.Option(*flags, metavar="|".join(choices), callback=one_of(choices), help=help, show_default=False)


def some_of(choices: Sequence[str]) -> Callable[[str | None], str | None]:
    """Return a callback that checks a value of one or several of `choices`, with commas between them."""
    check_one = one_of(choices)

    def check(value: str | None) -> str | None:
        for name in [] if value is None else value.split(","):
            check_one(name.strip())
        return value

    vars(check)["choices"] = tuple(choices)  # for the completion of the shell
    return check


def valid_for(validate: Callable[[str], None]) -> Callable[[str | None], str | None]:
    """Return a callback that checks an option's value with `validate`. An error is wrong usage (exit code 2)."""

    def check(value: str | None) -> str | None:
        if value is not None:
            try:
                validate(value)
            except VitdeployError as error:
                raise typer.BadParameter(str(error)) from None
        return value

    return check


def run_app(app: typer.Typer) -> NoReturn:
    """Run the command line of this process and exit with its code.

    Libraries print to stdout, from Python and from C++. So during the run the descriptor of stdout leads to stderr, and
    results go to a copy of the real stdout. SIGTERM works like Ctrl-C, so that a cancelled CI job cleans up too;
    so does SIGHUP, which a closed terminal or a lost connection sends.
    """
    global _results  # a process has only one stdout
    if not _only_prints_help(sys.argv[1:]):
        _results = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
    warnings.formatwarning = _escape_warning
    signals.install()
    try:
        app()
    except KeyboardInterrupt:  # before a command began, or after its end
        sys.exit(INTERRUPTED)
    finally:
        signals.end()
        _show_cursor()
    sys.exit(0)


def _show_cursor() -> None:
    """Show the terminal's cursor. An interrupt while a progress bar starts or ends may leave it hidden.

    It may also leave the bar's own stream in the place of stderr, which would escape the control code.
    """
    terminal = sys.__stderr__
    if terminal is not None and terminal.isatty():
        with suppress(OSError):
            terminal.write(_SHOW_CURSOR)
            terminal.flush()


_format_warning = warnings.formatwarning


def _escape_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Format a library's warning, which may quote a name from anywhere."""
    return escape_log(_format_warning(message, category, filename, lineno, line))


_PRINTING = ("--version", "--show-completion", "--install-completion")
"""Options without a command, which print on stdout themselves."""


def _only_prints_help(arguments: Sequence[str]) -> bool:
    options = [*arguments, "--"][: [*arguments, "--"].index("--")]  # what follows is data, whatever it is called
    return not arguments or "--help" in options or arguments[0] in _PRINTING
