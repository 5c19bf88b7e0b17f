"""Progress reports of long work. The command line draws them; the library drops them by default."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Progress(Protocol):
    """A listener: steps that begin and end, counted or not, and warnings."""

    def step(self, title: str, total: int | None = None) -> AbstractContextManager[Callable[[int], None]]:
        """Enter when a step begins. Call the result with the number of units just done (of `total`, if known)."""

    def warn(self, message: str) -> None:
        """Show one line that the user should read although the work goes on."""

    def relay(self, line: str) -> None:
        """Show one line of another program's output: a machine over SSH, a compiler that takes minutes."""


class Silent:
    """A listener that drops everything: the default for library use."""

    @contextmanager
    def step(self, title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:  # noqa: ARG002
        """Yield a counter that does nothing."""
        yield lambda _: None

    def warn(self, message: str) -> None:
        """Drop the message."""

    def relay(self, line: str) -> None:
        """Drop the line."""
