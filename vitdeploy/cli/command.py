"""What every command has: --json, --quiet, --traceback, and one place where errors become a line and an exit code."""

from __future__ import annotations

import inspect
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NoReturn, TextIO

import typer

from vitdeploy.cli.console import Console
from vitdeploy.plugins import did_you_mean

_Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object on stdout; all else goes to stderr.", rich_help_panel="Output"),
]
_Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on stderr.", rich_help_panel="Output")]
_Traceback = Annotated[
    bool, typer.Option("--traceback", help="Show where an error came from.", rich_help_panel="Output")
]
_COMMON = {"json": _Json, "quiet": _Quiet, "traceback": _Traceback}

EXIT_CODES = {"pass": 0, "fail": 1, "invalid": 3}
"""Of the gate's verdicts."""

_results: TextIO | None = None
"""Where results go: set once by `run_app`, which moves stdout itself out of the libraries' reach."""

_interrupted: float | None = None
"""When the last signal arrived."""
_CLEANING_UP_SECONDS = 5.0


def command(app: typer.Typer, name: str | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a command with the common options; its `console` parameter is filled in.

    An error becomes one line and exit code 1, Ctrl-C exit code 130; exit codes the function raises stay.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(function, eval_str=True)
        own = [p for p in signature.parameters.values() if p.name != "console"]
        common = [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
            for key, annotation in _COMMON.items()
        ]

        def call(*, json: bool, quiet: bool, traceback: bool, **arguments: Any) -> None:
            console = Console(json=json, quiet=quiet, out=_results, interrupted=lambda: _interrupted is not None)
            with console.errors_as_lines(traceback=traceback):
                function(console=console, **arguments)

        # Typer reads a command's options from its signature.
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + common
        vars(call)["__signature__"] = inspect.Signature(parameters)
        call.__annotations__ = {p.name: p.annotation for p in parameters}
        call.__name__, call.__doc__ = function.__name__, function.__doc__
        app.command(name=name)(call)
        return function

    return register


def one_of(choices: Sequence[str]) -> Callable[[str | None], str | None]:
    """A check that an option's value is one of `choices`; anything else is wrong usage (exit 2)."""

    def check(value: str | None) -> str | None:
        if value is not None and value not in choices:
            hint = did_you_mean(value, list(choices))
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(choices)}{hint}.")
        return value

    return check


def run_app(app: typer.Typer) -> NoReturn:
    """Run the command line of this process and exit with its code.

    Libraries print what they like to stdout, from Python and from C++: the descriptor goes to stderr for the whole run,
    and results go to a copy of the real one. SIGTERM ends like Ctrl-C does, so that a killed CI job cleans up too.
    """
    global _results  # the one stream that this process owns
    if not _only_prints_help(sys.argv[1:]):
        _results = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # started with nohup or in the background
            signal.signal(number, _interrupt)
    try:
        app()
    finally:
        # The exit code stands. While Python shuts down it gives signals back to the system, which would replace it.
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
    sys.exit(0)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _interrupt(signum: int, frame: object) -> None:  # noqa: ARG001  the signature that signal wants
    """Interrupt the work, not the cleaning up after it: `timeout` signals twice, and so do impatient people."""
    global _interrupted  # signals are the process's own
    now = time.monotonic()
    if _interrupted is None or now - _interrupted > _CLEANING_UP_SECONDS:
        _interrupted = now
        raise KeyboardInterrupt


def _only_prints_help(arguments: Sequence[str]) -> bool:
    return not arguments or "--help" in arguments or arguments[0] == "--version"
