"""What long work says while it runs. The command line draws it; the library says it to nobody by default."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Progress(Protocol):
    """A listener: steps that begin and end, counted or not, and warnings."""

    def step(self, title: str, total: int | None = None) -> AbstractContextManager[Callable[[int], None]]:
        """Enter when a step begins; call the result with the number of units done (`total` in all, if known)."""

    def warn(self, message: str) -> None:
        """One line that the user should read although the work goes on."""

    def relay(self, line: str) -> None:
        """One line of what another program says about its work: a machine over SSH, a compiler that takes minutes."""


class Silent:
    """Says nothing: the default for library use."""

    @contextmanager
    def step(self, title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:  # noqa: ARG002
        """Yield a counter that counts for nobody."""
        yield lambda _: None

    def warn(self, message: str) -> None:
        """Drop the message."""

    def relay(self, line: str) -> None:
        """Drop the line."""
