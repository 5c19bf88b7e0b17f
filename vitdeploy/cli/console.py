"""The output of the command line: one JSON object or tables on stdout; progress, warnings and errors on stderr."""

from __future__ import annotations

import errno
import sys
import time
import traceback as tracebacks
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

import typer
from rich.text import Text

from vitdeploy.cli.guard import guarded_console
from vitdeploy.errors import VitdeployError
from vitdeploy.escaping import escape, escape_json, escape_log, escape_strings

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import RenderableType


INTERRUPTED = 130
_FAILED = 1
_DISK_ERRORS = {
    errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.ESTALE, errno.EACCES, errno.EPERM,
    errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG,
}  # fmt: skip
"""Errors of the disk and of its settings. They can hit any file operation, and say nothing about vitdeploy."""


class Console:
    """The output of one command, and the `Progress` that the library reports to.

    `interrupted` returns True after a signal. If the signal arrives inside a library's callback or destructor, Python
    drops its exception and the work goes on. So every step asks once more when it ends.
    """

    def __init__(
        self,
        *,
        json: bool = False,
        quiet: bool = False,
        out: TextIO | None = None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        self._interrupted = interrupted
        self.json = json
        self.quiet = quiet
        self._out = out or sys.stdout
        self._err = guarded_console(stderr=True)

    def show(self, result: BaseModel | dict[str, Any], *renderables: RenderableType) -> None:
        """Print the result: as JSON, or as the renderables that people read."""
        if self.json:
            print(escape_json(_write_json(result)), file=self._out, flush=True)
            return
        console = guarded_console(file=self._out)
        for renderable in renderables:
            console.print(renderable, soft_wrap=isinstance(renderable, Text) and renderable.no_wrap is True)

    def show_text(self, result: dict[str, Any], text: str) -> None:
        """Print the result: as JSON, or as this text, byte for byte. It must be vitdeploy's own."""
        if self.json:
            self.show(result)
        else:
            self._out.write(text)
            self._out.flush()

    def warn(self, message: str) -> None:
        """Print one line that the user should read although the work goes on."""
        self._err.print(Text.assemble(("note:", "yellow"), " ", escape(message)), soft_wrap=True)

    def relay(self, line: str) -> None:
        """Print a line of another program. With --quiet only its notes are printed."""
        if not self.quiet or "note:" in line:
            self._err.print(Text(escape(line)), soft_wrap=True)

    @property
    def binary(self) -> BinaryIO:
        """Stdout, for a result that is not text."""
        return self._out.buffer

    def fail(self, message: str, fix: str) -> None:
        """Print an error as one line, and with --json as an object too."""
        self.fail_partly({}, (), message, fix)

    def fail_partly(
        self, result: dict[str, Any], renderables: Iterable[RenderableType], message: str, fix: str
    ) -> None:
        """Print what was done, and an error as one line. With --json they are one object."""
        if not self.json:
            self.show(result, *renderables)
        line = " ".join(f"{message.rstrip('.')}. {fix}".split())
        self._err.print(Text.assemble(("error:", "bold red"), " ", escape(line)), soft_wrap=True)
        if self.json:
            self.show({**result, "error": {"message": message, "fix": fix}})

    @contextmanager
    def errors_as_lines(self, *, traceback: bool) -> Iterator[None]:
        """Turn an error inside the block into one line and an exit code. Usage errors and exits pass through.

        An extension may turn an interrupt into an error of its own. So no error counts after a signal.
        """
        try:
            yield
        except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
            raise  # BrokenPipeError: Click ends quietly when the reader is gone, such as `| head`
        except (KeyboardInterrupt, Exception) as error:  # noqa: BLE001  the last place where a traceback can become a line
            if traceback and not isinstance(error, KeyboardInterrupt):
                _print_traceback()
            if isinstance(error, KeyboardInterrupt) or self._interrupted():
                with suppress(OSError):  # after SIGHUP there may be no terminal
                    self.warn("interrupted; no incomplete files are left behind")
                raise typer.Exit(INTERRUPTED) from None
            if isinstance(error, VitdeployError):
                self.fail(error.message, error.fix)
            else:
                self.fail(*_describe(error, traceback=traceback))
            raise typer.Exit(_FAILED) from None

    @contextmanager
    def step(self, title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Show a progress bar on a terminal, and a line with the elapsed time when the step is done."""
        started = time.monotonic()
        if self.quiet:
            yield lambda _: None
        else:
            with self._bar(title, total) as advance:
                yield advance
        if self._interrupted():
            raise KeyboardInterrupt
        if not self.quiet:
            seconds = f"{time.monotonic() - started:.1f} s"
            self._err.print(Text.assemble(("✓", "green"), f" {escape(title)} ", (seconds, "dim")))

    @contextmanager
    def _bar(self, title: str, total: int | None) -> Iterator[Callable[[int], None]]:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        count = [BarColumn(), MofNCompleteColumn()] if total else []
        left = [TextColumn("left"), TimeRemainingColumn()] if total else []
        columns = [SpinnerColumn(), TextColumn("{task.description}", markup=False), *count, TimeElapsedColumn(), *left]
        with Progress(*columns, console=self._err, transient=True, disable=not self._err.is_terminal) as bar:
            task = bar.add_task(escape(title), total=total)
            yield lambda done: bar.advance(task, done)


def _write_json(result: BaseModel | dict[str, Any]) -> str:
    from pydantic_core import PydanticSerializationError, to_json

    try:
        return to_json(result, indent=1).decode()
    except (PydanticSerializationError, UnicodeEncodeError):  # a file's name that is no UTF-8 is no JSON either
        return to_json(escape_strings(result), indent=1).decode()


def _print_traceback() -> None:
    print(escape_log(tracebacks.format_exc()), end="", file=sys.stderr)


def _describe(error: Exception, *, traceback: bool) -> tuple[str, str]:
    """Return the message and the fix of an error that is not one of vitdeploy's own."""
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        name = error.filename if isinstance(error.filename, str) else "a file"
        fix = "Check the disk, its free space and the permissions, then run the command again."
        return f"{name} cannot be read or written: {error.strerror}", fix
    lines = str(error).strip().splitlines() or [""]
    fix = "Report this error." if traceback else "Run the command again with --traceback, and report the error."
    return f"unexpected {type(error).__name__}: {lines[0][:300]}", fix
