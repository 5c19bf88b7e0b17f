"""What the command line shows: one JSON object or tables on stdout; progress, warnings and errors on stderr."""

from __future__ import annotations

import sys
import time
import traceback as tracebacks
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

import typer
from rich.console import Console as RichConsole
from rich.markup import escape

from vitdeploy.errors import VitdeployError

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import RenderableType


_FAILED, _INTERRUPTED = 1, 130


class Console:
    """One command's output. It is the `Progress` that the library reports to.

    `interrupted` tells whether a signal has come. Where it comes inside a library's callback or destructor, Python
    drops the exception, and the work would go on: every step asks again.
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
        self._err = RichConsole(stderr=True, highlight=False)

    def show(self, result: BaseModel | dict[str, Any], *renderables: RenderableType) -> None:
        """Print the result: as JSON, or as what people read."""
        if self.json:
            from pydantic import BaseModel as Model
            from pydantic_core import to_json

            text = result.model_dump_json(indent=1) if isinstance(result, Model) else to_json(result, indent=1).decode()
            print(text, file=self._out, flush=True)
            return
        console = RichConsole(file=self._out, highlight=False)
        for renderable in renderables:
            console.print(renderable)

    def warn(self, message: str) -> None:
        """One line that should be read although the work goes on."""
        self._err.print(f"[yellow]note:[/] {escape(message)}", soft_wrap=True)

    def relay(self, line: str) -> None:
        """What another machine says about its work; its notes are worth reading even where progress is not wanted."""
        if not self.quiet or "note:" in line:
            self._err.print(escape(line), soft_wrap=True)

    @property
    def binary(self) -> BinaryIO:
        """Stdout, for a result that is not text."""
        return self._out.buffer

    def fail(self, message: str, fix: str) -> None:
        """The one line of an error."""
        line = " ".join(f"{message.rstrip('.')}. {fix}".split())
        self._err.print(f"[bold red]error:[/] {escape(line)}", soft_wrap=True)
        if self.json:
            self.show({"error": {"message": message, "fix": fix}})

    @contextmanager
    def errors_as_lines(self, *, traceback: bool) -> Iterator[None]:
        """What goes wrong inside becomes one line and an exit code; usage errors and exits pass through."""
        try:
            yield
        except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
            raise  # a reader that went away, such as `| head`, is Click's to end quietly
        except KeyboardInterrupt:
            self.warn("interrupted; nothing half-written is left behind")
            raise typer.Exit(_INTERRUPTED) from None
        except VitdeployError as error:
            self._trace(traceback)
            self.fail(error.message, error.fix)
            raise typer.Exit(_FAILED) from None
        except Exception as error:  # noqa: BLE001  the last place where a traceback can become a line
            self._trace(traceback)
            lines = str(error).strip().splitlines() or [""]
            fix = "Report it." if traceback else "Run again with --traceback and report it."
            self.fail(f"unexpected {type(error).__name__}: {lines[0][:300]}", fix)
            raise typer.Exit(_FAILED) from None

    def _trace(self, wanted: bool) -> None:
        if wanted:
            tracebacks.print_exc()

    @contextmanager
    def step(self, title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """A bar while it runs on a terminal, and a line with its time when it is done."""
        started = time.monotonic()
        if self.quiet:
            yield lambda _: None
        else:
            with self._bar(title, total) as advance:
                yield advance
        if self._interrupted():
            raise KeyboardInterrupt
        if not self.quiet:
            self._err.print(f"[green]✓[/] {escape(title)} [dim]{time.monotonic() - started:.1f} s[/]")

    @contextmanager
    def _bar(self, title: str, total: int | None) -> Iterator[Callable[[int], None]]:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        counted = [BarColumn(), MofNCompleteColumn()] if total else []
        columns = [SpinnerColumn(), TextColumn("{task.description}"), *counted, TimeElapsedColumn()]
        with Progress(*columns, console=self._err, transient=True, disable=not self._err.is_terminal) as bar:
            task = bar.add_task(escape(title), total=total)
            yield lambda done: bar.advance(task, done)
