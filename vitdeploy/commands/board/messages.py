"""The log of a build: every message as it comes, and the part of it that a recording keeps."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from vitdeploy.commands.board.recording import format_message, parse_messages

_VERBOSE = "VERBOSE"
_LAYERS = "LayerType: "
_LAST_VERBOSE = 60
_LONGEST_MESSAGE, _LONGEST_LOG = 200_000, 400_000


class MessageLog:
    """Writes every message to a file at once, so that a crash loses none."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> MessageLog:
        self._file = self._path.open("w", encoding="utf-8", newline="")
        return self

    def add(self, severity: str, text: str) -> None:
        """Write one message. It may come from another thread."""
        self._file.write(format_message(severity, text.rstrip("\n")))
        self._file.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def shorten(lines: Iterable[str], *, failed: bool) -> str:
    """Return the log without the verbose messages that describe no layers, of which a build has thousands.

    Args:
        lines: the complete log.
        failed: keep the last verbose messages too: they tell what the compiler was doing.
    """
    messages = list(parse_messages(lines))
    verbose = [index for index, (severity, text) in enumerate(messages) if severity == _VERBOSE and _LAYERS not in text]
    dropped = set(verbose[:-_LAST_VERBOSE] if failed else verbose)
    log = "".join(
        format_message(severity, text[:_LONGEST_MESSAGE])
        for index, (severity, text) in enumerate(messages)
        if index not in dropped
    )
    if len(log) > _LONGEST_LOG:
        half = _LONGEST_LOG // 2
        log = (
            f"{log[:half].rpartition(chr(10))[0]}\n[CUT] the middle of a long log\n{log[-half:].partition(chr(10))[2]}"
        )
    return log + (f"[CUT] {len(dropped)} verbose messages\n" if dropped else "")
