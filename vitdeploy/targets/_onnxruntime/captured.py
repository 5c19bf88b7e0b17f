"""Read what a native library prints to standard output or standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Captured:
    """The file that a stream goes to for a while."""

    file: Path

    def text(self) -> str:
        """Return the text so far."""
        return self.file.read_text(encoding="utf-8", errors="replace")


@contextmanager
def captured(descriptor: int, file: Path) -> Iterator[Captured]:
    """Send standard output (1) or standard error (2) of this process to a file.

    Redirecting `sys.stdout` would not do: C++ writes to the descriptor. Other threads must not print meanwhile.
    """
    stream = sys.stdout if descriptor == 1 else sys.stderr
    stream.flush()
    saved = os.dup(descriptor)
    with file.open("w") as sink:
        os.dup2(sink.fileno(), descriptor)
    try:
        yield Captured(file)
    finally:
        stream.flush()
        os.dup2(saved, descriptor)
        os.close(saved)
