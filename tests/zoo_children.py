"""Child processes of the zoo that end too early. They load nothing heavy, so that they start at once."""

from __future__ import annotations

import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.zoo.rows import Case, Row

SECOND = Case("textbook", "module", "onnxruntime", "fp32")
"""The case at which they end."""


def crash(cases: list[Case], folder: Path, answers: Connection) -> None:
    """Make rows, and crash at one of them."""
    del folder
    for case in cases:
        if case == SECOND:
            os.kill(os.getpid(), signal.SIGSEGV)
        answers.send(Row(*case, seconds=1.0))


def sleep(cases: list[Case], folder: Path, answers: Connection) -> None:
    """Make rows, and never finish one of them."""
    del folder
    for case in cases:
        if case == SECOND:
            time.sleep(600)
        answers.send(Row(*case, seconds=1.0))
